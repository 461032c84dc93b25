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
    check_acceptance,
    check_budget,
    estimated_moments,
    vector,
)

LOOK = 2**12
"""Draws by which the probability of the budget is estimated when a law is made."""
KEPT, MOVES = 0.1, 10
"""The share of draws that one step of splitting keeps, and the moves of each draw after it."""
FARTHEST = 8.2
"""Standard deviations beyond which a normal variable practically never is."""


class GaussianCopula(Law):
    """Client i is honest if ``z_i <= Phi^-1(p_i)``, with z normal and correlated along a graph.

    The covariance of z is ``(Laplacian + ridge I)^-1`` with its diagonal scaled to 1. Before
    conditioning on the ``budget``, client i is honest with probability ``probabilities`` p_i
    exactly, and pairs with a bivariate normal probability (``unconditioned``). The conditioned law
    is drawn by rejection, and its moments are estimates with standard errors, as is the probability
    of the budget by which a law is refused (an eighth of it where it is near 1e-6).

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
        check_acceptance(self, self._acceptance(LOOK)[0])

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
        drawn = self.drawn(samples, seed)
        return estimated_moments(drawn, *self._acceptance(samples))

    def log_masses(self, sets: np.ndarray) -> np.ndarray:
        raise ValueError("GaussianCopula has no formula for the probability of a set: sample it")

    def orbits(self) -> np.ndarray:
        p = vector(self, "probabilities", self.clients)
        alike = is_circulant(np.asarray(self.graph)) and np.ptp(p) == 0
        return np.zeros(self.clients, int) if alike else super().orbits()

    def _acceptance(self, draws: int) -> tuple[float, float]:
        """The probability of the budget, and its standard error.

        By splitting: the budget holds where the (budget + 1)-th largest ``z_i - Phi^-1(p_i)`` is at
        most 0, and each step lowers the bound on it to what a tenth of the draws keep, until it is
        0. Those are copied over the others, and all are moved within the bound (Au and Beck,
        "Estimation of small failure probabilities", 2001); the standard error takes them for
        independent. It ends where the product is too small to be accepted.
        """
        rng, root, n = np.random.default_rng(0), np.linalg.cholesky(self.covariance()), self.clients
        thresholds, place = self.thresholds(), self.clients - 1 - self.most_byzantine

        def excess(normal: np.ndarray) -> np.ndarray:
            return np.partition(np.matmul(normal, root.T) - thresholds, place, axis=1)[:, place]

        normal, probability, variance = rng.standard_normal((draws, n)), 1.0, 0.0
        over = excess(normal)
        while True:
            bound = max(float(np.quantile(over, KEPT)), 0.0)
            within = np.flatnonzero(over <= bound)
            share = len(within) / draws
            probability *= share
            variance += (1 - share) / (share * draws)
            if bound == 0 or probability < LEAST_LIKELY:
                return probability, probability * float(np.sqrt(variance))
            places = rng.choice(within, draws)
            normal, over = normal[places], over[places]
            for _ in range(MOVES):  # each leaves the normal distribution within the bound as it is
                reach = rng.random((draws, 1))
                moved = np.sqrt(1 - reach**2) * normal + reach * rng.standard_normal((draws, n))
                then = excess(moved)
                stays = then <= bound
                normal, over = np.where(stays[:, None], moved, normal), np.where(stays, then, over)
