"""What is written down about every round."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics import rows
from jaxfl.types import Context, Info, Struct, present_mask


class RoundRecord(Struct):
    """What is written down about a round; of ``jaxfl.run``, with a leading axis of rounds."""

    loss: Float[Array, ""]
    """Training loss, mean over the honest clients of the cohort."""
    honest_norm: Float[Array, ""]
    """Mean norm of the honest messages received; here and below, of those that are finite."""
    byzantine_norm: Float[Array, ""]
    """Mean norm of the Byzantine messages received (NaN where there are none)."""
    aggregate_norm: Float[Array, ""]
    distance: Float[Array, ""]
    """From the aggregate to the mean of the honest messages."""
    cosine: Float[Array, ""]
    """Between the aggregate and the mean of the honest messages."""
    honest_selected: Float[Array, ""]
    """Share of the honest clients that the rule selected (NaN where a rule selects nobody)."""
    malicious_selected: Float[Array, ""]
    """Share of the Byzantine clients that the rule selected."""
    malicious_weight: Float[Array, ""]
    """Share of the aggregate's weight that Byzantine clients got (NaN for coordinatewise rules)."""
    cohort: Int[Array, ""]
    """Clients that took part."""
    minority_selected: Float[Array, ""]
    """Share that the rule selected of the honest clients whose labels are most unlike the others':
    a fifth of the population, see ``metrics.minority``."""
    clip: Float[Array, ""]
    """The clip of the central mechanism, which may adapt (NaN without one)."""
    participations: Int[Array, ""]
    """Rounds that the client who took part most often has taken part in."""
    honest_positive: Float[Array, ""] | None = None
    """Share of coordinates that are positive, mean over the honest messages that are finite; as
    the three below None unless ``Plan.signs``."""
    honest_negative: Float[Array, ""] | None = None
    byzantine_positive: Float[Array, ""] | None = None
    byzantine_negative: Float[Array, ""] | None = None


@jax.named_scope("record")
def record_of(
    context: Context,
    losses: Float[Array, " n"],
    sent: rows.Rows,
    aggregate: Float[Array, " d"],
    info: Info,
    *,
    minority: Bool[Array, " n"],
    clip: Float[Array, ""],
    participations: Int[Array, " K"],
    signs: bool = False,
) -> RoundRecord:
    """The record of a round: what was sent, what the rule made of it, who was selected."""
    assert context.byzantine is not None
    squares = rows.squared_norms(sent)
    # A message that is not finite has no distance: it is left out here as rules leave it out.
    present = present_mask(context, sent.shape[0])
    finite = present & jnp.isfinite(squares)
    byzantine, honest = context.byzantine & present, ~context.byzantine & present

    measured = honest & finite
    target = rows.watched_mean(sent, measured).astype(aggregate.dtype)
    norms = rows.safe_sqrt(squares)
    products = rows.squared_norms(jnp.stack([aggregate, target, aggregate - target]))
    aggregate_norm, target_norm, distance = rows.safe_sqrt(products)
    inner = jnp.dot(aggregate, target, precision="highest")
    if info.weights is None:
        malicious_weight = jnp.full((), jnp.nan)
    else:
        mass = jnp.sum(jnp.where(byzantine, info.weights, 0))
        malicious_weight = rows.safe_ratio(mass, jnp.sum(info.weights))
    return RoundRecord(
        loss=_mean_over(honest, losses),
        honest_norm=_mean_over(measured, norms),
        byzantine_norm=_mean_over(byzantine & finite, norms),
        aggregate_norm=aggregate_norm,
        distance=distance,
        cosine=rows.safe_ratio(inner, aggregate_norm * target_norm),
        honest_selected=_mean_over(honest, info.selected),
        malicious_selected=_mean_over(byzantine, info.selected),
        malicious_weight=malicious_weight,
        cohort=jnp.sum(present, dtype=jnp.int32),
        minority_selected=_mean_over(honest & minority, info.selected),
        clip=clip,
        participations=jnp.max(participations),
        **(_signs(sent, measured, byzantine & finite) if signs else {}),
    )


def _signs(
    sent: rows.Rows, honest: Bool[Array, " n"], byzantine: Bool[Array, " n"]
) -> dict[str, Float[Array, ""]]:
    shares = rows.sign_shares(sent)
    return {
        f"{who}_{sign}": _mean_over(mask, shares[:, column])
        for who, mask in (("honest", honest), ("byzantine", byzantine))
        for column, sign in enumerate(("positive", "negative"))
    }


def _mean_over(mask: Array, values: Array | None) -> Array:
    """The mean of the masked values; NaN where there are none."""
    if values is None:
        return jnp.full((), jnp.nan)
    count = jnp.sum(mask)
    total = jnp.sum(jnp.where(mask, values, 0))
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
