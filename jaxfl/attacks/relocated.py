"""Attacks made to pass centred clipping and defences with memory: ROP and the hybrid sparse one."""

import math
from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators import CenteredClipping, SequentialCenteredClipping
from jaxfl.attacks.informed import InformedAttack, mean_and_std, mean_of_known
from jaxfl.attacks.statistical import supported
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.order import smallest
from jaxfl.types import Segments, Spec, State, Struct


def _strength(z: Scalar | None, view: AttackView, dtype: jnp.dtype) -> Float[Array, ""]:
    """The given z, or ALIE's of the cohort."""
    if z is None:
        z = supported(jnp.sum(view.honest) + view.count, view.count)
    return jnp.asarray(z, dtype)


class ROP(InformedAttack):
    """Relocated orthogonal perturbation: beside the server's last aggregate, across its direction.

    All attackers send ``l + z p / |p|``, a point at distance z of ``l = relocation M + (1 -
    relocation) mean``, where M is the server's last aggregate (0 in the first round) and mean that
    of the known updates. With the reference ``r = inertia M + (1 - inertia) mean`` (the mean in the
    first round) q is what is left of a vector of ones across r, and ``p = sin(angle) q / |q| +
    cos(angle) r / |r|``; at 270 degrees it is across r, at 180 against it. With ``z=None``, z is
    ALIE's. It is a length in the units of the updates: centred clipping lets it pass whole where
    it is at most tau. M follows from the models received and the server's rate.

    Özfatura, Özfatura, Küpçü, Gündüz, "Byzantines can also learn from history: fall of centered
    clipping in federated learning", IEEE TIFS 2024.

    >>> ROP().threat_model
    ('its messages', 'all honest updates')
    """

    name = "rop"
    z: Scalar | None = field(default=None, at_least=0)
    """Distance from the place chosen, in the units of the updates; none: ALIE's."""
    angle: Scalar = field(default=270.0)
    """To the reference, in degrees."""
    relocation: Scalar = field(default=1.0, at_least=0, at_most=1)
    """Weight of the last aggregate, against the mean, in the place chosen."""
    inertia: Scalar = field(default=0.9, at_least=0, at_most=1)
    """Weight of the last aggregate in the reference."""
    streams = capability(True)
    follows_model = capability(True)
    made_for = capability((CenteredClipping, SequentialCenteredClipping))

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(z=1.5)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype), jnp.zeros(())

    def observe(self, view: AttackView, state: State) -> State:
        assert view.params is not None
        seen = view.params, view.learning_rate
        return tuple(new.astype(old.dtype) for new, old in zip(seen, state, strict=True))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        assert view.params is not None
        before, rate = state
        seen = rate > 0
        mean = mean_of_known(view.updates, self.known(view))
        dtype = mean.dtype
        step = (before - view.params.astype(before.dtype)).astype(dtype)
        last = rows.safe_ratio(step, rate.astype(dtype))
        inertia = jnp.where(seen, jnp.asarray(self.inertia, dtype), 0)
        relocation = jnp.asarray(self.relocation, dtype)
        place = relocation * last + (1 - relocation) * mean
        reference = inertia * last + (1 - inertia) * mean
        along = rows.safe_ratio(reference, jnp.linalg.norm(reference))
        across = 1 - along * jnp.sum(along)
        across = rows.safe_ratio(across, jnp.linalg.norm(across))
        turn = jnp.deg2rad(jnp.asarray(self.angle, dtype))
        direction = jnp.sin(turn) * across + jnp.cos(turn) * along
        direction = rows.safe_ratio(direction, jnp.linalg.norm(direction))
        return (place + _strength(self.z, view, dtype) * direction)[None], self.observe(view, state)


class SparseState(Struct):
    """Which coordinates the sparse attack hits hard, once they are known."""

    mask: Bool[Array, " d"]
    rounds: Int[Array, ""]


class Sparse(InformedAttack):
    """ALIE, but harder in the few coordinates that the model is most sensitive to.

    All attackers send ``mean - (strength b + z (1 - b)) std``, with b = 1 in the share ``fraction``
    of each kernel (at least one weight) whose ``|w_j mean_j|`` is largest in the first round, and 0
    elsewhere, in biases too. With FedSGD that is SNIP's saliency, the effect on the loss of
    removing a weight; the authors also prune by other criteria. With ``z=None``, z is ALIE's.

    Özfatura, Özfatura, Küpçü, Gündüz, "Aggressive or imperceptible, or both: network pruning
    assisted hybrid Byzantines in federated learning", arXiv:2404.06230, 2024; the saliency: Lee,
    Ajanthan, Torr, ICLR 2019.

    >>> Sparse().threat_model
    ('its messages', 'all honest updates')
    """

    strength: Scalar = field(default=1.5, at_least=0)
    """Standard deviations in the sensitive coordinates."""
    z: Scalar | None = field(default=None)
    """Standard deviations elsewhere; none: ALIE's."""
    fraction: float = field(default=0.005, above=0, at_most=1)
    """Share of each kernel that is sensitive."""
    streams = capability(True)
    follows_model = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(z=0.5, fraction=0.1)

    def init(self, spec: Spec) -> State:
        return SparseState(mask=jnp.zeros((spec.dim,), bool), rounds=jnp.int32(0))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        assert view.params is not None
        mean, std = mean_and_std(view.updates, self.known(view))
        saliency = jnp.abs(view.params.astype(mean.dtype) * mean)
        first = sensitive(saliency, view.segments, self.fraction)
        mask = jnp.where(state.rounds == 0, first, state.mask)
        strength = jnp.asarray(self.strength, mean.dtype)
        hit = jnp.where(mask, strength, _strength(self.z, view, mean.dtype))
        return (mean - hit * std)[None], SparseState(mask=mask, rounds=state.rounds + 1)


def sensitive(
    saliency: Float[Array, " d"], segments: Segments, fraction: float
) -> Bool[Array, " d"]:
    """The share of largest saliency of each kernel; nothing of what is no matrix.

    Raises:
      ValueError: it is not known which coordinates are which parameters.
    """
    if not segments:
        raise ValueError(
            "Sparse needs the model's layers: use it in a simulation, or give the context segments"
        )
    parts = []
    for segment in segments:
        part = saliency[segment.offset : segment.end]
        if len(segment.shape) < 2:
            parts.append(jnp.zeros(part.shape, bool))
            continue
        count = max(1, math.floor(Fraction(str(fraction)) * part.shape[0]))
        parts.append(smallest(-part[:, None], count)[:, 0])
    return jnp.concatenate(parts)
