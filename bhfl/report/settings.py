"""What a run's settings say: which runs it may be compared with, and the few words that tell it
from them.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from bhfl.settings import Role
from bhfl.told import told_of

Options = dict[str, str]
"""Dotted key to the value as text."""
SEED = "trainer.seed"
_LONGEST = 60
"""Characters of a value in a title, more or less."""


def task(told: Mapping[str, Any]) -> Options:
    """The settings that two runs must share to be compared: fleet, data, model, links.

    Args:
        told: What a run was told, as its ``settings.json`` has it.
    """
    # a slash at the end of a folder means nothing
    places = {key: value.rstrip("/") for key, value in _texts(told, Role.IDENTITY).items()}
    return _texts(told, Role.TASK) | places


def method(told: Mapping[str, Any]) -> Options:
    """The settings that tell runs of one task apart, but for the seed: the algorithm's first."""
    found = _texts(told, Role.RESULT, Role.LENGTH, Role.CHOICE)
    found.pop(SEED, None)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("algorithm")))


def _texts(told: Mapping[str, Any], *roles: Role) -> Options:
    options = told_of(told, roles)
    return {key: _text(value) for key, value in options.items() if value is not None}


def _text(value: Any) -> str:
    """A value as text."""
    # Python may have been given 1 where the command line reads 1.0, and they are the same
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def short(value: str) -> str:
    """A class by its name alone.

    >>> short("torch.optim.SGD"), short("0.5")
    ('SGD', '0.5')
    """
    return value.rpartition(".")[2] if re.fullmatch(r"(\w+\.)+_*[A-Z]\w*", value) else value


# ---- labels --------------------------------------------------------------------------------------


def labels(methods: Sequence[Options]) -> list[str]:
    """A label for each of `methods`, all of them different: the algorithm, and what tells it from
    others of its name.

    What is not set, a switch that is on, and what most rows of an algorithm share go without
    saying, where the label is its own without it.
    """
    names = [short(options.get("algorithm", "?")) for options in methods]
    keys = list(dict.fromkeys(chain.from_iterable(methods)))
    words = _last_words(keys)
    values = {}
    for key in keys:
        own = {options.get(key) for options in methods}
        shortened = {value: "none" if value is None else short(value) for value in own}
        # classes by their names alone, where these differ
        differ = len(set(shortened.values())) == len(own)
        values[key] = shortened if differ else {value: str(value) for value in own}

    def label(name: str, options: Options, told: Sequence[str]) -> str:
        said = [f"{words[key]}={values[key][options.get(key)]}" for key in told]
        return f"{name} ({', '.join(said)})" if said else name

    brief = []
    full = []
    for options, name in zip(methods, names, strict=True):
        like = [other for other, its in zip(methods, names, strict=True) if its == name]
        telling = _telling(options, like, keys)
        told = [key for key in telling if not _goes_without_saying(options, key, like)]
        brief.append(label(name, options, told))
        full.append(label(name, options, telling))
    return [b if brief.count(b) == 1 else f for b, f in zip(brief, full, strict=True)]


def _goes_without_saying(options: Options, key: str, like: Sequence[Options]) -> bool:
    """Whether most rows of the algorithm share the value, it is a switch that is on, or it is not
    set.
    """
    value = options.get(key)
    above = key.rpartition(".")[0]
    if above in options:
        # rows in which the option above it is off have no say in an option of it
        like = [other for other in like if above in other]
    if 2 * sum(other.get(key) == value for other in like) > len(like):
        return True
    if value is None:
        # a switch that others have on is off here, which is said
        return all(other.get(key) != "True" for other in like)
    return value == "True"


def _telling(options: Options, like: Sequence[Options], keys: Sequence[str]) -> list[str]:
    """A small set of keys in which `options` differs from each other row of its algorithm.

    The algorithm's own option that tells most of them is taken first: a learning rate is said only
    where nothing else is left.
    """
    others = [other for other in like if other != options]

    def merit(key: str) -> tuple[bool, int]:
        told = sum(other.get(key) != options.get(key) for other in others)
        return told > 0 and key.startswith("algorithm"), told

    chosen = set()
    while others:
        best = max(keys, key=merit)
        chosen.add(best)
        others = [other for other in others if other.get(best) == options.get(best)]
    return [key for key in keys if key in chosen]


def _last_words(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last word, or by all of it where others end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


# ---- titles --------------------------------------------------------------------------------------


def titles(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title for each of several settings: what differs between them, or all that matters of a
    single one.
    """
    facets = [_facets(one) for one in told]
    if len(told) < 2:
        return [", ".join(filter(None, facet.values())) for facet in facets]
    differ = _differing(facets)
    found = []
    for facet in facets:
        found.append(tuple(facet[key] or f"no {key}" for key in differ))
    tasks = [task(one) for one in told]
    words = _last_words([key for key in _differing(tasks) if key != "clients"])
    for key, word in words.items():
        said = [f"{word}={_brief(short(own.get(key, 'none')))}" for own in tasks]
        longer = [(*title, more) for title, more in zip(found, said, strict=True)]
        # only what tells apart what is not yet
        if len(set(longer)) > len(set(found)):
            found = longer
    return [", ".join(title) for title in found]


def _brief(text: str) -> str:
    """A text whose middle is left out where it is long, as a list of data may be."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-10:]}"


def _differing(several: Sequence[Options]) -> list[str]:
    """The keys whose value is not the same in all."""
    alike = dict(set.intersection(*(set(one.items()) for one in several)))
    return [key for key in dict.fromkeys(chain.from_iterable(several)) if key not in alike]


def _facets(told: Mapping[str, Any]) -> Options:
    """Data set, partition, model, fleet and links in words."""
    own = task(told)
    partition = short(own.get("data.partition", ""))
    options = [key for key in own if key.startswith("data.partition.")]
    if options:
        partition += f"({options[0].rpartition('.')[2]}={own[options[0]]})"
    return {
        "data": short(own.get("data", "?")),
        "partition": partition,
        "model": own.get("model.net", short(own.get("model", "?"))),
        "fleet": fleet(told_of(told, [Role.TASK]).get("clients")),
        "simulated links": _links(own | _texts(told, Role.MACHINE)),
    }


def fleet(clients: Any) -> str:
    """A fleet in words.

    >>> fleet({"ternary": 5, "32": 5})
    '5 x ternary, 5 x float32'
    >>> fleet([{"bits": 8, "fraction": 0.5}, {"bits": {"weights": 4}, "count": 2}])
    '50 % int8, 2 x weights 4'
    >>> fleet([{"bits": "ternary", "count": 5, "name": "a", "schedule": {"8": "int4"}}])
    '5 x a (ternary, int4 after 8 rounds)'
    """
    if isinstance(clients, dict):
        clients = [{"bits": bits, "count": count} for bits, count in clients.items()]
    if not isinstance(clients, list) or not all(isinstance(entry, dict) for entry in clients):
        return str(clients)
    return ", ".join(map(_group, clients))


def _group(entry: Mapping[str, Any]) -> str:
    name = _bits(entry.get("bits"))
    schedule = entry.get("schedule")
    for round, bits in schedule.items() if isinstance(schedule, dict) else ():
        name += f", {_bits(bits)} after {round} rounds"
    if entry.get("name"):
        name = f"{entry['name']} ({name})"
    fraction = entry.get("fraction")
    if isinstance(fraction, int | float):
        return f"{100 * fraction:g} % {name}"
    return f"{entry.get('count')} x {name}"


def _bits(bits: Any) -> str:
    if isinstance(bits, dict):
        return " ".join(f"{key} {value}" for key, value in bits.items())
    name = str(bits)
    if name.isdigit():
        return "float32" if name == "32" else f"int{name}"
    return name


def _links(own: Options) -> str:
    """The simulated network by its trace or its profiles; empty where there is none."""
    network = {key: value for key, value in own.items() if key.startswith("trainer.network")}
    if not network:
        return ""
    profiles = "trainer.network.profiles"
    mixed = [
        f"{share} {key.removeprefix(f'{profiles}.')}"
        for key, share in network.items()
        if key.startswith(f"{profiles}.")
    ]
    trace = network.get("trainer.network.trace")
    return f"over {trace or ', '.join(mixed) or network.get(profiles, 'a network')}"
