"""The plain data that travels through a round."""

import dataclasses
import math
from collections.abc import Iterable
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


KINDS = ("kernel", "bias", "embedding", "scale", "lora_a", "lora_b")
"""What a parameter can be, by the name that NNX gives it; ``"other"`` is anything else."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """One parameter of the model: a run of coordinates of the flat vector.

    >>> Segment("layers.0.kernel", 3, (4, 3), "kernel").layer
    'layers.0'
    """

    name: str
    """Its path in the model, parts separated by dots."""
    offset: int
    """The first of its coordinates."""
    shape: tuple[int, ...]
    kind: str
    """One of ``KINDS``, or ``"other"``."""
    last: bool = False
    """Whether it is of the output layer, whose answers are the logits."""

    @property
    def end(self) -> int:
        """One past the last of its coordinates."""
        return self.offset + math.prod(self.shape)

    @property
    def layer(self) -> str:
        """The path of the layer that it belongs to; its own where it belongs to none."""
        return self.name.rpartition(".")[0] or self.name


Segments = tuple[Segment, ...]


def segments_of(params: Any, last: frozenset[int] = frozenset()) -> Segments:
    """The parameters of a pytree, in the order in which ``ravel_pytree`` lays them out.

    ``last`` are the numbers of those of the output layer.
    """
    named = []
    for path, leaf in jax.tree.leaves_with_path(params):
        parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
        parts = parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts
        named.append((".".join(parts), tuple(leaf.shape)))
    return laid_out(named, last)


def laid_out(
    named: Iterable[tuple[str, tuple[int, ...]]], last: frozenset[int] = frozenset()
) -> Segments:
    """Parameters by name and shape, one after the other; ``last`` as for ``segments_of``.

    PyTorch's "weight" is a kernel, or a scale where it is a vector.

    >>> [(s.layer, s.offset, s.kind) for s in laid_out([("0.weight", (3, 4)), ("0.bias", (3,))])]
    [('0', 0, 'kernel'), ('0', 12, 'bias')]
    """
    found, start = [], 0
    for i, (name, shape) in enumerate(named):
        segment = Segment(name, start, shape, _kind(name, shape), i in last)
        found.append(segment)
        start = segment.end
    return tuple(found)


def _kind(name: str, shape: tuple[int, ...]) -> str:
    own = name.rpartition(".")[2]
    if own == "weight":
        return "kernel" if len(shape) > 1 else "scale"
    return own if own in KINDS else "other"


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
    segments: Segments = ()
    """The model's parameters, one after the other; () where only their number is known."""
    sample_shape: tuple[int, ...] = ()
    """The shape of one input; () where there is none."""


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
    learning_rate: Float[Array, ""]
    """The server's in this round: its step is minus the aggregate times this, without momentum."""
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
    sample: jax.ShapeDtypeStruct | None = struct.field(pytree_node=False, default=None)
    """What one input of a model is, for rules that make some up."""
    client_chunk: int = struct.field(pytree_node=False, default=1)
    """How many clients' models such a rule evaluates at once."""
    segments: Segments = struct.field(pytree_node=False, default=())
    """Which parameters of the model the coordinates are; () where that is not known."""
    byzantine: Bool[Array, " n"] | None = None
    """The ground truth. Only the Oracle, which is no defence, reads it."""

    @staticmethod
    def of(n: int, **known: Any) -> "Context":
        """The context of a call outside a simulation: equal weights, a fixed key, a rate of 1.

        With a rate of 1, updates are differences of models.
        """
        defaults: dict[str, Any] = {
            "key": jax.random.key(0),
            "round": jnp.zeros((), jnp.int32),
            "weights": jnp.full((n,), 1.0 / n),
            "client_ids": jnp.arange(n, dtype=jnp.int32),
            "learning_rate": jnp.ones(()),
        }
        return Context(**(defaults | known))


class Batch(Struct):
    """Samples of one client's step.

    >>> batch = Batch(np.zeros((3, 8)), labels=np.zeros(3, int), mask=np.arange(3) < 2)
    >>> int(batch.mask.sum())
    2
    """

    inputs: Array
    labels: Int[Array, " b"] | Int[Array, "b t"]
    """Classes, or of texts the word after each."""
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


def present_count(context: Context, n: int) -> Int[Array, ""] | int:
    """How many of n slots hold a client; absent slots are no clients, rows of NaN are."""
    return n if context.present is None else jnp.sum(context.present, dtype=jnp.int32)


def present_mask(context: Context, n: int) -> Bool[Array, " n"]:
    """The presence mask as an array, all true where every slot holds a client."""
    return jnp.ones((n,), bool) if context.present is None else context.present
