"""Checks of a user's own part against its axis: the signatures of its hooks, and the types they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from functools import cached_property, wraps
from types import FunctionType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fibec_ray.errors import ConfigError
from fibec_ray.interrupts import signal_of

NEAR = 0.85
"""Similarity (difflib, 0 to 1) from which an unknown method counts as a misspelt hook."""


RENAMED = {"num_classes": "answers.num_scores"}
"""Parameters that hooks had in earlier versions, and what replaces them."""


def check_hooks(cls: type[Any], root: type[Any], file: str) -> None:
    """Check the hooks of a new part class, and wrap them so that their return types are checked on each call.

    cls: the new class. root: the base class of all parts. file: the name of the class's file, for messages.
    Raises TypeError for a hook that the simulator cannot call.
    """
    contract = next((base for base in cls.__mro__ if root in base.__bases__), root)
    known = {name: value for base in (root, contract) for name, value in vars(base).items() if name[0] != "_"}
    if "__init__" in vars(cls):
        raise TypeError(f"{cls.__name__}: remove __init__; write hyper-parameters as fields, such as rate: float = 1.0")
    if wrong := [name for name in cls.__annotations__ if isinstance(known.get(name), FunctionType)]:
        raise TypeError(f"{cls.__name__}: {wrong[0]} is the name of a hook; give the field another name")
    for name, found in list(vars(cls).items()):
        hook = known.get(name)
        if isinstance(hook, FunctionType) and isinstance(found, FunctionType):
            _check_signature(cls, hook, found)
            setattr(cls, name, _checked(hook, found, file))
        elif isinstance(found, FunctionType) and isinstance(hook, property | cached_property):
            raise TypeError(f"{cls.__name__}: {name} is a property; write @property above it")
        elif isinstance(hook, FunctionType):
            raise TypeError(f"{cls.__name__}: {name} is a method; write it as def {name}{inspect.signature(hook)}")
        elif not isinstance(found, FunctionType) or name[0] == "_" or any(hasattr(one, name) for one in cls.__bases__):
            continue
        elif near := get_close_matches(name, known, 1, NEAR):  # the simulator would never call it
            raise TypeError(
                f"{cls.__name__}: no hook is called {name}; did you mean '{near[0]}'? If not, rename it to _{name}"
            )


def _check_signature(cls: type[Any], hook: FunctionType, found: FunctionType) -> None:
    """Raise TypeError unless `found` takes the hook's parameters in their order, and none of an earlier version."""
    expected, written = list(inspect.signature(hook).parameters), list(inspect.signature(found).parameters)
    try:
        inspect.signature(found).bind(*expected)
        swapped = set(written) == set(expected) and written != expected
    except TypeError:
        swapped = True
    earlier = [name for name in written if name in RENAMED and name not in expected]
    if swapped or earlier:
        replaced = "".join(f"; {name} is now {RENAMED[name]}" for name in earlier)
        raise TypeError(
            f"{cls.__name__}: {hook.__name__} takes ({', '.join(written)}); write def {hook.__name__}"
            f"({', '.join(expected)}){replaced}"
        )


def _checked(hook: FunctionType, found: FunctionType, file: str) -> Callable[..., Any]:
    """Wrap a hook so that it raises ConfigError if it returns another type than its axis declares."""
    expected = get_type_hints(hook).get("return", Any)
    words = str(hook.__annotations__.get("return")).replace("Tensors", "dict[str, Tensor]")

    @wraps(found)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        try:
            value = found(self, *args, **named)
        except SystemExit as stop:
            if signal_of(stop) is not None:
                raise
            error = RuntimeError(f"exit({stop.code}) in a hook; raise an error instead")
            raise error.with_traceback(stop.__traceback__) from None
        if (misfit := _misfit(value, expected)) is not None:
            place = f"{file}, line {found.__code__.co_firstlineno}"
            raise ConfigError(f"{place}: {found.__qualname__} returned {misfit}; return {words}")
        return value

    return call


def _misfit(value: Any, expected: Any) -> str | None:
    """Describe the first value whose type does not match `expected`; None if all match or the type cannot be
    checked.
    """
    kind: Any = get_origin(expected) or expected
    inner = get_args(expected)
    if kind in (Union, UnionType):
        return None if any(_misfit(value, one) is None for one in inner) else _named(value)
    if kind is None or kind is NoneType:
        return None if value is None else _named(value)
    if kind is bool or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None  # a truth value may also be a tensor
    fits: bool = isinstance(value, AbstractSet if kind is frozenset else kind)
    if not fits:
        return _named(value)
    if kind is tuple and inner[-1:] != (...,):
        if len(value) != len(inner):
            return f"{len(value)} values"
        found = [_misfit(one, of) for one, of in zip(value, inner, strict=True)]
    elif isinstance(value, Mapping) and inner:
        bad = [(key, _misfit(one, inner[1])) for key, one in value.items()]
        found = [f"{of} for {key!r}" for key, of in bad if of is not None]
    elif isinstance(value, Sequence) and inner:
        found = [_misfit(one, inner[0]) for one in value]
    else:
        found = []
    return next((one for one in found if one is not None), None)


def _named(value: Any) -> str:
    """The type of a value, for messages."""
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
