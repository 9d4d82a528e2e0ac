"""Reads a matrix of runs from its YAML file, and says everything that is wrong with it.

This loads no torch: a slip is answered at once.
"""

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bhfl.checks import Check, choice, count, or_none, positive, shown, suggestion, within
from bhfl.cli.packaged import find_config
from bhfl.cli.reading import ConfigError, Keys, Layer, dotted, nested, read_file
from bhfl.files import user_option
from bhfl.settings import LARGEST_SEED
from bhfl.sweep.matrix import EACH, OPTION, Matrix, Option, Tune, leaves, reserved, undone

KEYS = ("name", "base", "seeds", "settings", "methods", "tune", "first", "report", "results")
_OF_METHODS = ("config", "seeds")
"""What a method is given besides options."""
Given = list[tuple[str, Any]]
"""The options that a matrix gives to any of its runs, and their values."""
_FILES = ("order", "published")
_REPORT = ("target", "window", "metric", "mode", "latex", *_FILES)
"""The arguments of a report that a matrix may give."""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def read_matrix(
    path: str | None, typed: Sequence[Option] = (), seeds: list[int] | None = None
) -> Matrix:
    """The matrix in the file at `path`.

    Args:
        path: The file; configurations are named relative to it.
        typed: Options of the command line.
        seeds: Seeds that replace those of the file.

    Raises:
        ConfigError: The file cannot be used; it lists every problem.
    """
    reader = _Reader(read_file(path, "the matrix"), seeds)
    matrix = reader.matrix(typed)
    if reader.problems:
        raise ConfigError(*reader.problems)
    return matrix


class _Reader:
    """Turns the values of a file into a `Matrix`, collecting problems."""

    def __init__(self, layer: Layer, seeds: list[int] | None) -> None:
        self.layer = layer
        self.typed_seeds = seeds
        self.problems: list[str] = []

    def matrix(self, typed: Sequence[Option]) -> Matrix:
        values: dict[str, Any] = self.layer.values
        # every part is read, however wrong the one before is: all problems are told at once
        self.known((), values, KEYS)
        name = values.get("name", Path(self.layer.file).stem)
        self.check_name(("name",), name)
        base = self.options(("base",), values.get("base", {}))
        settings = {"": list[Option]()}
        if "settings" in values:
            settings = self.options_of_each("settings", self.named("settings"))
        rows = self.named("methods")
        configs = {method: self.config(method, row) for method, row in rows.items()}
        methods = self.options_of_each("methods", rows)
        for both in settings.keys() & methods.keys():
            self.problem(("settings", both), "is the name of a method too")
        seeds = self.typed_seeds or self.seeds(("seeds",), values.get("seeds"))
        seeds_of = {}
        for method, row in rows.items():
            if isinstance(row, dict) and "seeds" in row:
                own = self.seeds(("methods", method, "seeds"), row["seeds"])
                seeds_of[method] = self.typed_seeds or own
        given: Given = []
        for option in chain(base, *settings.values(), *methods.values(), typed):
            given += leaves(option.key, option.value)
        return Matrix(
            name=name,
            base=base,
            seeds=seeds,
            settings=settings,
            methods=methods,
            configs=configs,
            tune=self.tune(values, list(settings), given) if "tune" in values else None,
            first=self.first(values.get("first", []), [*methods, *settings]),
            report=self.report(values.get("report", {})),
            typed=list(typed),
            seeds_of=seeds_of,
            results=self.results(values.get("results")),
        )

    # ---- parts -----------------------------------------------------------------------------------

    def config(self, method: str, row: Any) -> str:
        """The path of a method's configuration, named relative to the matrix or as one of ours."""
        keys = ("methods", method, "config")
        path = row.get("config") if isinstance(row, dict) else None
        if not isinstance(path, str):
            self.problem(keys, f"must be the method's configuration file, got {shown(path)}")
            return ""
        try:
            found = find_config(path, Path(self.layer.file).parent)
        except (ValueError, OSError) as error:
            self.problem(keys, str(error))
            return ""
        return str(found)

    def options_of_each(self, key: str, rows: dict[str, Any]) -> dict[str, list[Option]]:
        """The options of each setting or method, by its name."""
        return {name: self.options((key, name), row) for name, row in rows.items()}

    def options(self, keys: Keys, values: Any) -> list[Option]:
        """The options in a mapping."""
        if not isinstance(values, dict):
            self.problem(
                keys,
                f"must be a mapping of options such as trainer.max_rounds: 5, got {shown(values)}",
            )
            return []
        found: list[Option] = []
        for key, value in values.items():
            # the configuration file is not an option of a run: it is read by itself
            if key in _OF_METHODS and keys[0] == "methods":
                continue
            if not isinstance(key, str) or not OPTION.fullmatch(key):
                self.problem(
                    (*keys, key),
                    "is not an option; options are as on the command line: trainer.max_rounds",
                )
                continue
            for why in reserved(key, value):
                self.problem((*keys, key), why)
            for option in found:
                if leaf := undone(option, key, value):
                    self.problem((*keys, key), f"gives {leaf}, which {option.key} gives before it")
            found.append(Option(key, value, self.placed(keys, key, value)))
        return found

    def placed(self, keys: Keys, key: str, value: Any) -> Layer:
        """An option as a layer of a run's configuration, with its lines in the matrix."""
        # ("base", "a.b", "c") of the matrix is ("a", "b", "c") of the run
        own = tuple(key.removesuffix("+").split("."))
        length = len(keys) + 1
        lines = {
            own + inner[length:]: line
            for inner, line in self.layer.lines.items()
            if inner[:length] == (*keys, key)
        }
        lines[own[:1]] = lines[own]
        return Layer(nested(key, value), self.layer.file, lines, key)

    def seeds(self, keys: Keys, values: Any) -> list[int]:
        seeds = self.items(keys, values)
        for i, seed in enumerate(seeds):
            self.hold((*keys, f"[{i}]"), seed, count(0, LARGEST_SEED))
        return seeds

    def results(self, value: Any) -> Path | None:
        """The folder of kept results, relative to the current one."""
        if value is None:
            return None
        try:
            return user_option("results", value)
        except ValueError as error:
            self.problem(("results",), str(error).removeprefix("results "))
            return None

    def tune(self, matrix: dict[str, Any], settings: list[str], given: Given) -> Tune | None:
        keys = ("tune",)
        values = matrix["tune"]
        if not isinstance(values, dict):
            self.problem(keys, f"must be a mapping with key, values and seeds, got {shown(values)}")
            return None
        # Tune is made of what is right alone
        before = len(self.problems)
        self.known(keys, values, tuple(Tune.__dataclass_fields__))
        self.tuned_key((*keys, "key"), values.get("key"), given)
        for i, value in enumerate(self.items((*keys, "values"), values.get("values"))):
            # a folder of trials is called by the value
            word = isinstance(value, str) and _NAME.fullmatch(value)
            if not word and not isinstance(value, int | float):
                place = (*keys, "values", f"[{i}]")
                self.problem(place, f"must be a number or a word, got {shown(value)}")
        self.seeds((*keys, "seeds"), values.get("seeds"))
        if "margin" in values:
            self.hold((*keys, "margin"), values["margin"], positive)
        metric = values.get("metric", Tune.metric)
        if not isinstance(metric, str) or not metric.startswith("val/"):
            self.problem(
                (*keys, "metric"), f"must be of the validation split, val/..., got {shown(metric)}"
            )
        self.hold((*keys, "last"), values.get("last", 1), count(1))
        self.tuned_on((*keys, "setting"), values.get("setting", ""), settings)
        self.tuned_like((*keys, "like"), values.get("like", {}), matrix.get("methods"))
        options = self.options((*keys, "options"), values.get("options", {}))
        if any(values.get("key") == option.key for option in options):
            self.problem((*keys, "options"), f"must not give {values['key']}, which is tuned")
        return Tune(**{**values, "options": options}) if len(self.problems) == before else None

    def tuned_like(self, keys: Keys, like: Any, methods: Any) -> None:
        """Check which methods take the value of another one."""
        if not isinstance(like, dict):
            self.problem(
                keys,
                f"must be a mapping of methods to those whose value they take, got {shown(like)}",
            )
            return
        known = list(methods) if isinstance(methods, dict) else []
        for method, other in like.items():
            for name in (method, other):
                if name not in known:
                    self.problem(
                        (*keys, method),
                        f"must name methods, got {shown(name)}{suggestion(str(name), known)}",
                    )
            if other in like:
                self.problem(
                    (*keys, method), f"must be a method that is tuned itself, got {shown(other)}"
                )

    def tuned_key(self, keys: Keys, key: Any, given: Given) -> None:
        """Check the option that is tuned, which nothing else may give."""
        if not isinstance(key, str) or not OPTION.fullmatch(key):
            self.problem(keys, f"must be an option such as model.optimizer.lr, got {shown(key)}")
            return
        own, _ = next(leaves(key, None))
        if own in dict(given):
            self.problem(keys, f"must not be given elsewhere too, and {key} is")
        for name, value in given:
            # the tuned value comes last, and would turn on again what a method leaves out
            if value in (None, "null") and own.startswith(f"{name}."):
                self.problem(keys, f"must not be an option of {name}, which is null elsewhere")
                return

    def tuned_on(self, keys: Keys, setting: Any, settings: list[str]) -> None:
        """Check the setting that the option is tuned on; a matrix without settings has none."""
        if settings == [""]:
            if setting:
                self.problem(keys, f"needs settings, and there are none, got {shown(setting)}")
        elif setting not in (EACH, *settings):
            self.problem(
                keys,
                f"must be one of the settings or {EACH}, got {shown(setting)}"
                f"{suggestion(str(setting), [EACH, *settings])}",
            )

    def first(self, values: Any, names: list[str]) -> list[str]:
        if values == []:
            return []
        found = self.items(("first",), values)
        for i, name in enumerate(found):
            if name not in names:
                rule = f"must be a method or a setting, got {shown(name)}"
                self.problem(("first", f"[{i}]"), rule + suggestion(str(name), filter(None, names)))
        return found

    def report(self, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            self.problem(("report",), f"must be a mapping such as target: 0.9, got {shown(values)}")
            return {}
        self.known(("report",), values, _REPORT)
        target = values.get("target")
        window = values.get("window", 1)
        if target is not None and within("(0, 1)")(target):
            self.problem(
                ("report", "target"), f"must be an accuracy in (0, 1) or null, got {shown(target)}"
            )
        if self.hold(("report", "window"), window, count(1)) and window > 1 and target is None:
            self.problem(("report", "window"), f"needs a target, got {shown(window)} and none")
        metric = values.get("metric")
        if metric is not None and not (isinstance(metric, str) and "/" in metric):
            self.problem(
                ("report", "metric"), f"must be a tag such as val/loss, got {shown(metric)}"
            )
        self.hold(("report", "mode"), values.get("mode"), or_none(choice("max", "min")))
        latex = values.get("latex", False)
        if not isinstance(latex, bool):
            self.problem(("report", "latex"), f"must be true or false, got {shown(latex)}")
        files = {key: self.file(("report", key), values.get(key)) for key in _FILES}
        return {**dict.fromkeys(_REPORT), **values, "window": window, **files}

    def file(self, keys: Keys, path: Any) -> Path | None:
        """A CSV, which is named relative to the matrix as configurations are."""
        if path is None:
            return None
        found = Path(self.layer.file).parent / str(path)
        if not found.is_file():
            self.problem(keys, f"must be a CSV, and there is no {found}")
        return found

    # ---- rules -----------------------------------------------------------------------------------

    def problem(self, keys: Keys, text: str) -> None:
        self.problems.append(f"{self.layer.place(keys)}{dotted(keys)} {text}")

    def hold(self, keys: Keys, value: Any, check: Check) -> bool:
        """Whether a value is what `check` takes; what is wrong with it is a problem."""
        wrong = check(value)
        if wrong:
            self.problem(keys, wrong)
        return not wrong

    def known(self, keys: Keys, values: dict[Any, Any], known: Sequence[str]) -> None:
        for key in values:
            if key not in known:
                self.problem(
                    (*keys, key), f"is an unknown key of a matrix{suggestion(str(key), known)}"
                )

    def check_name(self, keys: Keys, name: Any) -> None:
        """Check a name, which is the name of a folder too."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.problem(keys, f"must be a name of letters, digits and . _ + -, got {shown(name)}")

    def named(self, key: str) -> dict[str, Any]:
        """The mapping at `key`, whose keys are names."""
        values = self.layer.values.get(key)
        if not isinstance(values, dict) or not values:
            self.problem(
                (key,),
                f"must be a mapping of one or more names to their options, got {shown(values)}",
            )
            return {}
        for name in values:
            self.check_name((key, name), name)
        return values

    def items(self, keys: Keys, values: Any) -> list[Any]:
        """The items of a list, of which there must be some and no two alike."""
        if not isinstance(values, list) or not values:
            self.problem(keys, f"must be a list of one or more items, got {shown(values)}")
            return []
        # 1 and "1" would be the same folder
        for i, value in enumerate(values):
            if any(value == other or str(value) == str(other) for other in values[:i]):
                place = (*keys, f"[{i}]")
                self.problem(place, f"must be given once, and {shown(value)} is there twice")
        return values
