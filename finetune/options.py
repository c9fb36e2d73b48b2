"""Options of a method: their types, read from the dataclass that declares them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import TuneError

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


def made_options(kind: type[T], given: Mapping[str, Any], *, method: str) -> T:
    """The options of a method, whose names and types are those of the dataclass `kind`.

    Raises TuneError for a name that it lacks and for a value of another type; ranges are the dataclass's own to check.
    """
    known = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(kind)
    for name, value in given.items():
        if name not in known:
            raise TuneError(f"method {method!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
        if not _fits(value, hints[name]):
            raise TuneError(f"option {method}.{name} must be {_said(hints[name])}, got {value!r}")
    return kind(**given)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, inner[0]) for one in value)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    return not isinstance(hint, type) or isinstance(value, hint)


def _said(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_said(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list, such as [2, 3], each {_said(inner[0])}"
    return _NAMES.get(hint, str(hint))
