"""The guard of hooks, the methods that the engine calls: one that is misspelt would never be
called, in silence.

A hook is known by its name alone, so a class that overrides nothing because of a wrong letter is
the class that it derives from. What looks like a hook and is none is therefore refused when a class
is made, and so is a hook that cannot take what it is called with, or that gives a coroutine or a
generator whose body never runs.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, partialmethod
from typing import Any

from bhfl.checks import nearest

_NEAR = 0.84
"""Likeness of two names, from 0 to 1, above which one is taken for the other misspelt: aggregate
and aggregator.
"""


class HookError(TypeError, ValueError):
    """A class or object whose hooks cannot be used; as Python's own a TypeError, as all bad input a
    ValueError.
    """


@dataclass
class Guard:
    """What the hooks of a base class are, and the check of classes that derive from it.

    Args:
        base: The class whose public methods are hooks; those that our own classes add to it are
            hooks too.
        others: Bases of it that are not ours, whose public methods are hooks as well.
        by_name: Whether the arguments of a hook after the first are given by their names.
        near: Likeness above which a name is taken for that of a hook, misspelt.
        by_trainer: Attributes that the trainer sets on the object, over whatever a class says, and
            nobody would notice: no class may have them.
    """

    base: type
    others: Collection[type] = ()
    by_name: bool = False
    near: float = _NEAR
    by_trainer: Collection[str] = ()

    def check_class(self, cls: type) -> None:
        """Check all that `cls` and the classes between it and the base define, and what is mixed
        in.

        Raises:
            HookError: With every problem, one a line.
        """
        problems: list[str] = []
        for made in cls.__mro__:
            problems += self._problems(made)
        for name in self.by_trainer:
            if getattr(cls, name) is not None:
                problems.append(
                    f"{cls.__name__}.{name} is set by the trainer: give it trainer.{name}"
                )
        _refuse(problems)

    def check(self, thing: Any) -> None:
        """Check an object: its class, which may have been changed since it was made, and its own
        attributes.

        Raises:
            HookError: With every problem, one a line.
        """
        made = type(thing)
        if not issubclass(made, self.base):
            # a double answers to whatever it is called
            return
        self.check_class(made)
        known = self._known(made.__mro__)
        own = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
        problems = []
        for name, value in own.items():
            if name not in known:
                problems.append(self._unknown(made.__name__, name, own, known))
            elif inspect.isroutine(known[name]):
                where = f"{made.__name__}.{name}"
                problems.append(call_problem(where, value, known[name], self.by_name))
        _refuse(problems)

    def _problems(self, made: type) -> Iterator[str]:
        """Problems of what one class defines itself, or mixes in."""
        if made is self.base or not issubclass(made, self.base):
            return
        known = self._known(made.__mro__[1:])
        own = dict(vars(made))
        after_base = made.__mro__[made.__mro__.index(self.base) :]
        for mixin in made.__mro__:
            if issubclass(mixin, self.base) or mixin in self.base.__mro__:
                continue
            own = {**vars(mixin), **own}
            hidden = vars(mixin).keys() & known.keys() - vars(made).keys()
            for name in sorted(hidden) if mixin in after_base else ():
                yield (
                    f"{mixin.__name__}.{name} would never be called: in {made.__name__} it comes "
                    f"after {self.base.__name__}.{name}; name {mixin.__name__} first among the "
                    "bases"
                )
        for name, raw in own.items():
            if name in known:
                yield self._override_problem(made, name, raw, known[name])
            elif not name.startswith("_"):
                yield self._unknown(made.__name__, name, own, known)

    def _known(self, classes: Sequence[type]) -> dict[str, Any]:
        """The public attributes of the base and of our own `classes` that derive from it: hooks,
        and others.
        """
        known: dict[str, Any] = {}
        for cls in self.others:
            known |= {name: raw for name, raw in vars(cls).items() if inspect.isfunction(raw)}
        for cls in reversed(classes):
            # what a user's own class adds is no hook: the engine never calls it
            if issubclass(cls, self.base) and cls.__module__.partition(".")[0] == "bhfl":
                known |= vars(cls)
        return {name: raw for name, raw in known.items() if not name.startswith("_")}

    def _override_problem(self, made: type, name: str, raw: Any, known: Any) -> str:
        where = f"{made.__name__}.{name}"
        if not inspect.isroutine(known):
            wrong = inspect.isfunction(raw) and not isinstance(known, property | cached_property)
            return f"{where} must be a value such as {known!r}, got a method" if wrong else ""
        if inspect.isdatadescriptor(raw) or isinstance(raw, cached_property):
            return (
                f"{where} must be a method, because it is called as a hook, got a "
                f"{type(raw).__name__}"
            )
        if hasattr(raw, "__get__"):
            try:
                # any object does in place of an instance, because nothing is called
                raw = raw.__get__(made, made)
            # a descriptor may want an instance; it shows what it is when one asks it
            except Exception:
                return ""
        return call_problem(where, raw, known, self.by_name)

    def _unknown(
        self, owner: str, name: str, own: Mapping[str, Any], known: Mapping[str, Any]
    ) -> str:
        """The problem of a name that is no hook but looks like one; the hook itself beside it makes
        it a helper.
        """
        value = own[name]
        if isinstance(value, property | cached_property | type):
            return ""
        method = inspect.isroutine(value) or isinstance(value, _METHODS)
        hooks = [hook for hook, raw in known.items() if inspect.isroutine(raw)]
        near = _nearest(name, hooks if method else known.keys() - {*hooks}, self.near)
        if near in own or not (near or (method and name.startswith("on_"))):
            return ""
        told = f"did you mean {near}?" if near else f"hooks are {', '.join(hooks)}."
        return (
            f"{owner}.{name} is no hook of {self.base.__name__}, and nothing would call or read "
            f"it; {told} A helper of your own may be called _{name.strip('_')}"
        )


_METHODS = (partial, partialmethod, staticmethod, classmethod)
"""Kinds of things in a class, besides functions, that are meant to be called."""


def _refuse(problems: Iterable[str]) -> None:
    """HookError with all problems that are not empty, each once, one a line."""
    if told := [problem for problem in dict.fromkeys(problems) if problem]:
        raise HookError("\n".join(told))


def call_problem(where: str, hook: Any, known: Callable[..., Any], by_name: bool = False) -> str:
    """Why `hook` cannot be called as `known`, a method of its base class, is; empty if it can.

    Args:
        where: What it is called in messages.
        hook: What an object gives when asked for it.
        known: The method of the base class, whose arguments it is called with.
        by_name: Whether the arguments after the first are given by their names.
    """
    if not callable(hook):
        return f"{where} must be a method, because it is called as a hook, got {hook!r}"
    names = _arguments(known)
    given, named = (names[:1], names[1:]) if by_name else (names, [])
    function = getattr(hook, "__func__", hook) if inspect.ismethod(hook) else hook
    try:
        # who wraps it may give it more
        signature = inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):
        # functions written in C may tell nothing of their arguments
        return ""
    try:
        signature.bind(*["self"][: inspect.ismethod(hook)], *given, **dict.fromkeys(named))
    except TypeError as error:
        parameters = signature.parameters.values()
        has = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
        call = ", ".join([*given, *(f"{name}=..." for name in named)])
        return f"{where}({has}) cannot be called as a hook is, with ({call}): {error}"
    kind = ""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        kind = "an async one"
    elif inspect.isgeneratorfunction(function):
        returns = str(inspect.signature(known).return_annotation)
        # a hook that is to return an iterator may be a generator
        kind = "" if "Iter" in returns else "a generator"
    if not kind:
        return ""
    return f"{where} must be an ordinary function, got {kind}, whose body nobody would run"


def check_methods(thing: Any, protocol: type, what: str) -> None:
    """Check that an object of any class has the methods of `protocol`, and that they can be called
    as these.

    Args:
        thing: The object.
        protocol: A class that says which methods there must be, and with what arguments.
        what: The beginning of the message: what was wanted.

    Raises:
        HookError: With every problem, one a line.
    """
    problems = []
    owner = type(thing).__name__
    for name, known in vars(protocol).items():
        if name.startswith("_"):
            continue
        hook = getattr(thing, name, None)
        # not its own, but that of the protocol
        if hook is None or getattr(hook, "__func__", None) is known:
            near = _nearest(name, set(dir(thing)) - vars(protocol).keys(), _NEAR)
            meant = f", has {near}" if near else ""
            problems.append(f"{owner} lacks {name}({', '.join(_arguments(known))}){meant}")
        elif problem := call_problem(f"{owner}.{name}", hook, known):
            problems.append(problem)
    if problems:
        raise HookError("\n  ".join([f"{what}, got {owner}:", *problems]))


def _arguments(method: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a method cannot do without."""
    given = list(inspect.signature(getattr(method, "__func__", method)).parameters.values())
    own = given if isinstance(method, staticmethod) else given[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in own if one.default is one.empty and one.kind not in variable]


def _nearest(name: str, hooks: Collection[str], near: float) -> str:
    """The hook that `name` is in other letters, another order or with a slip; an empty string for a
    name of its own.

    >>> _nearest("client_gradients", {"client_gradients_"}, 0.84)
    'client_gradients_'
    >>> _nearest("client_loss_weight", {"client_loss"}, 0.84)
    ''
    """
    letters = name.replace("_", "").lower()
    for hook in sorted(hooks):
        of_hook = hook.replace("_", "")
        # the letters of a short name may make another word by chance
        if letters == of_hook or (len(letters) > 5 and sorted(letters) == sorted(of_hook)):
            return hook
    if not (close := nearest(name, hooks, cutoff=near)):
        return ""
    words = set(name.strip("_").lower().split("_"))
    meant = set(close[0].strip("_").split("_"))
    # a hook's name with a word more is the name of a helper of it
    return "" if meant < words else close[0]
