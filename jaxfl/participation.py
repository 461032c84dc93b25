"""Who takes part in a round."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxfl.component import Component, field


class Participation(Component):
    """Draws the cohort of a round. Abstract."""

    @property
    def separation(self) -> int:
        """After how many rounds a client is back at the earliest."""
        return 1

    def cohort(self, population: int) -> int:
        """The number of slots in a round's program."""
        raise NotImplementedError

    def expected(self, population: int) -> int:
        """The number of clients that a round has on average, rounded."""
        return self.cohort(population)

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        """The clients of round ``turn``: ids (``population`` in an empty slot), who is there."""
        raise NotImplementedError


class Full(Participation):
    """Every client, every round."""

    def cohort(self, population: int) -> int:
        return population

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        return jnp.arange(population, dtype=jnp.int32), None


class Uniform(Participation):
    """``max(floor(fraction * population), 1)`` clients uniformly without replacement."""

    fraction: float = field(above=0, at_most=1)

    def cohort(self, population: int) -> int:
        return max(int(self.fraction * population + 1e-9), 1)

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        drawn = jax.random.permutation(key, population)[: self.cohort(population)]
        return drawn.astype(jnp.int32), None


class Poisson(Participation):
    """Every client independently with probability ``rate``.

    The program has as many slots as are exceeded with probability at most ``overflow`` a round;
    clients beyond them, the last in a random order, are left out. A rule that cannot leave out
    empty slots is refused.
    """

    rate: float = field(above=0, at_most=1)
    overflow: float = field(default=1e-18, above=0, below=1)

    def cohort(self, population: int) -> int:
        from scipy.stats import binom

        counts = np.arange(1, population + 1)
        enough = binom.sf(counts, population, self.rate) <= self.overflow
        return int(counts[np.argmax(enough)])

    def expected(self, population: int) -> int:
        return max(round(self.rate * population), 1)

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        slots = self.cohort(population)
        draw_key, order_key = jax.random.split(key)
        drawn = jax.random.bernoulli(draw_key, self.rate, (population,))
        order = jax.random.permutation(order_key, population)
        place = jnp.nonzero(drawn[order], size=slots, fill_value=population)[0]
        ids = jnp.append(order, population)[place].astype(jnp.int32)
        return ids, ids < population


class Cyclic(Participation):
    """The clients in ``groups`` groups that take turns: a client is back after ``groups`` rounds.

    The groups are formed by client number, the last one smaller where they do not come out even;
    partitions are random, so numbers mean nothing. What correlated noise (DP-FTRL) asks for.
    """

    groups: int = field(at_least=1)

    @property
    def separation(self) -> int:
        return self.groups

    def cohort(self, population: int) -> int:
        size = -(-population // self.groups)
        if size * (self.groups - 1) >= population:
            raise ValueError(
                f"Cyclic: {population} clients do not fill groups = {self.groups} of {size}"
            )
        return size

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        size = self.cohort(population)
        ids = jnp.asarray(turn) % self.groups * size + jnp.arange(size, dtype=jnp.int32)
        ids = jnp.minimum(ids, population).astype(jnp.int32)
        return ids, ids < population if population % self.groups else None
