"""A data set that is divided among clients, on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Key

from jaxfl.types import Struct

PARTITIONED = ("order", "start", "count", "label_counts", "test_count")
"""What differs between partitions of the same samples."""


class FederatedData(Struct):
    """All samples on the device, and whose they are.

    Client k trains on samples ``order[start[k] : start[k] + count[k]]``. After all of these come
    the ``test_count[k]`` that each client holds out, and last the ``root`` samples of the server:
    ragged clients need no padding, and different partitions have the same shapes.

    >>> inputs, labels, owners = np.zeros((5, 3)), np.zeros(5, int), np.array([1, 0, 0, 1, 0])
    >>> data = jaxfl.data.from_arrays(inputs, labels, inputs, labels, client_ids=owners).by_client()
    >>> data.order.tolist(), data.start.tolist(), data.count.tolist()
    ([1, 2, 4, 0, 3], [0, 3], [3, 2])
    """

    inputs: Array
    labels: Int[Array, " N"] | Int[Array, "N t"]
    """Classes, or of texts the word after each, 0 where there is none."""
    test_inputs: Array
    test_labels: Int[Array, " T"] | Int[Array, "T t"]
    order: Int[Array, " N"]
    start: Int[Array, " K"]
    count: Int[Array, " K"]
    label_counts: Int[Array, "K classes"]
    """Training samples of each class."""
    classes: int = struct.field(pytree_node=False)
    """How many answers a model chooses among: classes, or words."""
    capacity: int = struct.field(pytree_node=False)
    """Samples of the largest client: bounds the steps of a local epoch."""
    root: int = struct.field(pytree_node=False, default=0)
    """Samples of the server."""
    held: int = struct.field(pytree_node=False, default=0)
    """Samples that clients hold out, in all."""
    mean: tuple[float, ...] = struct.field(pytree_node=False, default=(0.0,))
    std: tuple[float, ...] = struct.field(pytree_node=False, default=(1.0,))
    peak: tuple[float, ...] = struct.field(pytree_node=False, default=(1.0,))
    """The brightest value of an input as the model sees it, per channel."""
    name: str = struct.field(pytree_node=False, default="data")
    public: int = struct.field(pytree_node=False, default=0)
    """Texts that no client has, for a public base."""
    validation_inputs: Array | None = None
    validation_labels: Int[Array, " V"] | Int[Array, "V t"] | None = None
    rare_inputs: Array | None = None
    """Samples that only attackers have; None: there are none."""
    rare_test_inputs: Array | None = None
    test_count: Int[Array, " K"] | None = None
    """Samples that each client holds out; None: nothing is held out."""

    @property
    def clients(self) -> int:
        """The population."""
        return self.count.shape[-1]

    @property
    def rare(self) -> int:
        """How many samples only attackers have."""
        return 0 if self.rare_inputs is None else self.rare_inputs.shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.inputs.shape[1:]

    @property
    def sample(self) -> jax.ShapeDtypeStruct:
        """What one input is as the model sees it."""
        image = self.inputs.dtype == jnp.uint8
        return jax.ShapeDtypeStruct(self.sample_shape, jnp.float32 if image else self.inputs.dtype)

    @property
    def floor(self) -> tuple[float, ...]:
        """The darkest value of an input as the model sees it, per channel: 0 where unscaled."""
        if self.inputs.dtype != jnp.uint8:
            return (0.0,) * len(self.peak)
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))

    def class_counts(self) -> np.ndarray:
        """How many samples of each class each client has: ``[clients, classes]``."""
        if self.count.ndim != 1:
            raise ValueError("class_counts wants one partition; these are several, stacked")
        return np.asarray(self.label_counts)

    def normalise(self, inputs: Array) -> Array:
        """Inputs as the model sees them: float32, images scaled and normalised."""
        if inputs.dtype != jnp.uint8:
            return inputs
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        # One row a sample: a trailing axis of one channel or three does not vectorise.
        flat = inputs.reshape(inputs.shape[0], -1).astype(jnp.float32)
        repeats = flat.shape[1] // len(mean)
        scale, shift = (np.tile(x, repeats)[None] for x in (1 / (255 * std), mean / std))
        return (flat * scale - shift).reshape(inputs.shape)

    def samples(self, index: Int[Array, " b"]) -> tuple[Array, Int[Array, "b ..."]]:
        """Training inputs, as the model sees them, and labels."""
        flat = self.inputs.reshape(self.inputs.shape[0], -1)[index]
        inputs = flat.reshape(index.shape[0], *self.inputs.shape[1:])
        return self.normalise(inputs), self.labels[index]

    def draw_rare(self, key: Key[Array, ""], count: int) -> Array:
        """Inputs that only attackers have, as the model sees them, drawn with replacement."""
        assert self.rare_inputs is not None
        drawn = jax.random.randint(key, (count,), 0, self.rare_inputs.shape[0])
        return self.normalise(self.rare_inputs[drawn])

    def rarest(self, count: int) -> Array:
        """The first of these, the rarest, as the model sees them; fewer where there are fewer."""
        assert self.rare_inputs is not None
        return self.normalise(self.rare_inputs[:count])

    def root_index(self) -> Int[Array, " r"]:
        """Which samples are the server's."""
        return self.order[self.order.shape[0] - self.root :]

    def held_index(self) -> Int[Array, " h"]:
        """Which samples clients hold out, one client after the other."""
        end = self.order.shape[0] - self.root
        return self.order[end - self.held : end]

    def stack(self, others: Sequence["FederatedData"]) -> "FederatedData":
        """Several partitions of the same samples, along a new axis of order, start, count."""
        parts = [self, *others]
        for what in ("root", "held"):
            sizes = sorted({getattr(part, what) for part in parts})
            if len(sizes) > 1:
                raise ValueError(
                    f"partitions to stack must have equally many {what} samples; got {sizes}"
                )
        mapped = [name for name in PARTITIONED if getattr(self, name) is not None]
        stacked = {name: jnp.stack([getattr(p, name) for p in parts]) for name in mapped}
        return self.replace(capacity=max(p.capacity for p in parts), **stacked)

    def axes(self) -> "FederatedData":
        """The ``in_axes`` of a stacked data set: partitions are mapped, samples shared."""
        shared = jax.tree.map(lambda _: None, self)
        mapped = [name for name in PARTITIONED if getattr(self, name) is not None]
        return shared.replace(**dict.fromkeys(mapped, 0))
