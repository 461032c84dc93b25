"""Models of other libraries, arrays by name, as rows of one matrix."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.types import Segments, laid_out

Arrays = Mapping[str, np.ndarray]
"""A model: its arrays by name. The order of the names is that of the first model seen."""
Shapes = Mapping[str, np.ndarray | jax.ShapeDtypeStruct]
"""The same, or without the numbers."""
ALIGNMENT = 64
"""Bytes at whose multiples a matrix must start for XLA's CPU to read it where it is."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each array of a model is in its vector; arrays of integers are in none.

    >>> from jaxfl.integrations.layout import Layout
    >>> Layout.of({"w": np.ones((2, 3), "f4"), "steps": np.array(7)}).dim
    6
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]
    floating: tuple[str, ...]
    """Names of what is aggregated as a vector, in its order."""

    @classmethod
    def of(cls, model: Shapes) -> "Layout":
        """The layout of a model.

        Raises:
          ValueError: there is nothing to aggregate, or an array holds no real numbers.
        """
        kinds = {name: np.dtype(array.dtype) for name, array in model.items()}
        bad = [name for name, kind in kinds.items() if kind.kind not in "biu" and not _floats(kind)]
        if bad:
            raise ValueError(
                f"a model's arrays must be real numbers; {bad[0]!r} is {kinds[bad[0]]}"
            )
        floating = tuple(name for name, kind in kinds.items() if _floats(kind))
        if not floating:
            raise ValueError(
                f"a model needs an array of floats to aggregate; got {len(kinds)} arrays, none is"
            )
        return cls({name: tuple(a.shape) for name, a in model.items()}, kinds, floating)

    @property
    def dim(self) -> int:
        """Numbers in a vector, d."""
        return sum(int(np.prod(self.shapes[name])) for name in self.floating)

    @property
    def segments(self) -> Segments:
        """Which array each run of the vector's numbers is; names do not tell the output layer."""
        return laid_out((name, self.shapes[name]) for name in self.floating)

    def check(self, model: Shapes, whose: str) -> None:
        """Refuses a model of other arrays; ``whose`` it is goes into the error."""
        for name, shape in self.shapes.items():
            if name not in model:
                raise ValueError(f"{whose}: the model lacks {name!r}")
            kind, found = self.dtypes[name], tuple(model[name].shape)
            given = np.dtype(model[name].dtype)
            if found != shape:
                raise ValueError(f"{whose}: {name!r} must have shape {shape}; got {found}")
            if _floats(given) != _floats(kind) or given.kind in "cOSUM":
                raise ValueError(f"{whose}: {name!r} must be {kind}; got {given}")
        unknown = model.keys() - self.shapes.keys()
        if unknown:
            raise ValueError(f"{whose}: the model that was sent has no {min(unknown)!r}")

    def check_sent(self, finite: np.ndarray, where: str, kind: Any) -> None:
        """Refuses a model sent whose vector is not finite everywhere; ``finite`` says where it is.

        ``where`` that was, and of which ``kind`` the vector's numbers are, go into the error.
        """
        if finite.all():
            return
        ends = np.cumsum([int(np.prod(self.shapes[name])) for name in self.floating])
        name = self.floating[int(np.searchsorted(ends, finite.argmin(), side="right"))]
        raise ValueError(f"{where}: {name!r} of the model sent is not finite as {kind}")

    def vector(self, model: Arrays, dtype: np.dtype) -> np.ndarray:
        """The floats of a model, ``[d]``; what does not fit the type is infinite."""
        with np.errstate(over="ignore"):
            return np.concatenate([np.asarray(model[n], dtype).reshape(-1) for n in self.floating])

    def subtract(self, before: np.ndarray, model: Arrays, out: np.ndarray) -> None:
        """``before - model`` into a row ``[d]``: what the model's client would send as update."""
        start = 0
        for name in self.floating:
            part = model[name].reshape(-1)
            end = start + part.size
            with np.errstate(all="ignore"):  # what a client sends is data
                np.subtract(before[start:end], part, out=out[start:end], casting="same_kind")
            start = end

    def model(self, vector: np.ndarray, others: Arrays) -> dict[str, np.ndarray]:
        """A model from its vector and its arrays that are not in it, each in its own type."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            if name not in self.floating:
                found[name] = others[name]
                continue
            end = start + int(np.prod(shape))
            with np.errstate(over="ignore"):  # looked at by ``alive``
                found[name] = vector[start:end].reshape(shape).astype(self.dtypes[name])
            start = end
        return found

    def alive(self, model: Arrays) -> bool:
        """Whether all floats of a model are finite, each in its own type."""
        return all(bool(np.isfinite(model[name]).all()) for name in self.floating)

    def medians(self, models: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Arrays of integers and truth values: at every place the lower median over the models."""
        found, middle = {}, (len(models) - 1) // 2
        for name in self.shapes.keys() - set(self.floating):
            stack = np.stack([np.asarray(model[name], self.dtypes[name]) for model in models])
            found[name] = np.asarray(np.partition(stack, middle, axis=0)[middle])
        return found


def check_answer(
    finite: Iterable[bool], *, moved: bool, alive: bool, where: str, what: str
) -> None:
    """Refuses what a rule made of a round that leaves no model to go on with.

    Args:
      finite: whether each client's update is, asked one by one and only where nothing ``moved``.
      moved: whether the aggregate is other than zero. Rules leave out NaN, and of NaN alone they
        would make the model that was sent.
      alive: whether the next model is finite.
      where: that was, for the error.
      what: made the next model, for the error.

    Raises:
      ValueError: no client's update is finite, or the next model is not.
    """
    if not moved and not any(finite):
        raise ValueError(f"{where}: no client's update is finite; there is nothing to aggregate")
    if not alive:
        raise ValueError(f"{where}: the next model would not be finite ({what})")


def aligned_zeros(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Zeros that XLA's CPU can read without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _floats(kind: np.dtype) -> bool:
    return bool(jnp.issubdtype(kind, jnp.floating))
