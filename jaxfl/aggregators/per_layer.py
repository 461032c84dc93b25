"""Any rule, layer by layer."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.coordinatewise import TrimmedMean
from jaxfl.aggregators.wrapping import Wrapper
from jaxfl.component import Component, capability
from jaxfl.numerics import rows
from jaxfl.types import Aggregated, Context, Info, Segments, Spec, State


def layers_of(segments: Segments) -> list[tuple[int, int]]:
    """Where each layer, a kernel with its bias, starts and ends in the flat vector."""
    groups = itertools.groupby(segments, key=lambda segment: segment.layer)
    found = [list(group) for _, group in groups]
    return [(group[0].offset, group[-1].end) for group in found]


class PerLayer(Wrapper):
    """Applies ``rule`` to each layer by itself, as if it were a model of its own.

    A layer is a kernel with its bias. Every layer has a memory and a key of its own; a client whose
    update is not finite anywhere is left out everywhere. With ``share_units`` what the rule has in
    the units of the updates (the tau of a clipping) is multiplied by ``sqrt(d_l / d)``, so that a
    row at the threshold in every layer is at the threshold as a whole. ``info.selected`` says who
    passed in any layer, ``info.weights`` is the mean over layers by their numbers of parameters.

    With coordinatewise rules the answer is the same. Rules that evaluate the model or look at its
    layers themselves are refused.

    Needs what the rule needs, and the model's layers. Cost: the rule's, with one compilation of it
    for each layer. Fails: a client can win one layer, so the answer of a rule that picks rows need
    be nobody's.

    >>> updates = {"a": jnp.array([[1.0], [2.0], [9.0]]), "b": jnp.array([[9.0], [3.0], [4.0]])}
    >>> PerLayer(rule=jaxfl.Krum(f=0))(updates)
    {'a': Array([1.], dtype=float32), 'b': Array([3.], dtype=float32)}
    """

    share_units: bool = False
    """Whether what the rule has in the updates' units is scaled to each layer's size."""
    needs_segments = capability(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "batch" in self.rule.needs_root or self.rule.needs_segments:
            name = type(self.rule).__name__
            raise ValueError(f"PerLayer: {name} needs the whole model, not one layer of it")

    @classmethod
    def example(cls, f: int = 2) -> "PerLayer":
        return cls(rule=TrimmedMean(f=f))

    def init(self, spec: Spec) -> State:
        def one(start: int, end: int) -> State:
            own = Spec(
                population=spec.population,
                cohort=spec.cohort,
                dim=end - start,
                max_byzantine=spec.max_byzantine,
                dtype=spec.dtype,
            )
            return self.rule.init(own)

        return tuple(one(*layer) for layer in layers_of(spec.segments))

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        self.check_segments(context.segments)
        layers, d = layers_of(context.segments), updates.shape[1]
        finite = jnp.isfinite(rows.squared_norms(updates))[:, None]
        answers = []
        for i, ((start, end), memory) in enumerate(zip(layers, state, strict=True)):
            share = (end - start) / d
            rule = _in_units(self.rule, share**0.5) if self.share_units else self.rule
            own = jnp.where(finite, updates[:, start:end], jnp.nan)
            answers.append(rule.checked(own, memory, _of_layer(context, i, start, end)))
        shares = [(end - start) / d for start, end in layers]
        return Aggregated(
            update=jnp.concatenate([answer.update for answer in answers]),
            state=tuple(answer.state for answer in answers),
            info=_together([answer.info for answer in answers], shares),
        )


def _of_layer(context: Context, number: int, start: int, end: int) -> Context:
    """What the server knows of one layer."""

    def part(vector: Array | None) -> Array | None:
        return None if vector is None else vector[start:end]

    return context.replace(
        key=jax.random.fold_in(context.key, number),
        params=part(context.params),
        root_update=part(context.root_update),
        segments=(),
    )


def _together(infos: list[Info], shares: list[float]) -> Info:
    """Who passed anywhere, and the mean weight; not scores, whose units differ."""
    passed = [info.selected for info in infos if info.selected is not None]
    weights = [info.weights for info in infos if info.weights is not None]
    weighed = [share * own for share, own in zip(shares, weights, strict=False)]
    return Info(
        selected=jnp.any(jnp.stack(passed), axis=0) if passed else None,
        weights=jnp.sum(jnp.stack(weighed), axis=0) if weighed else None,
    )


def _in_units(part: Any, factor: float) -> Any:
    """The rule, or pre-aggregator, with what is in the units of the updates times ``factor``."""

    def changed(value: Any) -> Any:
        if isinstance(value, Component):
            return _in_units(value, factor)
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return value

    own = {name: changed(getattr(part, name)) for name in part._hints}
    return part.replace(**(own | {name: factor * own[name] for name in part.in_units}))
