"""Neighbours tend to be of one kind: the Ising model on a graph."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.component import Scalar, field
from jaxfl.robustness.graphs import adjacency, is_circulant
from jaxfl.robustness.law import (
    LEAST_LIKELY,
    MOST_ENUMERATED,
    Law,
    Moments,
    all_sets,
    budget_of,
    check_acceptance,
    check_budget,
    estimated_moments,
    moments_of,
    vector,
)

CHAINS = 256
BURN_IN, THINNING = 200, 5
"""In moves per client."""
SPLIT = 2**12
"""Sets drawn for each of the shares whose product is the probability of a budget."""


class Ising(Law):
    """``P(s) ~ exp(sum_i h_i s_i + J sum_edges A_ij s_i s_j)``, s_i = 1 if i is honest, else -1.

    ``graph`` is an adjacency matrix [n, n] (see ``adjacency``), ``coupling`` J, ``external`` h one
    number or one for each client. Conditioned on at most ``budget`` Byzantine clients, the largest
    minority by default. Without coupling, p_i = 1 / (1 + exp(-2 h_i)).

    Sampled by 256 chains of Glauber moves, of which those over the budget are rejected: 200 moves
    a client to begin with and 5 between two samples of a chain. A strong coupling mixes slowly,
    and then more are needed than that. Moments and the probability of the budget are exact up to
    20 clients, by enumeration, and estimates beyond, whose standard errors take the samples for
    independent. Making a law of more than 20 clients waits for that of the budget: some 300 n moves
    of the chains for each of the steps, up to 20, in which it is split.

    >>> law = Ising(graph=jaxfl.robustness.ring(5), coupling=0.5, external=0.3)
    >>> law.moments().honesty.round(3).tolist()
    [0.896, 0.896, 0.896, 0.896, 0.896]
    """

    graph: Scalar
    """An adjacency matrix of the clients."""
    coupling: Scalar = field(default=0.5)
    """How much neighbours are alike."""
    external: Scalar = field(default=0.0)
    """How much each client tends to be honest."""
    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients; none: the largest minority."""

    def __post_init__(self) -> None:
        if hasattr(self.graph, "nodes"):
            object.__setattr__(self, "graph", adjacency(self.graph, None, "Ising: graph"))
        super().__post_init__()

    @property
    def clients(self) -> int:
        return int(np.shape(self.graph)[0])

    @property
    def most_byzantine(self) -> int:
        return budget_of(self, self.clients)

    def check(self) -> None:
        adjacency(self.graph, None, "Ising: graph")
        vector(self, "external", self.clients)
        if np.ndim(self.coupling) != 0:
            raise ValueError("Ising: coupling must be one number")
        check_budget(self, self.clients)
        check_acceptance(self, self._acceptance()[0])

    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        return self.within(key, count, self.most_byzantine)

    def within(
        self, key: Key[Array, ""], count: int, most: int | Int[Array, ""]
    ) -> Bool[Array, "count n"]:
        """Honest sets that leave out at most so many clients, whatever the budget; traceable."""
        n, chains = self.clients, min(CHAINS, count)
        graph, coupling = jnp.asarray(self.graph, float), jnp.asarray(self.coupling, float)
        external = jnp.broadcast_to(jnp.asarray(self.external, float), (n,))

        def move(spins: Array, drawn: tuple[Array, Array]) -> tuple[Array, None]:
            site, u = drawn
            own = jnp.arange(n)[None, :] == site[:, None]
            around = jnp.sum(graph[site] * spins, axis=1)
            likely = jax.nn.sigmoid(2 * (external[site] + coupling * around))
            moved = jnp.where(own, jnp.where(u < likely, 1.0, -1.0)[:, None], spins)
            within = jnp.sum(moved < 0, axis=1) <= most
            return jnp.where(within[:, None], moved, spins), None

        def run(spins: Array, key: Array, moves: int) -> Array:
            site_key, key = jax.random.split(key)
            sites = jax.random.randint(site_key, (moves, chains), 0, n)
            return jax.lax.scan(move, spins, (sites, jax.random.uniform(key, (moves, chains))))[0]

        def thinned(spins: Array, key: Array) -> tuple[Array, Array]:
            spins = run(spins, key, THINNING * n)
            return spins, spins

        first, key = jax.random.split(key)
        spins = run(jnp.ones((chains, n)), first, BURN_IN * n)
        _, samples = jax.lax.scan(thinned, spins, jax.random.split(key, -(-count // chains)))
        return samples.reshape(-1, n)[:count] > 0

    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        if self.clients <= MOST_ENUMERATED:
            return moments_of(*self.support(), self._acceptance()[0])
        return estimated_moments(self.drawn(samples, seed), *self._acceptance(seed))

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        spins = np.where(sets, 1.0, -1.0)
        pulls = np.sum(np.matmul(spins, np.asarray(self.graph)) * spins, axis=1) / 2
        fields = vector(self, "external", self.clients)
        return np.matmul(spins, fields) + self.coupling * pulls

    def orbits(self) -> np.ndarray:
        external = vector(self, "external", self.clients)
        alike = is_circulant(np.asarray(self.graph)) and np.ptp(external) == 0
        return np.zeros(self.clients, int) if alike else super().orbits()

    def _acceptance(self, seed: int = 0) -> tuple[float, float]:
        """The probability of the budget, and its standard error: 0 where it is exact."""
        if self.clients > MOST_ENUMERATED:
            return self._estimated_acceptance(seed)
        sets = all_sets("Ising", self.clients, self.clients)
        masses = self.log_masses(sets)
        masses: Float[np.ndarray, " k"] = np.exp(masses - masses.max())
        within = (~sets).sum(axis=1) <= self.most_byzantine
        return float(masses[within].sum() / masses.sum()), 0.0

    def _estimated_acceptance(self, seed: int) -> tuple[float, float]:
        """By splitting: of sets within one budget, the share that keeps the next smaller one.

        Each is the median of what was drawn within the last, so few draws tell small numbers. It
        ends where the product is too small to be accepted.
        """
        most, probability, variance = self.clients, 1.0, 0.0
        key = jax.random.key(seed)
        while most > self.most_byzantine and probability >= LEAST_LIKELY:
            key, own = jax.random.split(key)
            with jax.ensure_compile_time_eval():  # a law may be made while a program is traced
                numbers = np.asarray(_byzantine_within(self, own, most))
            most = max(self.most_byzantine, min(int(np.median(numbers)), most - 1))
            share = float(np.mean(numbers <= most))
            probability *= share
            variance += (1 - share) / max(share * SPLIT, 1)
        return probability, probability * float(np.sqrt(variance))


@jax.jit
def _byzantine_within(law: Ising, key: Array, most: Int[Array, ""]) -> Int[Array, " r"]:
    """How many are Byzantine in sets that are drawn within a budget."""
    return jnp.sum(~law.within(key, SPLIT, most), axis=1)
