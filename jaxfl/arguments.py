"""Arguments of functions, looked at before anything runs: whole numbers, shares, arrays, seeds."""

import reprlib
from typing import Any

import numpy as np

MOST_INTEGER = 2**31 - 1
MOST_SEED = 2**32 - 1


def integer(value: Any, name: str, least: int, most: int | None = None) -> int:
    """``value`` as a Python integer, if it is one from ``least`` to ``most`` (or 32 bits).

    Raises:
      ValueError: it is not; the text calls it ``name``.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        wanted = f"at least {least}" + ("" if most is None else f" and at most {most}")
        raise ValueError(f"{name} must be an integer, {wanted}; got {value!r}")
    if most is None and value > MOST_INTEGER:
        raise ValueError(f"{name} must be at most {MOST_INTEGER}; got {value!r}")
    return int(value)


def share(value: Any, name: str) -> float:
    """``value``, if it is a number from 0 to 1.

    Raises:
      ValueError: it is not; the text calls it ``name``.
    """
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not real or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}")
    return float(value)


def numbers(value: Any, name: str) -> np.ndarray:
    """``value`` as an array of doubles.

    Raises:
      ValueError: it has something else than numbers, or rows of different lengths.
    """
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be numbers, in rows of one length; got {reprlib.repr(value)}"
        ) from None


def truth(value: Any, name: str) -> bool:
    """``value``, if it is true or false.

    Raises:
      ValueError: it is not; the text calls it ``name``.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be true or false; got {value!r}")
    return bool(value)


def seed_of(value: Any, name: str = "seed") -> int:
    """``value`` as a seed: ``jax.random.key`` would give the seeds s and s + 2^32 one key."""
    return integer(value, name, 0, MOST_SEED)
