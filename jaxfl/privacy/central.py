"""Central privacy: of a client, against all who see the model, by a server that is trusted."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxfl.clients import ClientAlgorithm
from jaxfl.component import Component, Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.participation import Poisson, Uniform
from jaxfl.privacy.base import Privacy, draw
from jaxfl.privacy.deployment import (
    CLIENT,
    GAUSSIAN,
    OVERHEARD,
    SMALLEST,
    Deployment,
    Release,
    Turn,
)
from jaxfl.privacy.example import LIKE_POISSON
from jaxfl.types import State


class QuantileClip(Component):
    """A clip that follows a quantile of the norms: ``C <- C exp(-rate (b - quantile))``, >= 1e-10.

    b is the share of the cohort whose norm is at most C, noised with standard deviation
    ``noise`` in units of clients (None: a twentieth of the expected cohort). The whole mechanism
    still has the noise multiplier z that it is given: updates get ``(z^-2 - (2 noise)^-2)^-1/2``,
    which needs ``2 noise > z``.
    Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021.

    >>> jaxfl.CentralPrivacy(clip=QuantileClip(initial=0.5), noise_multiplier=1.0).hides_cohort
    True
    """

    name = "quantile"
    initial: Scalar = field(default=0.1, at_least=SMALLEST)
    """The clip of the first round."""
    quantile: Scalar = field(default=0.5, at_least=0, at_most=1)
    """The share of norms that should be below the clip."""
    rate: Scalar = field(default=0.2, above=0)
    """How fast the clip follows."""
    noise: Scalar | None = field(default=None, above=0)
    """Standard deviation of the noise on the number of clients below the clip."""

    def bits_noise(self, expected: int) -> Scalar:
        """Standard deviation of the noise on the number of clients below the clip."""
        return expected / 20 if self.noise is None else self.noise


class BandedNoise(Component):
    """Noise that is correlated over ``rounds`` rounds: DP-FTRL, banded matrix factorisation.

    Round t adds ``(C^-1 z)_t`` with C a lower-triangular Toeplitz matrix of so many ``bands``,
    optimised for the error of prefix sums, so that noise of later rounds takes back some of
    earlier ones. One release of the whole run has the sensitivity of C for a client that comes
    back after ``participation.separation`` rounds at the earliest; sampling adds nothing.
    Kairouz et al., "Practical and private (deep) learning without sampling or shuffling", ICML
    2021; Choquette-Choo et al., "(Amplified) banded matrix factorization", NeurIPS 2023.

    >>> BandedNoise(rounds=8, bands=2).bands
    2
    """

    name = "banded"
    rounds: int = field(at_least=1)
    """Of the run; the noise is optimal for as many."""
    bands: int = field(default=16, at_least=1)
    """Rounds over which noise is correlated."""

    @property
    def coefficients(self) -> np.ndarray:
        """The first column of C, of norm 1."""
        return _coefficients(self.rounds, min(self.bands, self.rounds))

    def sensitivity(self, separation: int) -> float:
        """The norm of what one client of unit norm contributes to ``C x`` in the worst case."""
        from jax_privacy.matrix_factorization import toeplitz

        with jax.ensure_compile_time_eval():
            squared = toeplitz.minsep_sensitivity_squared(
                jnp.asarray(self.coefficients), min(separation, self.rounds), n=self.rounds
            )
            return float(np.sqrt(squared))

    def stream(self) -> Any:
        """C^-1 as jax-privacy's streaming matrix."""
        from jax_privacy.matrix_factorization import toeplitz

        return toeplitz.inverse_as_streaming_matrix(jnp.asarray(self.coefficients))


@functools.lru_cache
def _coefficients(rounds: int, bands: int) -> np.ndarray:
    from jax_privacy.matrix_factorization import toeplitz

    with jax.ensure_compile_time_eval():
        best = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)
    # Sensitivity is known for coefficients that do not increase; rounding may break that.
    return np.minimum.accumulate(np.maximum(best, 0)).astype(np.float32)


class CentralPrivacy(Privacy):
    """The server clips every update to ``clip``, aggregates, and adds noise to the aggregate.

    With ``Mean(weighted=False)``: ``(sum_k u_k min(1, clip / |u_k|) + noise) / expected cohort``,
    noise N(0, (noise_multiplier clip)^2). Protects all data of one client from everybody but the
    server; Poisson participation adds privacy. What attackers send is clipped as well. Under any
    other rule the aggregate is noised alike but has no sensitivity of clip / cohort: there is no
    guarantee then, and the run says so.

    >>> CentralPrivacy(clip=1.0, noise_multiplier=1.1).trusts
    'trusts the server, which sees every update'

    McMahan et al., "Learning differentially private recurrent language models", ICLR 2018.
    """

    name = "central"
    clip: Scalar | QuantileClip = field(default=1.0, at_least=SMALLEST)
    """Largest norm of an update; a number, or a clip that adapts."""
    correlated: BandedNoise | None = None
    """Noise that later rounds partly cancel; none: independent in each round."""

    protects = capability(CLIENT)
    trusts = capability("trusts the server, which sees every update")
    hides_cohort = capability(True)

    @capability
    def reach(self) -> Scalar | None:
        return self.clip.initial if isinstance(self.clip, QuantileClip) else self.clip

    streams = capability(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.clip, QuantileClip) and self.correlated is not None:
            raise ValueError(
                "CentralPrivacy: correlated noise is one release of the whole run, and a clip "
                "that adapts is one every round; give clip a number"
            )

    def check_declared(self) -> None:
        super().check_declared()
        if type(self).releases is not CentralPrivacy.releases:
            return
        for part, counted in ((self.clip, QuantileClip), (self.correlated, BandedNoise)):
            if isinstance(part, counted) and type(part) is not counted:
                raise ValueError(
                    f"{type(self).__name__} counts the noise of {counted.__name__}, which "
                    f"{type(part).__name__} may change: define releases in a subclass"
                )

    def check(self, algorithm: ClientAlgorithm, noise_order: str, expected: int) -> None:
        super().check(algorithm, noise_order, expected)
        if isinstance(self.clip, QuantileClip):
            bits, z = np.min(self.clip.bits_noise(expected)), np.max(self.multiplier())
            if 2 * bits <= z:
                raise ValueError(
                    f"QuantileClip: noise must be above half of noise_multiplier = {z:g}; "
                    f"got {bits:g}"
                )

    def init(self, dim: int) -> State:
        """The clip, where it adapts, and the noise of earlier rounds, where it is correlated."""
        clip: Any = ()
        if isinstance(self.clip, QuantileClip):
            clip = jnp.asarray(self.clip.initial, jnp.float32)
        if self.correlated is None:
            return clip, ()
        return clip, self.correlated.stream().init_multiply(jnp.zeros((dim,), jnp.float32))

    def threshold(self, state: State) -> Float[Array, ""]:
        """The clip of this round."""
        if isinstance(self.clip, QuantileClip):
            return state[0]
        return jnp.asarray(self.clip, jnp.float32)

    def bound(self, sent: rows.Rows, state: State) -> tuple[rows.Rows, Float[Array, " n"]]:
        """Every row clipped (a row that is not finite is nothing), and the norms before."""
        norms = rows.safe_sqrt(rows.squared_norms(sent))
        clip = self.threshold(state).astype(norms.dtype)

        def clip_row(row: Array) -> Array:
            # From the row itself, not from ``norms``: those of a stream are of another computation
            # of it, which on some devices need not be the same to the last bit.
            norm = rows.safe_sqrt(rows.squared_norms(row))
            factor = jnp.where(norm > clip, rows.safe_ratio(clip, norm), 1)
            usable = jnp.isfinite(norm)
            return jnp.where(usable, row, 0) * jnp.where(usable, factor, 0).astype(row.dtype)

        return rows.each(clip_row, sent), norms

    def release(
        self,
        aggregate: Float[Array, " d"],
        seen: Float[Array, " n"],
        turn: Turn,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        """The aggregate noised, and the new memory; ``seen`` are the norms before the clip."""
        noise_key, bits_key = jax.random.split(key)
        clip, memory = self.threshold(state), state[1]
        expected, present = turn.expected, turn.present.astype(seen.dtype)
        if turn.mean:
            # The divisor must not tell how many took part.
            aggregate = aggregate * (jnp.sum(present) / expected).astype(aggregate.dtype)
        multiplier = jnp.asarray(self.multiplier(), jnp.float32)
        new_clip: Any = ()
        if isinstance(self.clip, QuantileClip):
            bits = jnp.asarray(self.clip.bits_noise(expected), jnp.float32)
            # Less a half each, one client more or less changes the sum by a half only.
            below = jnp.sum(present * ((seen <= clip) - 0.5))
            noised = below + jnp.where(multiplier > 0, bits, 0) * jax.random.normal(bits_key)
            excess = noised / expected + 0.5 - jnp.asarray(self.clip.quantile, jnp.float32)
            new_clip = clip * jnp.exp(-jnp.asarray(self.clip.rate, jnp.float32) * excess)
            new_clip = jnp.maximum(new_clip, SMALLEST)
            multiplier = multiplier / jnp.sqrt(1 - jnp.square(multiplier / (2 * bits)))
        noise = draw(GAUSSIAN, noise_key, aggregate.astype(jnp.float32))
        if self.correlated is not None:
            noise, memory = self.correlated.stream().multiply_next(noise, memory)
            multiplier = multiplier * self.correlated.sensitivity(turn.separation)
        scale = (multiplier * clip / expected).astype(jnp.float32)
        return aggregate + (scale * noise).astype(aggregate.dtype), (new_clip, memory)

    def releases(self, run: Deployment) -> Sequence[Release]:
        if not run.averages or run.fairness:
            return ()
        participation = run.participation
        multiplier = float(np.min(self.multiplier())) / (2 if self.replaces(run) else 1)
        poisson = type(participation) is Poisson  # a subclass may draw otherwise
        lost = run.rounds * participation.overflow if poisson else 0.0
        if self.correlated is not None:
            whole = Release(multiplier, 1, overflow=lost)
            return (whole,) if run.rounds <= self.correlated.rounds else ()
        if poisson:
            return (Release(multiplier, run.rounds, participation.rate, lost),)
        if type(participation) is Uniform:
            return (Release(multiplier, run.rounds, self._rate(run)),)
        return (Release(multiplier, -(-run.rounds // participation.separation)),)

    def _rate(self, run: Deployment) -> float:
        """How likely a client is in a cohort of fixed size: the likelier kind of client."""
        cohort, fixed = run.participation.cohort(run.population), run.byzantine_per_round
        rate, honest = cohort / run.population, run.population - run.byzantine
        return rate if fixed is None or not honest else max(rate, (cohort - fixed) / honest)

    def replaces(self, run: Deployment) -> bool:
        # In a cohort of fixed size another client takes the place.
        return type(run.participation) is Uniform

    def neighbours(self, run: Deployment) -> str:
        return f"one client replaced by {'another' if self.replaces(run) else 'nothing'}"

    def caveats(self, run: Deployment) -> tuple[str, ...]:
        found = []
        if not run.averages:
            found.append(
                f"{run.aggregator} has no sensitivity of clip / cohort, which only "
                "Mean(weighted=False) has"
            )
        if self.correlated is not None and run.rounds > self.correlated.rounds:
            found.append(f"the noise is correlated over {self.correlated.rounds} rounds only")
        if self.replaces(run) and self.correlated is None:
            found.append(LIKE_POISSON)
        if run.fairness:
            found.append("fairness weights depend on other clients' losses")
        if run.overheard:
            found.append(OVERHEARD)
        return tuple(found)
