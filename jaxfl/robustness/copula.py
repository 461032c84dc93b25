"""Chosen marginals, and correlation along a graph: the Gaussian copula."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from jaxfl.component import Scalar, field
from jaxfl.robustness.graphs import adjacency, is_circulant
from jaxfl.robustness.law import (
    LEAST_LIKELY,
    Law,
    Moments,
    budget_of,
    check_budget,
    estimated_moments,
    vector,
)

FIRST_LOOK, LONG_LOOK, BLOCK = 2**12, 2**22, 2**14
FARTHEST = 8.2
"""Standard deviations beyond which a normal variable practically never is."""


class GaussianCopula(Law):
    """Client i is honest if ``z_i <= Phi^-1(p_i)``, with z normal and correlated along a graph.

    The covariance of z is ``(Laplacian + ridge I)^-1`` with its diagonal scaled to 1. Before
    conditioning on the ``budget``, client i is honest with probability ``probabilities`` p_i
    exactly, and pairs with a bivariate normal probability (``unconditioned``). The conditioned law
    is drawn by rejection, and its moments are estimates with standard errors.

    >>> law = GaussianCopula(graph=jaxfl.robustness.ring(5), probabilities=0.5, budget=2)
    >>> law.unconditioned()[1][0].round(3).tolist()
    [0.5, 0.409, 0.388, 0.388, 0.409]
    """

    graph: Scalar
    """An adjacency matrix of the clients."""
    probabilities: Scalar = field(at_least=0, at_most=1)
    """Of each client being honest, before conditioning."""
    ridge: Scalar = field(default=0.1, above=0)
    """Added to the graph's Laplacian: the less, the more neighbours are alike."""
    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients; none: the largest minority."""

    def __post_init__(self) -> None:
        if hasattr(self.graph, "nodes"):
            graph = adjacency(self.graph, None, "GaussianCopula: graph")
            object.__setattr__(self, "graph", graph)
        super().__post_init__()

    @property
    def clients(self) -> int:
        return int(np.shape(self.graph)[0])

    @property
    def most_byzantine(self) -> int:
        return budget_of(self, self.clients)

    @property
    def listable(self) -> bool:
        return False

    def check(self) -> None:
        adjacency(self.graph, None, "GaussianCopula: graph")
        vector(self, "probabilities", self.clients)
        check_budget(self, self.clients)
        if self._accepted(FIRST_LOOK)[0] == 0 and self._accepted(LONG_LOOK)[0] == 0:
            raise ValueError(
                f"GaussianCopula: at most {self.most_byzantine} Byzantine clients must have a "
                f"probability of {LEAST_LIKELY:g} or more; none of {LONG_LOOK} draws had so few"
            )

    def covariance(self) -> np.ndarray:
        """Of z, with a diagonal of 1, of shape [n, n]."""
        graph = np.asarray(self.graph, np.float64)
        precision = np.diag(graph.sum(axis=1)) - graph + self.ridge * np.eye(len(graph))
        covariance = np.linalg.inv(precision)
        scale = 1 / np.sqrt(np.diagonal(covariance))
        return covariance * scale[:, None] * scale[None, :]

    def thresholds(self) -> np.ndarray:
        """``Phi^-1(p_i)``, of shape [n]."""
        from scipy.stats import norm  # slow to import

        quantiles = norm.ppf(vector(self, "probabilities", self.clients))
        return np.clip(quantiles, -FARTHEST, FARTHEST)

    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count n"]:
        """Sets over the budget are drawn again, all those of a call together."""
        n = self.clients
        precision = jnp.asarray(self.graph, float)
        precision = jnp.diag(jnp.sum(precision, axis=1)) - precision
        precision += jnp.asarray(self.ridge, float) * jnp.eye(n)
        covariance = jnp.linalg.inv(precision)
        scale = 1 / jnp.sqrt(jnp.diagonal(covariance))
        root = jnp.linalg.cholesky(covariance * scale[:, None] * scale[None, :])
        p = jnp.broadcast_to(jnp.asarray(self.probabilities, float), (n,))
        threshold = jnp.clip(jax.scipy.special.ndtri(p), -FARTHEST, FARTHEST)

        def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            key, honest, done = carry
            key, own = jax.random.split(key)
            z = jnp.matmul(jax.random.normal(own, (count, n)), root.T, precision="highest")
            fresh = z <= threshold[None]
            honest = jnp.where(done[:, None], honest, fresh)
            return key, honest, jnp.sum(~honest, axis=1) <= self.most_byzantine

        start = key, jnp.zeros((count, n), bool), jnp.zeros((count,), bool)
        return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), again, start)[1]

    def unconditioned(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of clients [n] and pairs [n, n] being honest before conditioning; exact."""
        from scipy.stats import multivariate_normal  # slow to import

        p = np.array(vector(self, "probabilities", self.clients))
        covariance, threshold, n = self.covariance(), self.thresholds(), self.clients
        pairs = np.diag(p)
        for i in range(n):
            for j in range(i):
                correlation = covariance[[i, i, j, j], [i, j, i, j]].reshape(2, 2)
                both = multivariate_normal.cdf(
                    threshold[[i, j]],
                    cov=correlation,  # pyright: ignore[reportArgumentType]
                )
                pairs[i, j] = pairs[j, i] = both
        return p, pairs

    def moments(self, samples: int = 2**16, seed: int = 0) -> Moments:
        accepted, tried = self._accepted(samples)
        share = accepted / tried
        drawn = np.asarray(self.sample(jax.random.key(seed), samples))
        return estimated_moments(drawn, share, float(np.sqrt(share * (1 - share) / tried)))

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        raise ValueError("GaussianCopula has no formula for the probability of a set: sample it")

    def orbits(self) -> np.ndarray:
        p = vector(self, "probabilities", self.clients)
        alike = is_circulant(np.asarray(self.graph)) and np.ptp(p) == 0
        return np.zeros(self.clients, int) if alike else super().orbits()

    def _accepted(self, tries: int) -> tuple[int, int]:
        """How many of so many draws keep the budget; stops early once a block has some."""
        rng, root, n = np.random.default_rng(0), np.linalg.cholesky(self.covariance()), self.clients
        threshold, accepted, tried = self.thresholds(), 0, 0
        while tried < tries and (accepted == 0 or tries < LONG_LOOK):
            size = min(BLOCK, tries - tried)
            bad = np.matmul(rng.standard_normal((size, n)), root.T) > threshold
            accepted += int(np.sum(bad.sum(axis=1) <= self.most_byzantine))
            tried += size
        return accepted, tried
