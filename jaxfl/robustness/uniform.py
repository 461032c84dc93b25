"""Every set of one size is as likely."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from jaxfl.aggregators.subsets import MOST_SUBSETS, count_sets, left_out
from jaxfl.component import field
from jaxfl.robustness.law import Law, Moments, check_minority

MOST_SETS = 2**15
"""Sets up to which all are gone through."""


class UniformSets(Law):
    """``byzantine`` of ``n`` clients, each choice of them as likely: nothing is known of anybody.

    All moments are exact, by formula.

    >>> UniformSets(n=4, byzantine=1).moments().pairs[0].round(2).tolist()
    [0.75, 0.5, 0.5, 0.5]
    """

    n: int = field(at_least=1)
    """The number of clients; in a file `data.clients`."""
    byzantine: int = field(at_least=0)
    """How many of them are Byzantine."""

    @property
    def clients(self) -> int:
        return self.n

    @property
    def most_byzantine(self) -> int:
        return self.byzantine

    @property
    def listable(self) -> bool:
        return count_sets(self.n, self.byzantine) <= MOST_SETS

    def check(self) -> None:
        check_minority("UniformSets", "byzantine", self.byzantine, self.n)

    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        order = jnp.argsort(jax.random.uniform(key, (count, self.n)), axis=1)
        return jnp.argsort(order, axis=1) >= self.byzantine

    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        n, h = self.n, self.n - self.byzantine
        pairs = np.full((n, n), h * (h - 1) / max(n * (n - 1), 1))
        np.fill_diagonal(pairs, h / n)
        return Moments(np.full(n, h / n), pairs, np.full(n, 1 / n), pairs / h**2, 1.0)

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        return np.where(sets.sum(axis=1) == self.n - self.byzantine, 0.0, -np.inf)

    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """All sets, and their equal probabilities. Raises ValueError if they are too many."""
        count = count_sets(self.n, self.byzantine)
        if count > MOST_SUBSETS:
            raise ValueError(
                f"UniformSets: up to {MOST_SUBSETS} sets are enumerated; n = {self.n} and "
                f"byzantine = {self.byzantine} have {count}"
            )
        out = left_out(self.n, self.byzantine)
        sets = ~(out[:, :, None] == np.arange(self.n)).any(axis=1)
        return sets, np.full(count, 1 / count)

    def orbits(self) -> np.ndarray:
        return np.zeros(self.n, int)
