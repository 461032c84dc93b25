"""Data sets before they are divided among clients, and what a way to divide them is."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxfl.arguments import integer, seed_of
from jaxfl.component import Component
from jaxfl.data.dealing import held_out
from jaxfl.data.federated import FederatedData
from jaxfl.data.rare import RareData
from jaxfl.data.root import RootData
from jaxfl.data.summary import Summary, channels, overall
from jaxfl.models.words import next_words


class Partition(Component):
    """A way to divide samples among clients. Abstract: override ``divide``.

    Every sample goes to exactly one client, and every client gets at least one sample (a client
    left with nothing takes one from the largest). The generator decides everything random. In the
    formulas N is the number of samples, n the number of clients.

    >>> class InTurn(jaxfl.data.Partition):
    ...     def divide(self, data, clients, random):
    ...         return np.arange(len(data.labels)) % clients
    >>> inputs, labels = np.zeros((5, 3)), np.array([0, 1, 1, 0, 1])
    >>> jaxfl.data.from_arrays(inputs, labels, inputs, labels).split(InTurn(), 2).count.tolist()
    [3, 2]
    """

    @abc.abstractmethod
    def divide(self, data: "Dataset", clients: int, random: np.random.Generator) -> np.ndarray:
        """The owner ``[N]`` of each training sample."""


class LabelPartition(Partition):
    """A partition that looks at labels only. Abstract: override ``assign``.

    >>> class ByLabel(jaxfl.data.LabelPartition):
    ...     def assign(self, labels, clients, random):
    ...         return labels % clients
    >>> ByLabel().assign(np.array([0, 1, 2, 3]), 2, np.random.default_rng(0)).tolist()
    [0, 1, 0, 1]
    """

    @abc.abstractmethod
    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """The owner ``[N]`` of each sample, from the labels ``[N]``."""

    def divide(self, data: "Dataset", clients: int, random: np.random.Generator) -> np.ndarray:
        return self.assign(np.asarray(data.labels), clients, random)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test samples of one task, not yet divided among clients.

    ``inputs`` may be uint8 images: they stay so on the device, and become
    ``(x / 255 - mean) / std`` inside the program. Other inputs are used as they are.

    >>> inputs, labels = np.zeros((5, 3)), np.array([0, 1, 1, 0, 1])
    >>> data = Dataset("own", inputs, labels, inputs, labels, classes=2)
    >>> len(data.hold_out(0.2).labels)
    4
    """

    name: str
    inputs: np.ndarray | Array
    labels: np.ndarray | Array
    test_inputs: np.ndarray | Array
    test_labels: np.ndarray | Array
    classes: int
    """Different labels."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    client_ids: np.ndarray | None = None
    """Whose each training sample is, where the data says so."""
    validation_inputs: np.ndarray | Array | None = None
    """Samples held out for choosing hyper-parameters; see ``hold_out``."""
    validation_labels: np.ndarray | Array | None = None
    rare_inputs: np.ndarray | Array | None = None
    """Samples that only attackers have; see ``set_apart``."""
    rare_test_inputs: np.ndarray | Array | None = None
    next_words: int | None = None
    """Of texts as rows of word ids: how many ids there are, where clients learn each next word.
    Labels then only deal the texts."""
    public: int = 0
    """How many texts were left out for a public base; see ``ag_news``."""

    @property
    def answers(self) -> int:
        """How many answers a model chooses among."""
        return self.classes if self.next_words is None else self.next_words

    def __post_init__(self) -> None:
        for part, inputs, labels in (
            ("training", self.inputs, self.labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            if len(inputs) != len(labels) or len(inputs) == 0:
                raise ValueError(
                    f"{self.name}: {part} data needs as many labels as inputs, at least one; "
                    f"got {len(inputs)} inputs and {len(labels)} labels"
                )
            if not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"{self.name}: labels must be integers; got {labels.dtype}")
            if inputs.shape[1:] != self.inputs.shape[1:]:
                raise ValueError(
                    f"{self.name}: {part} inputs must have the shape of training inputs, "
                    f"{self.inputs.shape[1:]}; got {inputs.shape[1:]}"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"{self.name}: {part} labels must lie in 0..{self.classes - 1}; "
                    f"got {low}..{high}"
                )

        if self.client_ids is not None:
            self._check_owners(self.client_ids)

    def _check_owners(self, owners: np.ndarray) -> None:
        if owners.shape != self.labels.shape:
            raise ValueError(
                f"{self.name}: need one client id per training sample; "
                f"got {owners.shape} for {self.labels.shape}"
            )

    def hold_out(self, share: float, seed: int = 0) -> "Dataset":
        """Moves a random share of the training samples to the validation set, once and for all."""
        count = round(share * len(self.labels))
        if not 0 < count < len(self.labels):
            raise ValueError(
                f"{self.name}: validation must leave samples on both sides; got a share of "
                f"{share} of {len(self.labels)}"
            )
        order = np.random.default_rng(seed_of(seed)).permutation(len(self.labels))
        held, kept = np.sort(order[:count]), np.sort(order[count:])
        return dataclasses.replace(
            self._only(kept),
            validation_inputs=self.inputs[held],
            validation_labels=self.labels[held],
        )

    def set_apart(self, rare: RareData) -> "Dataset":
        """Takes the rarest samples of a class from the training data: only attackers have them.

        Raises:
          ValueError: there are too few of that class.
        """
        labels, test_labels = np.asarray(self.labels), np.asarray(self.test_labels)
        own, tested = rare.choose(self.inputs, labels, self.test_inputs, test_labels)
        return dataclasses.replace(
            self._only(np.setdiff1d(np.arange(len(labels)), own)),
            rare_inputs=self.inputs[own],
            rare_test_inputs=self.test_inputs[tested],
        )

    def _only(self, kept: np.ndarray) -> "Dataset":
        return dataclasses.replace(
            self,
            inputs=self.inputs[kept],
            labels=self.labels[kept],
            client_ids=None if self.client_ids is None else self.client_ids[kept],
        )

    def _peak(self) -> tuple[float, ...]:
        if self.inputs.dtype == np.uint8:
            return tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        images = np.asarray(self.inputs)
        channels = images.shape[-1] if images.ndim == 4 else 1
        if channels == 1:
            return (float(images.max()),)
        return tuple(images.max(axis=(0, 1, 2)).tolist())

    def summary(self) -> Summary:
        """Shapes, classes, mean and deviation, and how many samples there are of each class."""
        inputs = np.asarray(self.inputs)
        mean, std = channels(inputs) if inputs.dtype == np.uint8 else overall(inputs)
        counts, test_counts = (
            tuple(np.bincount(np.asarray(labels), minlength=self.classes).tolist())
            for labels in (self.labels, self.test_labels)
        )
        return Summary(
            name=self.name,
            shape=inputs.shape,
            test_shape=tuple(self.test_inputs.shape),
            dtype=str(inputs.dtype),
            classes=self.classes,
            mean=mean,
            std=std,
            counts=counts,
            test_counts=test_counts,
            clients=None if self.client_ids is None else len(np.unique(self.client_ids)),
        )

    def split(
        self,
        partition: Partition,
        clients: int,
        seed: int = 0,
        *,
        root: RootData | None = None,
        client_test: float = 0.0,
    ) -> FederatedData:
        """Divides the training samples among clients: a new assignment for each seed.

        ``root`` are the server's own, for rules that need some: taken first, by the same seed.
        Every client holds out a random ``client_test`` of its samples, to be tested on.
        """
        if not isinstance(partition, Partition):
            raise ValueError(
                f"{self.name}: partition must be one of jaxfl.data, such as IID(); "
                f"got {partition!r}"
            )
        clients = integer(clients, f"{self.name}: clients", 1)
        random = np.random.default_rng(seed_of(seed))
        rest, kept = self, np.arange(len(self.labels))
        if root is not None:
            kept = np.delete(kept, root.draw(np.asarray(self.labels), self.classes, random))
            rest = self._only(kept)
        if clients > len(kept):
            raise ValueError(
                f"{self.name}: {clients} clients cannot share {len(kept)} samples; "
                "every client needs at least one"
            )
        owners = np.full(len(self.labels), clients)
        owners[kept] = partition.divide(rest, clients, random)
        return self.federate(
            owners, clients, held_out(self.name, owners, client_test, clients, seed)
        )

    def by_client(self) -> FederatedData:
        """Divides the samples as ``client_ids`` says."""
        if self.client_ids is None:
            raise ValueError(f"{self.name} has no client_ids; use split(partition, clients)")
        unique, owners = np.unique(self.client_ids, return_inverse=True)
        return self.federate(owners, len(unique))

    def federate(
        self, owners: np.ndarray, clients: int, held: np.ndarray | None = None
    ) -> FederatedData:
        """The federated data set in which sample i belongs to client ``owners[i]``.

        The server owns what would be the share of one more client, of the number ``clients``.
        Samples that are ``held`` are not trained on: their owner's accuracy is measured on them.
        """
        self._check_owners(owners)
        tested = np.zeros(len(owners), bool) if held is None else held
        # Training samples of all clients, then what they hold out, then the server's.
        place = np.where(owners == clients, 2 * clients, owners + clients * tested)
        sizes = np.bincount(place, minlength=2 * clients + 1)
        count, root = sizes[:clients], int(sizes[2 * clients])
        if count.min() == 0:
            raise ValueError(f"{self.name}: client {int(count.argmin())} has no sample")
        start = np.concatenate([[0], np.cumsum(count)[:-1]])
        labels = np.zeros((clients, self.classes), np.int64)
        own = place < clients
        np.add.at(labels, (place[own], np.asarray(self.labels)[own]), 1)
        validated, apart = self.validation_labels is not None, self.rare_inputs is not None
        return FederatedData(
            inputs=jnp.asarray(self.inputs),
            labels=self._learned(self.inputs, self.labels),
            test_inputs=jnp.asarray(self.test_inputs),
            test_labels=self._learned(self.test_inputs, self.test_labels),
            order=jnp.asarray(np.argsort(place, kind="stable"), jnp.int32),
            start=jnp.asarray(start, jnp.int32),
            count=jnp.asarray(count, jnp.int32),
            label_counts=jnp.asarray(labels, jnp.int32),
            test_count=None if held is None else jnp.asarray(sizes[clients:-1], jnp.int32),
            classes=self.answers,
            capacity=int(count.max()),
            root=root,
            held=int(tested.sum()),
            mean=self.mean,
            std=self.std,
            peak=self._peak(),
            name=self.name,
            public=self.public,
            validation_inputs=jnp.asarray(self.validation_inputs) if validated else None,
            validation_labels=self._learned(self.validation_inputs, self.validation_labels)
            if validated
            else None,
            rare_inputs=jnp.asarray(self.rare_inputs) if apart else None,
            rare_test_inputs=jnp.asarray(self.rare_test_inputs) if apart else None,
        )

    def _learned(self, inputs: Any, labels: Any) -> Array:
        """What a model is to answer: labels, or next words."""
        if self.next_words is None:
            return jnp.asarray(labels, jnp.int32)
        return next_words(jnp.asarray(inputs, jnp.int32))
