"""What a run's settings say: whom it may be compared with, and the few words that tell it from its
like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bhfl.settings import Role, told_of

Options = dict[str, str]
"""Dotted key to the value as text."""
SEED = "trainer.seed"


def task(told: Mapping[str, Any]) -> Options:
    """The settings that two runs must share to be compared: fleet, data, model, links.

    Args:
        told: What a run was told, as its ``settings.json`` has it.
    """
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
    """A value in words: 1.0 and 1 are the same, which the command line and Python may write."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


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
    keys = list(dict.fromkeys(key for options in methods for key in options))
    words = _last_words(keys)
    values = {key: _spoken({options.get(key) for options in methods}) for key in keys}
    brief: list[str] = []
    full: list[str] = []
    for options, name in zip(methods, names, strict=True):
        like = [other for other, its in zip(methods, names, strict=True) if its == name]
        told = _telling(options, [other for other in like if other != options], keys)
        shared = [
            key
            for key in told
            if 2 * sum(other.get(key) == options.get(key) for other in like) > len(like)
        ]
        said = [key for key in told if key not in shared and not _is_plain(options, key, like)]
        for kind, spoken in ((brief, said), (full, told)):
            kind.append(
                _label(name, [f"{words[key]}={values[key][options.get(key)]}" for key in spoken])
            )
    return [b if brief.count(b) == 1 else f for b, f in zip(brief, full, strict=True)]


def _is_plain(options: Options, key: str, like: Sequence[Options]) -> bool:
    """Whether the value goes without saying: a switch that is on, or what is not set anywhere."""
    if options.get(key) is None:  # a switch that others have on is off
        return all(other.get(key) != "True" for other in like)
    return options[key] == "True"


def _telling(options: Options, others: Sequence[Options], keys: Sequence[str]) -> list[str]:
    """A small set of keys in which `options` differs from each of `others`.

    The algorithm's own that tells most of them is taken first: a learning rate is said only where
    nothing else is left.
    """
    chosen = []
    while others:
        told = {key: sum(other.get(key) != options.get(key) for other in others) for key in keys}
        best = max(
            keys, key=lambda key: (bool(told[key]) and key.startswith("algorithm"), told[key])
        )
        chosen.append(best)
        others = [other for other in others if other.get(best) == options.get(best)]
    return sorted(chosen, key=list(keys).index)


def _label(name: str, telling: Sequence[str]) -> str:
    return f"{name} ({', '.join(telling)})" if telling else name


def _spoken(values: set[str | None]) -> dict[str | None, str]:
    """Values as labels say them: classes by their names alone, where these differ."""
    brief = {value: "none" if value is None else short(value) for value in values}
    return (
        brief
        if len(set(brief.values())) == len(values)
        else {value: str(value) for value in values}
    )


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
    differ = [key for key in facets[0] if len({facet[key] for facet in facets}) > 1]
    found = [[facet[key] or f"no {key}" for key in differ] for facet in facets]
    if len(set(map(tuple, found))) < len(found):
        tasks = [task(one) for one in told]
        keys = [
            k
            for k in dict.fromkeys(k for t in tasks for k in t)
            if len({t.get(k) for t in tasks}) > 1
        ]
        keys = [key for key in keys if key != "clients"]
        found = [
            [*text, *(f"{k.rpartition('.')[2]}={short(t.get(k, 'none'))}" for k in keys)]
            for text, t in zip(found, tasks, strict=True)
        ]
    return [", ".join(words) for words in found]


def _facets(told: Mapping[str, Any]) -> dict[str, str]:
    """Data set, partition, model, fleet and links in words."""
    own = task(told)
    partition = short(own.get("data.partition", ""))
    first = next((key for key in own if key.startswith("data.partition.")), None)
    return {
        "data": short(own.get("data", "?")),
        "partition": f"{partition}({first.rpartition('.')[2]}={own[first]})"
        if first
        else partition,
        "model": own.get("model.net", short(own.get("model", "?"))),
        "fleet": fleet(told_of(told, [Role.TASK]).get("clients")),
        "simulated links": _links(own),
    }


def fleet(clients: Any) -> str:
    """A fleet in words.

    >>> fleet({"ternary": 5, "32": 5})
    '5 x ternary, 5 x float32'
    >>> fleet([{"bits": 8, "fraction": 0.5}, {"bits": {"weights": 4}, "count": 2}])
    '50 % int8, 2 x weights 4'
    """
    entries = (
        [{"bits": bits, "count": count} for bits, count in clients.items()]
        if isinstance(clients, dict)
        else clients
    )
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return str(clients)
    return ", ".join(_group(entry) for entry in entries)


def _group(entry: Mapping[str, Any]) -> str:
    bits, fraction = entry.get("bits"), entry.get("fraction")
    name = (
        " ".join(f"{key} {value}" for key, value in bits.items())
        if isinstance(bits, dict)
        else str(bits)
    )
    if name.isdigit():
        name = "float32" if name == "32" else f"int{name}"
    share = (
        f"{100 * fraction:g} %" if isinstance(fraction, (int, float)) else f"{entry.get('count')} x"
    )
    return f"{share} {name}"


def _links(own: Options) -> str:
    """The simulated network by its profiles or trace."""
    prefix = "trainer.network"
    network = {key: value for key, value in own.items() if key.startswith(prefix)}
    mixed = [
        f"{share} {key.removeprefix(f'{prefix}.profiles.')}"
        for key, share in network.items()
        if key.startswith(f"{prefix}.profiles.")
    ]
    profile = network.get(f"{prefix}.profiles", "a network")
    names = network.get(f"{prefix}.trace") or ", ".join(mixed) or profile
    return f"over {names}" if network else ""
