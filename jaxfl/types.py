"""The plain data that travels through a round."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

PyTree = Any
State = Any
"""What a component remembers between rounds: a pytree of arrays, ``()`` where it has no memory."""
PADDING = 0
"""The id that fills up a row of word ids at its end; models of texts do not read it."""


class Struct(struct.PyTreeNode):
    """Plain data as a pytree: frozen, with ``replace``.

    Its fields' shapes are those of one call. JAX rebuilds it with stacked arrays and with
    placeholders, so nothing is checked at run time.
    """

    __no_type_check__: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static sizes of a federation.

    >>> jaxfl.FLTrust().init(Spec(population=50, cohort=10, dim=650))
    ()
    """

    population: int
    """Clients in all."""
    cohort: int
    """Clients in one round, n."""
    dim: int
    """Parameters of the model, d."""
    max_byzantine: int = 0
    """Most Byzantine clients that a cohort can hold: the number of crafted rows."""
    dtype: Any = np.float32


class Context(Struct):
    """What the server knows besides the updates.

    >>> Context.of(4).weights.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    key: Key[Array, ""]
    round: Int[Array, ""]
    weights: Float[Array, " n"]
    """Share of each client in the cohort's samples; sums to 1."""
    client_ids: Int[Array, " n"]
    present: Bool[Array, " n"] | None = None
    """Which slots hold a client (Poisson sampling); None: all."""
    params: Float[Array, " d"] | None = None
    model_state: PyTree = None
    """State of the model that is not trained; None for a model without."""
    root_update: Float[Array, " d"] | None = None
    """What a client with the server's own samples would send."""
    root_batch: "Batch | None" = None
    """The server's own samples."""
    objective: Any = struct.field(pytree_node=False, default=None)
    """The ``Objective`` of the clients, for rules that evaluate models."""
    client_chunk: int = struct.field(pytree_node=False, default=1)
    """How many clients' models such a rule evaluates at once."""
    byzantine: Bool[Array, " n"] | None = None
    """The ground truth. Only the Oracle, which is no defence, reads it."""

    @staticmethod
    def of(n: int, **known: Any) -> "Context":
        """The context of a single call outside a simulation: equal weights, a fixed key."""
        defaults: dict[str, Any] = {
            "key": jax.random.key(0),
            "round": jnp.zeros((), jnp.int32),
            "weights": jnp.full((n,), 1.0 / n),
            "client_ids": jnp.arange(n, dtype=jnp.int32),
        }
        return Context(**(defaults | known))


class Batch(Struct):
    """Samples of one client's step.

    >>> batch = Batch(np.zeros((3, 8)), labels=np.zeros(3, int), mask=np.arange(3) < 2)
    >>> int(batch.mask.sum())
    2
    """

    inputs: Array
    labels: Int[Array, " b"]
    mask: Bool[Array, " b"]
    """False for padding."""


class Info(Struct):
    """Why a rule answered what it did, per original client; fields are fixed per rule.

    >>> Info(selected=np.array([True, False])).weights is None
    True
    """

    selected: Bool[Array, " n"] | None = None
    weights: Float[Array, " n"] | None = None
    scores: Float[Array, " n"] | None = None


class Aggregated(Struct):
    """What a rule returns.

    >>> class First(jaxfl.Aggregator):
    ...     def aggregate(self, updates, state, context):
    ...         return Aggregated(update=updates[0], state=state, info=Info())
    >>> First()(jnp.array([[1.0], [2.0]]))
    Array([1.], dtype=float32)
    """

    update: PyTree
    """The aggregate: ``[d]``, or the structure of the updates in a notebook call."""
    state: State
    info: Info


def present_mask(context: Context, n: int) -> Bool[Array, " n"]:
    """The presence mask as an array, all true where every slot holds a client."""
    return jnp.ones((n,), bool) if context.present is None else context.present
