"""Where two experiments differ."""

from collections.abc import Iterator
from typing import Any

NOT_SET = "not set"
SAID = ("title", "findings")
"""Keys of an experiment that say something of it and decide nothing of what runs."""


def differences(first: Any, second: Any) -> Iterator[tuple[str, str, str]]:
    """Every place where two TOML tables differ: its path, and what stands in each, in words."""
    for where, *values in changes(first, second):
        one, other = (value if value is NOT_SET else repr(value) for value in values)
        yield where, one, other


def changes(first: Any, second: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The same with the values themselves; ``NOT_SET`` where a table has none."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(k for k in second if k not in first)]:
            path = f"{where}.{key}" if where else key
            if key in first and key in second:
                yield from changes(first[key], second[key], path)
            else:
                yield path, first.get(key, NOT_SET), second.get(key, NOT_SET)
    elif first != second:
        yield where, first, second
