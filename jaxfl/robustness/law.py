"""What a law of honest sets is, and what is known of one: who is honest, drawn at random."""

import abc
import dataclasses
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key

from jaxfl.arguments import integer, numbers
from jaxfl.component import Component

Numbers = Array | np.ndarray
"""NumPy's on the host, JAX's in a program."""
MOST_ENUMERATED = 20
"""Clients up to which all sets are looked at."""
MOST_LISTED = 15
"""Clients up to which that takes no time."""
LEAST_LIKELY = 1e-6
"""A budget that holds with a smaller probability is refused: nothing would be left of the law."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """What rules and bounds take from a law of the honest set S, all in double precision.

    ``errors`` holds standard errors, in the same fields, where the numbers are estimates; None
    where they are exact.

    >>> jaxfl.robustness.UniformSets(n=4, byzantine=1).moments().weights.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    honesty: np.ndarray
    """``P(i in S)``, of shape [n]."""
    pairs: np.ndarray
    """``P(i, j in S)``, of shape [n, n]."""
    weights: np.ndarray
    """``E[1{i in S} / |S|]``, [n]: the weights of the expected objective; they sum to 1."""
    overlaps: np.ndarray
    """``E[1{i, j in S} / |S|^2]``, of shape [n, n]."""
    acceptance: float
    """The probability of what the law is conditioned on, at most ``budget`` Byzantine."""
    errors: "Moments | None" = None

    @property
    def corruption(self) -> np.ndarray:
        """``P(i, j not in S)``, of shape [n, n]."""
        return 1 - self.honesty[:, None] - self.honesty[None, :] + self.pairs


class Law(Component):
    """A distribution of the set of honest clients, conditioned on its budget. Abstract.

    At most ``budget`` clients are Byzantine, fewer than half, so that any two sets that can occur
    have a client in common: where two could be disjoint, no rule is robust.

    >>> jaxfl.robustness.UniformSets(n=5, byzantine=2).sample(jax.random.key(0), 3).sum(axis=1)
    Array([3, 3, 3], dtype=int32)
    """

    def __post_init__(self) -> None:
        for name in self._children:
            value = getattr(self, name)
            if (
                isinstance(value, list | tuple)
                or getattr(getattr(value, "dtype", None), "kind", "") == "b"
            ):
                object.__setattr__(self, name, numbers(value, f"{type(self).__name__}: {name}"))
        super().__post_init__()
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self)):
            self.check()

    @property
    @abc.abstractmethod
    def clients(self) -> int:
        """The number of clients, n."""

    @property
    @abc.abstractmethod
    def most_byzantine(self) -> int:
        """The largest number of Byzantine clients that can occur."""

    @property
    def listable(self) -> bool:
        """Whether its sets are few enough to go through all of them at every turn."""
        return self.clients <= MOST_LISTED

    @abc.abstractmethod
    def check(self) -> None:
        """Raises ValueError where the fields do not fit together."""

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        """Honest sets: pure and traceable."""

    @abc.abstractmethod
    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        """Marginals, pairs, weights and the acceptance probability.

        Args:
          samples: how many sets are drawn where there is no exact way.
          seed: of those.
        """

    @abc.abstractmethod
    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        """Logarithms of the probabilities of sets [k, n], before conditioning, up to a constant.

        Raises:
          ValueError: the law has no formula for them.
        """

    def sample(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        """``count`` honest sets as masks, True where a client is honest.

        Raises:
          ValueError: the count is no positive integer.
        """
        return _sample(self, key, integer(count, f"{type(self).__name__}: count", 1))

    def drawn(self, samples: int, seed: int) -> Bool[np.ndarray, "samples n"]:
        """``samples`` honest sets on the host. Raises as ``sample``."""
        samples = integer(samples, f"{type(self).__name__}: samples", 1)
        return np.asarray(_sample(self, jax.random.key(seed), samples))

    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """All sets that can occur, as masks [k, n], and their probabilities [k].

        Raises:
          ValueError: more than 20 clients, or a law without a formula.
        """
        sets = all_sets(type(self).__name__, self.clients, self.most_byzantine)
        masses = self.log_masses(sets)
        masses = np.exp(masses - masses.max())
        return sets[masses > 0], masses[masses > 0] / masses.sum()

    def entropy(self) -> float:
        """``-sum_S mu(S) log mu(S)`` in nats, over all sets. Raises as ``support``."""
        masses = self.support()[1]
        return float(-np.sum(masses * np.log(masses)))

    def orbits(self) -> np.ndarray:
        """A label for each client: those of equal labels can be exchanged without changing the law.

        Only symmetries that are known; what is estimated of the law may be averaged over them.
        """
        return np.arange(self.clients)


@jax.jit(static_argnames="count")
def _sample(law: Law, key: Array, count: int) -> Array:
    return law.draw(key, count)


def all_sets(name: str, n: int, most_byzantine: int) -> np.ndarray:
    """Masks [k, n] of all sets that leave out at most so many of n clients.

    Raises:
      ValueError: more than 20 clients.
    """
    if n > MOST_ENUMERATED:
        raise ValueError(
            f"{name}: sets are enumerated for n <= {MOST_ENUMERATED} clients; got n = {n}"
        )
    sets = (np.arange(2**n)[:, None] >> np.arange(n)[None, :]) & 1 == 1
    return sets[n - sets.sum(axis=1) <= most_byzantine]


def moments_of(sets: np.ndarray, masses: np.ndarray, acceptance: float) -> Moments:
    """Exact moments of sets [k, n] that have these probabilities."""
    rows = sets.astype(np.float64)
    shares = rows / rows.sum(axis=1, keepdims=True)
    return Moments(
        honesty=np.matmul(masses, rows),
        pairs=np.matmul(rows.T, masses[:, None] * rows),
        weights=np.matmul(masses, shares),
        overlaps=np.matmul(shares.T, masses[:, None] * shares),
        acceptance=acceptance,
    )


def estimated_moments(sets: np.ndarray, acceptance: float, acceptance_error: float) -> Moments:
    """Moments of the law that independent sets [k, n] were drawn from, with standard errors."""
    count = len(sets)
    means = moments_of(sets, np.full(count, 1 / count), acceptance)
    rows = sets.astype(np.float64)
    shares = rows / rows.sum(axis=1, keepdims=True)
    squares = {
        "honesty": means.honesty,
        "pairs": means.pairs,
        "weights": np.mean(shares**2, axis=0),
        "overlaps": np.matmul((shares**2).T, shares**2) / count,
    }
    spread = {
        name: np.sqrt(np.maximum(square - getattr(means, name) ** 2, 0) / count)
        for name, square in squares.items()
    }
    return dataclasses.replace(means, errors=Moments(**spread, acceptance=acceptance_error))


def budget_of(law: Any, n: int) -> int:
    """The budget of a law of n clients: the largest minority where None is given."""
    return (n - 1) // 2 if law.budget is None else law.budget


def check_budget(law: Any, n: int) -> None:
    """Raises the one error for a budget that lets honest sets be disjoint."""
    if n < 1:
        raise ValueError(f"{type(law).__name__} needs at least one client; got n = {n}")
    check_minority(type(law).__name__, "budget", budget_of(law, n), n)


def check_minority(name: str, field: str, byzantine: int, n: int) -> None:
    """Raises the one error, with two disjoint sets that the number allows, if it is no minority."""
    if 2 * byzantine >= n:
        h = max(n - byzantine, 0)
        one, other = (
            np.array2string(part, threshold=10, edgeitems=2, separator=", ", formatter={"int": str})
            for part in (np.arange(h), np.arange(n - h, n))
        )
        raise ValueError(
            f"{name}: {field} must be below n / 2, or no rule is robust: with {field} = "
            f"{byzantine} and n = {n}, S = {one} and S' = {other} are honest sets and disjoint"
        )


def check_acceptance(law: Law, probability: float) -> None:
    """Raises the one error for a budget that practically never holds."""
    if probability < LEAST_LIKELY:
        raise ValueError(
            f"{type(law).__name__}: at most {law.most_byzantine} Byzantine clients must have a "
            f"probability of {LEAST_LIKELY:g} or more; got {probability:.3g}"
        )


def vector(law: Component, name: str, n: int) -> Float[np.ndarray, " n"]:
    """A field with one number, or one for each of n, as a vector.

    Raises:
      ValueError: it has another shape.
    """
    value = np.asarray(getattr(law, name))
    if value.shape not in ((), (n,)):
        raise ValueError(
            f"{type(law).__name__}: {name} must be one number or {n} of them; got shape "
            f"{value.shape}"
        )
    return np.broadcast_to(value, (n,))
