"""The GPU's kernel of order statistics against XLA's own program for the same numbers."""

import dataclasses
import functools

import jax

from benchmarks import timing
from benchmarks.catalogue import TOLERANCE, Numbers, WrongError, distance
from jaxfl.numerics import kernels, order


@dataclasses.dataclass(frozen=True)
class Statistic:
    """The median of so many rows, or the mean of so many values nearest it."""

    rows: int
    nearest: int | None = None

    def __str__(self) -> str:
        what = "median" if self.nearest is None else f"mean of the {self.nearest} nearest it"
        return f"{what}, {self.rows} rows"


STATISTICS = (Statistic(10), Statistic(50), Statistic(64), Statistic(50, nearest=40))
"""Those of which it is open whether XLA's program, one read too, is as fast; and MeaMed's."""


def against_xla(statistic: Statistic, columns: int, repeats: int) -> Numbers:
    """Milliseconds of either way, which must agree; off a GPU the kernel is interpreted.

    Raises:
      WrongError: they do not.
    """
    n = statistic.rows
    low, high = order.middle(n)
    asked = {"low": low, "high": high, "nearest": statistic.nearest}
    interpreted = jax.default_backend() == "cpu"
    ways = {
        "kernel": jax.jit(functools.partial(kernels.mean_of_ranks, **asked, interpret=interpreted)),
        "XLA": jax.jit(functools.partial(order.by_xla, **asked)),
    }
    values = jax.jit(lambda key: jax.random.normal(key, (n, columns)))(jax.random.key(0))
    kernel, xla = (jax.device_get(way(values)) for way in ways.values())
    apart = distance(kernel, xla)
    if apart > TOLERANCE:
        raise WrongError(f"{apart:.1e} from XLA's")
    runs = {name: functools.partial(way, values) for name, way in ways.items()}
    times = timing.interleaved(runs, repeats)
    return {f"{name} ms": 1e3 * seconds.best for name, seconds in times.items()}
