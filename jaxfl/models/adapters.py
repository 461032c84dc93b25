"""Low-rank adapters on a frozen base."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from jaxfl.component import Component, field
from jaxfl.models.frozen import Frozen
from jaxfl.models.transformer import Transformer
from jaxfl.models.zoo import Model

A, B = "lora_a", "lora_b"
"""What NNX calls the two factors of an adapter, ``[in, rank]`` and ``[rank, out]``."""


class Base(Component):
    """Where the parameters of a frozen base come from. Abstract: override ``weights``.

    >>> class Zeros(jaxfl.models.Base):
    ...     def weights(self, model, sample_shape, classes):
    ...         return {"layers.0.kernel": np.zeros((8, classes), np.float32)}
    >>> jaxfl.models.LoRA(model=jaxfl.models.Softmax(), base=Zeros(), targets=("layers.0",),
    ...                   trained=(), rank=2).rank
    2
    """

    @abc.abstractmethod
    def weights(
        self, model: Model, sample_shape: tuple[int, ...], classes: int
    ) -> Mapping[str, np.ndarray]:
        """Parameters of the model that it knows, by their path in the module."""

    def check_public(self, public: int) -> None:
        """Raises ValueError where it knows other texts than the ``public`` that no client has."""


class LoRA(Model):
    """A model of which low-rank adapters, and the modules ``trained``, are all that is learned.

    Each dense layer of the ``targets`` answers ``x W + x A B`` with ``A`` of ``[in, rank]``, whose
    columns start orthonormal times ``scale``, and ``B`` of ``[rank, out]``, which starts at 0. All
    else is frozen: held once, a constant of the program, in no message. So a client's message is
    of the adapters' size, whatever the model's. ``scale`` has the place of ``alpha / rank``: it
    multiplies what a step of ``B`` does.

    With ``adapted="b"`` the factor ``A`` is frozen too (FFA-LoRA): the mean of the messages is then
    the mean of the layers' changes, and distances between messages are distances between those,
    up to ``scale``.

    Needs dense layers (``nnx.Linear``) by the names of the targets: a path in the module, or its
    end, such as ``"qkv"`` for that of every block.

    >>> model = jaxfl.models.LoRA(model=jaxfl.models.MLP(), targets=("layers.0",),
    ...                           trained=("layers.1",), rank=4)
    >>> jaxfl.models.Objective.of(model, (64,), 10).dim
    2058

    Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022; Sun et al.,
    "Improving LoRA in privacy-preserving federated learning", ICLR 2024.
    """

    name = "lora"

    model: Model = Transformer()
    """What is adapted."""
    base: Base | None = None
    """Where its parameters come from; none: they are drawn, the same in every run."""
    rank: int = field(default=8, at_least=1)
    """Of the change of each target."""
    targets: tuple[str, ...] = ("qkv", "out")
    """The dense layers with adapters."""
    trained: tuple[str, ...] = ("head",)
    """Modules that are trained as they are."""
    scale: float = field(default=1.0, above=0)
    """Length of the columns of A at the start."""
    adapted: str = field(default="ab", choices=("ab", "b"))
    """Which factors are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets and not self.trained:
            raise ValueError("LoRA: targets and trained are both empty: there is nothing to train")

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        module = self.model.build(sample_shape, classes, rngs)
        trained = _found(module, self.trained, "trained")
        targets = _found(module, self.targets, "targets")
        kept = {id(node) for part in trained.values() for _, node in nnx.iter_modules(part)}
        for path, layer in targets.items():
            if id(layer) in kept:
                raise ValueError(f"LoRA: {path} is both among targets and trained")
        dense = {path: self._dense(path, layer) for path, layer in targets.items()}
        if self.base is not None:  # may take minutes to train: all else is known to be right
            _fill(module, self.base.weights(self.model, sample_shape, classes))
        for _, node in nnx.iter_modules(module):
            if id(node) not in kept:
                _freeze(node)
        for path, layer in dense.items():
            parent, name = _parent(module, path)
            parent[name] = self._adapter(layer, rngs)
        return module

    def check_public(self, public: int) -> None:
        if self.base is not None:
            self.base.check_public(public)

    def _dense(self, path: str, layer: nnx.Module) -> nnx.Linear:
        """The layer; raises ValueError where it cannot have adapters of this rank."""
        if type(layer) is not nnx.Linear:  # a subclass may do anything with its kernel
            raise ValueError(
                f"LoRA: targets must be dense layers (nnx.Linear); {path} is a "
                f"{type(layer).__name__}"
            )
        most = min(layer.in_features, layer.out_features)
        if self.rank > most:
            raise ValueError(
                f"LoRA: rank must be at most {most}, the smaller side of {path}, which is "
                f"{layer.in_features} x {layer.out_features}; got {self.rank}"
            )
        return layer

    def _adapter(self, layer: nnx.Linear, rngs: nnx.Rngs) -> nnx.LoRA:
        adapter = nnx.LoRA(
            layer.in_features,
            self.rank,
            layer.out_features,
            base_module=layer,
            dtype=layer.dtype,
            a_initializer=nnx.initializers.orthogonal(self.scale),
            rngs=rngs,
        )
        if self.adapted == "b":
            adapter.lora_a = Frozen(adapter.lora_a[...])  # pyright: ignore
        return adapter


def _paths(module: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, node in nnx.iter_modules(module):
        yield ".".join(map(str, path)), node


def _found(module: nnx.Module, names: tuple[str, ...], what: str) -> dict[str, nnx.Module]:
    """The modules of these names, by their paths."""
    known = {path: node for path, node in _paths(module) if path}
    found: dict[str, nnx.Module] = {}
    for name in names:
        own = {p: node for p, node in known.items() if f".{p}".endswith(f".{name}")}
        if not own:
            listed = ", ".join(known) or "none"
            raise ValueError(
                f"LoRA: {what} must name modules of the model; got {name!r}, and there are {listed}"
            )
        found |= own
    return found


class _Slot:
    """Where a module's parts are, by name or by number in a list."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __getitem__(self, name: str) -> Any:
        return self.node[int(name)] if name.isdigit() else getattr(self.node, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.isdigit():
            self.node[int(name)] = value
        else:
            setattr(self.node, name, value)


def _parent(module: nnx.Module, path: str) -> tuple[_Slot, str]:
    slot, (*before, last) = _Slot(module), path.split(".")
    for name in before:
        slot = _Slot(slot[name])
    return slot, last


def _freeze(node: nnx.Module) -> None:
    for name, value in list(vars(node).items()):
        if isinstance(value, nnx.Param):
            setattr(node, name, Frozen(value[...]))


def _fill(module: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Gives parameters their values."""
    for path, value in weights.items():
        parent, name = _parent(module, path)
        param = parent[name]
        if param.shape != value.shape:
            raise ValueError(
                f"LoRA: the base has {path} of shape {value.shape}; the model's is {param.shape}"
            )
        param.set_value(value.astype(param.dtype))
