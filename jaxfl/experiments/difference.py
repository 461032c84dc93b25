"""Where two experiments differ."""

from collections.abc import Iterator
from typing import Any

NOT_SET = "not set"


def differences(first: Any, second: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Every place where two TOML tables differ: its path, and what stands in each, in words."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(k for k in second if k not in first)]:
            path = f"{where}.{key}" if where else key
            if key in first and key in second:
                yield from differences(first[key], second[key], path)
            else:
                one, other = (repr(t[key]) if key in t else NOT_SET for t in (first, second))
                yield path, one, other
    elif first != second:
        yield where, repr(first), repr(second)
