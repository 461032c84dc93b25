"""Laws under which clients are independent, perhaps given the state of something else."""

import abc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxfl.component import Scalar, field
from jaxfl.numerics.rows import safe_ratio
from jaxfl.robustness.law import (
    Law,
    Moments,
    Numbers,
    budget_of,
    check_acceptance,
    check_budget,
    vector,
)

MOST_GROUPS = 12
"""All states of so many groups are gone through."""


def tails(p: Float[Array, " n"], most: int) -> Float[Array, "n+1 c"]:
    """``R[i, c] = P(at most c of the clients i, ..., n - 1 are Byzantine)``, c = 0, ..., most."""

    def before(after: Array, honest: Array) -> tuple[Array, Array]:
        one_less = jnp.concatenate([jnp.zeros((1,), after.dtype), after[:-1]])
        row = honest * after + (1 - honest) * one_less
        return row, row

    last = jnp.ones((most + 1,), p.dtype)
    _, table = jax.lax.scan(before, last, p, reverse=True)
    return jnp.concatenate([table, last[None]])


def joint_counts(p: np.ndarray, most: int) -> np.ndarray:
    """``P(i and j honest, exactly c Byzantine)``, [n, n, most + 1], by dynamic programming.

    Clients are taken in one after the other; i and j may only be honest.
    """
    n = len(p)
    counts = np.zeros((n, n, most + 1))
    counts[:, :, 0] = 1
    for k in range(n):
        own = np.arange(n) == k
        corrupted = np.where(own[:, None] | own[None, :], 0, 1 - p[k])[:, :, None]
        one_more = np.pad(counts[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
        counts = p[k] * counts + corrupted * one_more
    return counts


class MixtureLaw(Law):
    """Given a state drawn first, clients are honest independently of each other. Abstract."""

    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients; none: the largest minority."""

    @abc.abstractmethod
    def states(self) -> tuple[Float[Numbers, " s"], Float[Numbers, "s n"]]:
        """Probabilities of the states, and of each client being honest in each; traceable."""

    @property
    def most_byzantine(self) -> int:
        return budget_of(self, self.clients)

    def check(self) -> None:
        check_budget(self, self.clients)
        check_acceptance(self, self._accepted()[0].sum())

    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        """Exact and without rejection: the state given the budget, then client after client.

        With c more allowed to be Byzantine, client i is honest with probability
        ``p_i R[i + 1, c] / R[i, c]``.
        """
        shares, p = (jnp.asarray(part, float) for part in self.states())
        table = jax.vmap(lambda row: tails(row, self.most_byzantine))(p)
        state_key, key = jax.random.split(key)
        likely = jnp.log(shares) + jnp.log(table[:, 0, -1])
        state = jax.random.categorical(state_key, likely, shape=(count,))
        uniform = jax.random.uniform(key, (p.shape[1], count), p.dtype)

        def one(left: Array, client: tuple[Array, Array]) -> tuple[Array, Array]:
            i, u = client
            stays = p[state, i] * table[state, i + 1, left]
            honest = u < safe_ratio(stays, table[state, i, left])
            return left - ~honest, honest

        start = jnp.full((count,), self.most_byzantine, jnp.int32)
        clients = jnp.arange(p.shape[1], dtype=jnp.int32)
        _, honest = jax.lax.scan(one, start, (clients, uniform))
        return honest.T

    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        """Exact, for any number of clients: O(n^3 budget) for each state."""
        n, most = self.clients, self.most_byzantine
        accepted, counts = self._accepted()
        accepted = accepted.sum()
        sizes = n - np.arange(most + 1.0)
        counts = counts / accepted
        pairs, overlaps = counts.sum(axis=2), (counts / sizes**2).sum(axis=2)
        weights = np.diagonal((counts / sizes).sum(axis=2)).copy()
        return Moments(np.diagonal(pairs).copy(), pairs, weights, overlaps, float(accepted))

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        shares, p = (np.asarray(part, np.float64) for part in self.states())
        with np.errstate(divide="ignore"):
            logs = np.matmul(sets, _log(p).T) + np.matmul(~sets, _log(1 - p).T)
        masses = np.matmul(np.exp(logs), shares)
        return np.where(masses > 0, np.log(np.where(masses > 0, masses, 1)), -np.inf)

    def _accepted(self) -> tuple[np.ndarray, np.ndarray]:
        """P(state, budget holds), and P(i, j honest, c Byzantine) over all states."""
        shares, p = (np.asarray(part, np.float64) for part in self.states())
        most = self.most_byzantine
        accepted = [w * _counts(row, most).sum() for w, row in zip(shares, p, strict=True)]
        joint = [w * joint_counts(row, most) for w, row in zip(shares, p, strict=True)]
        return np.array(accepted), np.sum(joint, axis=0)


def _counts(p: np.ndarray, most: int) -> np.ndarray:
    """``P(exactly c Byzantine)`` for c = 0, ..., most."""
    counts = np.zeros(most + 1)
    counts[0] = 1
    for honest in p:
        counts = honest * counts + (1 - honest) * np.pad(counts[:-1], (1, 0))
    return counts


def _log(p: np.ndarray) -> np.ndarray:
    """The logarithm, and of 0 a number whose exponential is 0 but that 0 times makes no NaN."""
    return np.where(p > 0, np.log(np.where(p > 0, p, 1)), -1e4)


class IndependentHonesty(MixtureLaw):
    """Client i is honest with probability p_i, whatever the others are, within the budget.

    ``probabilities`` p has one number per client, ``budget`` is the most that can be Byzantine,
    the largest minority by default. Sampling and all moments are exact, by dynamic programming
    over the Poisson-binomial distribution.

    >>> law = IndependentHonesty(probabilities=[1.0, 1.0, 0.5])
    >>> law.moments().honesty.tolist(), law.moments().acceptance
    ([1.0, 1.0, 0.5], 1.0)
    """

    probabilities: Scalar = field(at_least=0, at_most=1)
    """Of each client being honest."""

    @property
    def clients(self) -> int:
        return int(np.shape(self.probabilities)[0])

    def check(self) -> None:
        if np.ndim(self.probabilities) != 1:
            raise ValueError(
                "IndependentHonesty: probabilities must be one number per client; got shape "
                f"{np.shape(self.probabilities)}"
            )
        super().check()

    def states(self) -> tuple[Float[Numbers, "1"], Float[Numbers, "1 n"]]:
        p = self.probabilities
        return np.ones(1), p[None]  # pyright: ignore

    def orbits(self) -> np.ndarray:
        return np.unique(np.asarray(self.probabilities), return_inverse=True)[1]


class Clusters(MixtureLaw):
    """Groups of clients are corrupted together.

    Group k is corrupted with probability ``corruption`` r_k; then each of its members is Byzantine
    with probability ``within`` rho_k. Members of other groups are Byzantine with probability
    ``background``. ``groups`` has the number of each client's group, 0, 1, .... Sampling and all
    moments are exact: clients are independent given which groups are corrupted.

    >>> law = Clusters(groups=(0, 0, 1, 1, 1), corruption=[0.25, 0.0])
    >>> law.moments().honesty.tolist()
    [0.75, 0.75, 1.0, 1.0, 1.0]
    """

    groups: tuple[int, ...]
    """The number of each client's group."""
    corruption: Scalar = field(at_least=0, at_most=1)
    """Probability that a group is corrupted, by group."""
    within: Scalar = field(default=1.0, at_least=0, at_most=1)
    """Probability that a member of a corrupted group is Byzantine."""
    background: Scalar = field(default=0.0, at_least=0, at_most=1)
    """The same of other groups."""

    @property
    def clients(self) -> int:
        return len(self.groups)

    def check(self) -> None:
        count = len(set(self.groups))
        if not 1 <= count <= MOST_GROUPS or set(self.groups) != set(range(count)):
            raise ValueError(
                f"Clusters: groups must be numbers 0, 1, ... of at most {MOST_GROUPS} groups, none "
                f"empty; got {list(self.groups)}"
            )
        for name in ("corruption", "within"):
            vector(self, name, count)
        if np.ndim(self.background) != 0:
            raise ValueError("Clusters: background must be one number")
        super().check()

    def states(self) -> tuple[Float[Numbers, " s"], Float[Numbers, "s n"]]:
        count, groups = max(self.groups) + 1, np.asarray(self.groups)
        struck = np.array(list(itertools.product((False, True), repeat=count)))
        traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self))
        xp = jnp if traced else np
        corruption = xp.broadcast_to(self.corruption, (1, count))
        within = xp.broadcast_to(self.within, (1, count))
        shares = xp.prod(xp.where(struck, corruption, 1 - corruption), axis=1)
        p = xp.where(struck, 1 - within, 1 - xp.broadcast_to(self.background, (1, 1)))
        return shares, p[:, groups]  # pyright: ignore

    def orbits(self) -> np.ndarray:
        count = max(self.groups) + 1
        sizes = np.bincount(self.groups)
        alike = np.stack([vector(self, "corruption", count), vector(self, "within", count), sizes])
        kinds = np.unique(alike, axis=1, return_inverse=True)[1].reshape(-1)
        return kinds[np.asarray(self.groups)]
