"""The same model by other factors, against rules that look at factors."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxfl.aggregators.product_space import adapters_of, factors_of
from jaxfl.attacks.base import OWN, Attack
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.types import State


class Gauge(Attack):
    """Each attacker's own honest model, with ``(c A, B / c)`` for the factors of each adapter.

    The layer ``A B`` is what it was, so a defence that looks at models or at changes of layers
    finds an honest client. But the mean of factors mixes gauges: where m of n clients attack and
    all agree on the layer, it becomes ``((n - m) + m c) ((n - m) + m / c) / n^2`` times itself, in
    every round: more for c > 0, less for c = -1, which also leaves all norms of factors as they
    are. Without adapters, or where ``LoRA`` freezes A, it is
    no attack: the honest update is sent.

    Ours, after what Singhal et al., "FedEx-LoRA", ACL 2025, say of averages of factors.

    >>> Gauge(factor=3.0).threat_model
    ('its messages', 'its own updates')
    """

    factor: Scalar = field(default=10.0)
    """c, by which A is multiplied and B divided; not 0."""
    crafts = capability(True)
    knows = capability(OWN)
    streams = capability(True)
    follows_model = capability(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factor, Tracer) and np.any(np.asarray(self.factor) == 0):
            raise ValueError("Gauge: factor must not be 0, by which B cannot be divided; got 0")

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        assert view.params is not None
        own = honest = view.own_rows()
        params = view.params.astype(own.dtype)
        factor, rate = jnp.asarray(self.factor, own.dtype), view.learning_rate.astype(own.dtype)
        for pair in adapters_of(view.segments):
            base, change = factors_of(params, pair), factors_of(own, pair)
            for segment, now, moved, times in zip(
                pair, base, change, (factor, 1 / factor), strict=True
            ):
                sent = rows.safe_ratio(now[None] - times * (now[None] - rate * moved), rate)
                own = own.at[:, segment.offset : segment.end].set(sent.reshape(sent.shape[0], -1))
        # Where the server takes no step there is nothing to turn.
        return jnp.where(rate == 0, honest, own), state
