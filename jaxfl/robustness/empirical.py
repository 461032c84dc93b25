"""A list of sets with their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxfl.component import Scalar, field
from jaxfl.robustness.law import Law, Moments, Numbers, check_acceptance, moments_of


class Empirical(Law):
    """Each of the ``sets`` [k, n], masks of honest clients, with its share of ``probabilities``.

    Probabilities [k] are scaled to sum to 1; without them the sets are equally likely. With a
    ``budget`` the law is conditioned on at most so many Byzantine clients. Without one, more than
    half may be: what matters is that any two sets have a client in common.

    Raises:
      ValueError: two sets that can occur are disjoint; both are named. No rule can be robust then:
        where each says something else, nobody can tell which of them is honest.

    >>> law = Empirical(sets=[[1, 1, 0], [1, 1, 1]], probabilities=[0.25, 0.75])
    >>> law.moments().honesty.tolist()
    [1.0, 1.0, 0.75]
    """

    sets: Scalar = field(at_least=0, at_most=1)
    """Masks of honest clients, one a row."""
    probabilities: Scalar | None = field(default=None, at_least=0)
    """Of the sets; none: all as likely."""
    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients; none: as many as the sets leave out."""

    @property
    def clients(self) -> int:
        return int(np.shape(self.sets)[1])

    @property
    def most_byzantine(self) -> int:
        return int((~self.support()[0]).sum(axis=1).max(initial=0))

    @property
    def listable(self) -> bool:
        return True

    def check(self) -> None:
        sets = np.asarray(self.sets)
        if sets.ndim != 2 or not np.isin(sets, (0, 1)).all() or not sets.any(axis=1).all():
            raise ValueError(
                "Empirical: sets must be a matrix [k, n] of masks, each with an honest client; "
                f"got shape {sets.shape}"
            )
        if self.probabilities is not None:
            given = np.asarray(self.probabilities)
            if given.shape != sets.shape[:1] or not given.sum() > 0:
                raise ValueError(
                    f"Empirical: probabilities must be {len(sets)} numbers, one per set, that are "
                    f"not all 0; got {given.tolist()}"
                )
        check_acceptance(self, self._accepted())
        check_intersecting("Empirical", self.support()[0])

    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        shares = jnp.where(self._within(), jnp.asarray(self._given(), float), 0)
        chosen = jax.random.categorical(key, jnp.log(shares), shape=(count,))
        return (jnp.asarray(self.sets) > 0)[chosen]

    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        return moments_of(*self.support(), self._accepted())

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        own, masses = self.support()
        known = {row.tobytes(): mass for row, mass in zip(own, masses, strict=True)}
        found = np.array([known.get(row.tobytes(), 0.0) for row in np.asarray(sets, bool)])
        return np.where(found > 0, np.log(np.where(found > 0, found, 1)), -np.inf)

    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct sets of positive probability, and their probabilities."""
        shares = np.asarray(self._given(), np.float64) * np.asarray(self._within())
        sets, place = np.unique(np.asarray(self.sets) > 0, axis=0, return_inverse=True)
        masses = np.bincount(place.reshape(-1), weights=shares, minlength=len(sets))
        return sets[masses > 0], masses[masses > 0] / masses.sum()

    def _given(self) -> Float[Numbers, " k"]:
        """Probabilities of the rows of ``sets``, whatever the budget, not scaled; traceable."""
        given = self.probabilities
        return jnp.ones(np.shape(self.sets)[0]) if given is None else given  # pyright: ignore

    def _within(self) -> Bool[Numbers, " k"]:
        """Rows that keep the budget."""
        most = self.clients if self.budget is None else self.budget
        return (1 - self.sets).sum(axis=1) <= most  # pyright: ignore

    def _accepted(self) -> float:
        given = np.asarray(self._given(), np.float64)
        return float(given[np.asarray(self._within())].sum() / given.sum())


def check_intersecting(name: str, sets: np.ndarray) -> None:
    """Raises the one error, with both sets named, where two of the sets [k, n] are disjoint."""
    rows = np.unique(sets, axis=0).astype(np.float32)
    for row in rows:
        apart = np.matmul(rows, row) == 0
        if apart.any():
            one, other = (np.flatnonzero(r).tolist() for r in (row, rows[np.argmax(apart)]))
            raise ValueError(
                f"{name}: no rule can be robust where two honest sets are disjoint; got S = {one} "
                f"and S' = {other}"
            )
