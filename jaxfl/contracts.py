"""What a user's own parts must answer: looked at as they are traced, so it costs a run nothing."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.component import Component


class OwnCodeError(ValueError):
    """A ValueError that a user's own part raised: its traceback is of use."""


@contextlib.contextmanager
def own_code(part: Any, method: str = "") -> Iterator[None]:
    """Names the user's part whose code raises; the traceback of that code stands above.

    A ValueError stays one, since it may be the part's own check of what it was given. Errors of
    jaxfl's own parts go through as they are.
    """
    try:
        yield
    except Exception as error:
        if _is_ours(part) or isinstance(error, OwnCodeError):
            raise
        name = name_of(part) + method
        kind = OwnCodeError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{name} raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def while_running(what: str, *parts: Component) -> Iterator[None]:
    """Names what was running where an error may be one of a user's own part among these."""
    try:
        yield
    except Exception as error:
        if any(map(has_own_code, parts)):
            if isinstance(error, ValueError) and error.args:
                error.args = (f"{what}: {error.args[0]}", *error.args[1:])
            else:
                error.add_note(f"while running {what}")
        raise


def name_of(part: Any) -> str:
    """What a user calls a part: its class's name, or a function's own."""
    return getattr(part, "__name__", type(part).__name__)


def has_own_code(part: Component) -> bool:
    """Whether the class of the part, or of a part in it, is not jaxfl's."""
    inner = [getattr(part, f.name) for f in dataclasses.fields(part)]  # pyright: ignore
    listed = [p for value in inner for p in (value if isinstance(value, tuple) else (value,))]
    return not _is_ours(part) or any(has_own_code(p) for p in listed if isinstance(p, Component))


def _is_ours(part: Any) -> bool:
    return f"{getattr(part, '__module__', '')}.".startswith("jaxfl.")


def asked(part: Any, method: str, *given: Any) -> Any:
    """What a method of a part answers, or the value of a property."""
    with own_code(part, f".{method}"):
        found = getattr(part, method)
        return found(*given) if callable(found) else found


def started(part: Any, method: str, size: Any) -> Any:
    """A part's memory at the start of a run: what the method makes of a size, as arrays."""
    with own_code(part, f".{method}"):
        return jax.tree.map(jnp.asarray, getattr(part, method)(size))


def expect(what: str, got: Any, shape: tuple[int, ...], why: str) -> None:
    """Raises ValueError unless ``got`` is such an array of floats, or a number where it is ().

    >>> expect("Half.aggregate returned", jnp.zeros((3, 2)), (2,), "one number per parameter")
    Traceback (most recent call last):
    ValueError: Half.aggregate returned (3, 2); needs (2,), one number per parameter
    """
    if shape == () and isinstance(got, int | float):
        return
    found = getattr(got, "shape", type(got).__name__)
    if found == shape and not jnp.issubdtype(got.dtype, jnp.floating):
        found = str(got.dtype)
    if found != shape:
        raise ValueError(f"{what} {found}; needs {shape}, {why}")


def expect_like(what: str, got: Any, like: Any) -> None:
    """Raises ValueError where a pytree is not of the structure, shapes and types of another."""
    if sketch(got) != sketch(like):
        raise ValueError(f"{what} {sketch(got)}; needs, as before, {sketch(like)}")


def sketch(tree: Any) -> str:
    """A pytree with ``float32[3]`` for an array; what is no array by its type's name."""

    def one(leaf: Any) -> Any:
        # Keys and placeholders for them have no other type than their own.
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        return f"{dtype}{list(jnp.shape(leaf))}"

    return str(jax.tree.map(one, tree)).replace("'", "")
