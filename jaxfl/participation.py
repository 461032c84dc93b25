"""Who takes part in a round."""

import abc
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxfl.arguments import integer
from jaxfl.component import Component, capability, changed_since, field
from jaxfl.contracts import asked, has_own_code, name_of, own_code, sketch
from jaxfl.numerics.permutation import permute

SORTED = 10_000
"""Up to so many clients are put in random order by sorting; more cost the cohort only."""
LOOKED_AT = 8
"""Rounds whose cohort is drawn beforehand where the class that draws it is not jaxfl's, at least;
at most its square."""


class Participation(Component):
    """Draws the cohort of a round. Abstract: override ``cohort`` and ``sample``.

    >>> class Leaders(jaxfl.Participation):
    ...     def cohort(self, population):
    ...         return min(population, 2)
    ...
    ...     def sample(self, population, key, turn=0):
    ...         return jnp.arange(self.cohort(population), dtype=jnp.int32), None
    >>> Leaders().expected(10), Leaders().leaves_slots(10)
    (2, False)
    """

    separation = capability(1)
    """The least number of rounds from one participation of a client to its next."""

    @abc.abstractmethod
    def cohort(self, population: int) -> int:
        """The number of slots in a round: the most clients that can take part."""

    def expected(self, population: int) -> int:
        """The mean number of clients in a round, rounded."""
        return self.cohort(population)

    def check(self, population: int) -> None:
        """Raises ValueError where a class of one's own counts in other than whole numbers."""
        for method in ("cohort", "expected"):
            counted = asked(self, method, population)
            integer(counted, f"what {name_of(self)}.{method} returns", 1)
        integer(asked(self, "separation"), f"{name_of(self)}.separation", 1)
        changed = changed_since(type(self), "separation")
        if self.separation > 1 and changed:
            raise ValueError(
                f"{name_of(self)} changes {' and '.join(changed)} and does not declare its "
                "separation: define separation in the same class"
            )

    def leaves_slots(self, population: int) -> bool:
        """Whether slots of a round can be empty.

        Raises:
          ValueError: a class of one's own answers something else than it should, as clients
            that are not there, or one twice (looked at in some rounds only).
        """
        self.check(population)
        name, slots = name_of(self), self.cohort(population)
        with own_code(self, ".sample"):
            sample = functools.partial(self.sample, population)
            got = sketch(jax.eval_shape(sample, jax.random.key(0), jnp.int32(0)))
        wanted = [f"(int32[{slots}], {present})" for present in ("None", f"bool[{slots}]")]
        if got not in wanted:
            raise ValueError(f"{name}.sample returned {got}; needs {' or '.join(wanted)}")
        if has_own_code(self):
            self._check_drawn(population)
        return got == wanted[1]

    def _check_drawn(self, population: int) -> None:
        """Raises ValueError where the first rounds show that clients are drawn wrongly."""
        name, last = f"{name_of(self)}.sample", np.full(population, -self.separation)
        for turn in range(max(LOOKED_AT, min(self.separation + 1, LOOKED_AT**2))):
            with own_code(self, ".sample"):
                ids, present = self.sample(population, jax.random.key(turn), jnp.int32(turn))
            ids = np.asarray(ids)
            there = np.ones(ids.shape, bool) if present is None else np.asarray(present)
            drawn, empty = ids[there], ids[~there]
            right = (drawn >= 0) & (drawn < population)
            if not right.all() or len(np.unique(drawn)) < len(drawn) or (empty != population).any():
                raise ValueError(
                    f"{name} drew {ids.tolist()} in round {turn}; needs different clients from 0 "
                    f"to {population - 1}, and {population} in empty slots"
                )
            early = drawn[turn - last[drawn] < self.separation]
            if early.size:
                raise ValueError(
                    f"{name} drew client {early[0]} in rounds {last[early[0]]} and {turn}; its "
                    f"separation says {self.separation} rounds at least"
                )
            last[drawn] = turn

    @abc.abstractmethod
    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        """The clients of round ``turn``.

        Returns:
          The clients' numbers, each once (``population`` in an empty slot), and which slots hold a
          client; None in place of the latter where all do in every round.
        """


class Full(Participation):
    """Every client, every round.

    >>> jaxfl.Full().cohort(50)
    50
    """

    def cohort(self, population: int) -> int:
        return population

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        return jnp.arange(population, dtype=jnp.int32), None


class Uniform(Participation):
    """``max(floor(fraction * population), 1)`` clients, drawn uniformly without replacement.

    >>> jaxfl.Uniform(fraction=0.2).cohort(50)
    10
    """

    fraction: float = field(above=0, at_most=1)
    """Share of the population in a round."""

    def cohort(self, population: int) -> int:
        return max(int(self.fraction * population + 1e-9), 1)

    def sample(
        self, population: int, key: Key[Array, ""], turn: Int[Array, ""] | int = 0
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"] | None]:
        return _some(self.cohort(population), population, key), None


class Poisson(Participation):
    """Every client independently with probability ``rate``.

    A round has a fixed number of slots, the fewest that are exceeded with a probability of at most
    ``overflow``. If more clients are drawn, a random choice of them is left out. Slots without a
    client are empty, so a rule that cannot leave out rows is refused.

    >>> jaxfl.Poisson(rate=0.1).expected(100)
    10
    """

    rate: float = field(above=0, at_most=1)
    """Probability that a client takes part."""
    overflow: float = field(default=1e-18, above=0, below=1)
    """Probability at most that a round has too few slots."""

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
        if population > SORTED:
            # A binomial number of them: up to rounding the same law, at the cost of the cohort.
            count = jax.random.binomial(draw_key, float(population), self.rate)
            place = jnp.arange(slots, dtype=jnp.int32)
            ids = jnp.where(place < count, _some(slots, population, order_key), population)
            return ids, ids < population
        drawn = jax.random.bernoulli(draw_key, self.rate, (population,))
        order = jax.random.permutation(order_key, population)
        place = jnp.nonzero(drawn[order], size=slots, fill_value=population)[0]
        ids = jnp.append(order, population)[place].astype(jnp.int32)
        return ids, ids < population


def _some(count: int, population: int, key: Key[Array, ""]) -> Int[Array, " n"]:
    """So many different clients, drawn uniformly, in random order."""
    if population > SORTED:
        return permute(jnp.arange(count, dtype=jnp.int32), population, key)
    return jax.random.permutation(key, population)[:count].astype(jnp.int32)


class Cyclic(Participation):
    """The clients form ``groups`` groups that take turns: each takes part every ``groups`` rounds.

    Groups are formed by client number, which means nothing since partitions are random; the last
    group may be smaller. Correlated noise (DP-FTRL) needs such a fixed order.

    >>> clients, present = jaxfl.Cyclic(groups=5).sample(10, jax.random.key(0), turn=1)
    >>> clients.tolist()
    [2, 3]
    """

    groups: int = field(at_least=1)
    """How many groups take turns."""

    @capability
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
