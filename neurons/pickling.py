"""Pickling of frozen dataclasses whose mappings are read-only views, which pickle refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def by_fields(self: Any) -> tuple[type, tuple[Any, ...]]:
    """`__reduce__` of such a class: its fields by value, so that copies and other processes make it anew and check it."""
    return type(self), tuple(_plain(getattr(self, one.name)) for one in fields(self))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
