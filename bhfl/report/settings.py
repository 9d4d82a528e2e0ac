"""What a run's configuration says: whom it may be compared with, and the few words that tell it
from its like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Options = dict[str, str]
"""Dotted key, without ``init_args``, to the value as text."""

_WHERE = {
    "trainer": "accelerator devices num_nodes strategy threads timeout_seconds channels_last "
    "logger callbacks default_root_dir name checkpoint_every_n_rounds keep_checkpoints "
    "max_failed_rounds evaluate_clients check_val_every_n_rounds monitor mode",
    "data": "root archive download num_workers eval_batch_size",
}
"""Where and how a run computes and what it writes, not what: runs that differ in them are alike."""
_FIXED = ("Digits", "FakeImages", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
"""Data sets alike wherever they lie; of others, ``root`` and ``archive`` say what is learnt."""
_METHOD = {
    "data": "batch_size augment holdout",
    "model": "optimizer lr_scheduler lr_interval label_smoothing "
    "lr learning_rate momentum weight_decay",
}
"""Options of data and model that belong to how one trains; the others say what is learnt, as those
below do.
"""
_TASK = {"trainer": "num_clients network"}


def flat(value: Any, prefix: str = "") -> Options:
    """All values of a configuration by dotted key; a class stands under the key whose value it is.

    >>> flat({"model": {"class_path": "a.Net", "init_args": {"size": 3, "norm": None}}})
    {'model': 'a.Net', 'model.size': '3'}
    """
    if not isinstance(value, Mapping):
        return {prefix: str(value)} if prefix and value is not None else {}
    found: Options = {}
    for key, item in value.items():
        inner = (
            prefix
            if key in ("class_path", "init_args")
            else f"{prefix}.{key}"
            if prefix
            else str(key)
        )
        found |= flat(item, inner)
    return found


def _listed(key: str, names: Mapping[str, str]) -> bool:
    room, _, rest = key.partition(".")
    return rest.partition(".")[0] in names.get(room, "").split()


def task(config: Mapping[str, Any]) -> Options:
    """The settings that two runs must share to be compared: fleet, data, model, links."""
    options = flat(config)
    found = {key: value for key, value in options.items() if not _listed(key, _WHERE)}
    if short(options.get("data", "")) not in _FIXED:
        places = {
            key: options[key].rstrip("/") for key in ("data.root", "data.archive") if key in options
        }
        return _learnt(found) | places
    return _learnt(found)


def _learnt(found: Options) -> Options:
    """Those of `found` that are no method."""
    learnt = {
        k
        for k in found
        if k.partition(".")[0] in ("clients", "data", "model") and not _listed(k, _METHOD)
    }
    return {key: value for key, value in found.items() if key in learnt or _listed(key, _TASK)}


def method(config: Mapping[str, Any]) -> Options:
    """All other settings but the seed: the algorithm's first."""
    own = task(config)
    found = {
        key: value
        for key, value in flat(config).items()
        if key not in own and key != "seed_everything" and not _listed(key, _WHERE)
    }
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("algorithm")))


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
        said = [key for key in told if key not in shared and options.get(key) not in (None, "True")]
        for kind, spoken in ((brief, said), (full, told)):
            kind.append(
                _label(name, [f"{words[key]}={values[key][options.get(key)]}" for key in spoken])
            )
    return [b if brief.count(b) == 1 else f for b, f in zip(brief, full, strict=True)]


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


def titles(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title for each of several settings: what differs between them, or all that matters of a
    single one.
    """
    facets = [_facets(config) for config in configs]
    if len(configs) < 2:
        return [", ".join(filter(None, facet.values())) for facet in facets]
    differ = [key for key in facets[0] if len({facet[key] for facet in facets}) > 1]
    found = [[facet[key] or f"no {key}" for key in differ] for facet in facets]
    if len(set(map(tuple, found))) < len(found):
        tasks = [task(config) for config in configs]
        keys = [
            k
            for k in dict.fromkeys(k for t in tasks for k in t)
            if len({t.get(k) for t in tasks}) > 1
        ]
        keys = [key for key in keys if not key.startswith("clients.")]
        found = [
            [*text, *(f"{k.rpartition('.')[2]}={short(t.get(k, 'none'))}" for k in keys)]
            for text, t in zip(found, tasks, strict=True)
        ]
    return [", ".join(words) for words in found]


def _facets(config: Mapping[str, Any]) -> dict[str, str]:
    """Data set, partition, model, fleet and links in words."""
    own = task(config)
    partition = short(own.get("data.partition", ""))
    first = next((key for key in own if key.startswith("data.partition.")), None)
    return {
        "data": short(own.get("data", "?")),
        "partition": f"{partition}({first.rpartition('.')[2]}={own[first]})"
        if first
        else partition,
        "model": own.get("model.net", short(own.get("model", "?"))),
        "fleet": fleet(config.get("clients")),
        "simulated links": _links(config),
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


def _links(config: Mapping[str, Any]) -> str:
    """The simulated network by its profiles or trace."""
    trainer = config.get("trainer")
    found = flat({"network": trainer.get("network")} if isinstance(trainer, Mapping) else {})
    prefix = "network.profiles."
    mixed = [
        f"{share} {key.removeprefix(prefix)}"
        for key, share in found.items()
        if key.startswith(prefix)
    ]
    names = (
        found.get("network.trace") or ", ".join(mixed) or found.get("network.profiles", "a network")
    )
    return f"over {names}" if found else ""
