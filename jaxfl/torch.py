"""Rules on PyTorch's tensors and models: one line defends a loop in PyTorch.

>>> from jaxfl.torch import aggregate, aggregate_models

A matrix of updates, or a list of vectors, in and a tensor out:

    update = aggregate(jaxfl.Krum(f=2), updates)

Models that clients send back, the model that they were sent:

    model.load_state_dict(aggregate_models(jaxfl.SignGuard(), model.state_dict(), states))

Needs PyTorch (extra ``torch``), which is imported when a rule is called.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxfl.aggregators import Aggregator
from jaxfl.integrations.layout import Layout, check_answer
from jaxfl.types import Aggregated, Context, State

Tensor = Any
"""A ``torch.Tensor``."""
StateDict = Mapping[str, Tensor]
"""A model's tensors by name, as ``torch.nn.Module.state_dict`` gives them."""


def aggregate(
    rule: Aggregator,
    updates: Tensor | Sequence[Tensor],
    *,
    context: Context | None = None,
    state: State = None,
) -> Tensor:
    """Aggregates a matrix ``[n, d]`` of tensors' numbers, or a list of n vectors, compiled.

    A contiguous matrix is read where it is, by DLPack, and so is the answer: nothing is copied
    (but on a CPU a matrix that does not start at a multiple of 64 bytes). A list is stacked first.
    The answer is on the device of the updates, without a gradient. The tensor must not be changed
    by another thread meanwhile.

    Raises:
      ValueError: PyTorch is not installed, the updates are neither, hold no floats, or float64
        without JAX's x64; or the rule is not defined for so many.
    """
    return inspect(rule, updates, context=context, state=state).update


def inspect(
    rule: Aggregator,
    updates: Tensor | Sequence[Tensor],
    *,
    context: Context | None = None,
    state: State = None,
) -> Aggregated:
    """Like ``aggregate``, but returns ``Aggregated``: the update, the new memory and the Info.

    ``state`` is the memory of the round before, for rules that have one.
    """
    torch = _import_torch()
    if rule.needs_segments and (context is None or not context.segments):
        raise ValueError(
            f"{type(rule).__name__} needs the model's layers, which a matrix does not tell: call "
            "aggregate_models, or pass context=Context.of(n, segments=...)"
        )
    matrix = _matrix(torch, rule, updates)
    result = rule.inspect(_to_jax(torch, matrix), context=context, state=state)
    return result.replace(update=_to_torch(torch, result.update))


def aggregate_models(
    rule: Aggregator,
    before: StateDict,
    after: Sequence[StateDict],
    *,
    context: Context | None = None,
    state: State = None,
) -> dict[str, Tensor]:
    """The next model: ``before - rule(before - after)``, for ``load_state_dict``.

    Floats, batch statistics among them, are one vector per client, in float32 (float64 where JAX's
    x64 is on); rules that look at layers (``PerLayer``) find them by the names,
    ``"layer.weight"`` and ``"layer.bias"``. Of tensors of integers and truth values (such as
    ``num_batches_tracked``) the answer is the lower median over the clients, at every place by
    itself. Every tensor keeps its type and device.

    Args:
      rule: the rule; a ``Pipeline`` for pre-aggregators before it.
      before: the model that the clients were sent.
      after: the models that came back, n of them.
      context: what else the server knows; see ``Aggregator.inspect``.
      state: the rule's memory of the round before.

    Raises:
      ValueError: PyTorch is not installed, no model came back or none whose update is finite, one
        has other tensors than ``before``, ``before`` or the next model is not finite, or what
        ``aggregate`` refuses.
    """
    return inspect_models(rule, before, after, context=context, state=state).update


def inspect_models(
    rule: Aggregator,
    before: StateDict,
    after: Sequence[StateDict],
    *,
    context: Context | None = None,
    state: State = None,
) -> Aggregated:
    """Like ``aggregate_models``, but returns ``Aggregated``, whose update is the next model."""
    torch = _import_torch()
    name = type(rule).__name__
    if not after:
        raise ValueError(f"{name}: no client sent a model back; there is nothing to aggregate")
    layout = Layout.of(_shapes(before))
    for place, model in enumerate(after):
        layout.check(_shapes(model), f"{name}: client {place}")
    context = Context.of(len(after)) if context is None else context
    if not context.segments:
        context = context.replace(segments=layout.segments)
    with torch.no_grad():
        wide = jax.config.read("jax_enable_x64")
        kind = torch.float64 if wide else torch.float32
        sent = _vector(torch, before, layout.floating, kind)
        layout.check_sent(sent.isfinite().cpu().numpy(), name, kind)
        rows = [_vector(torch, model, layout.floating, kind).to(sent.device) for model in after]
        rows = torch.stack(rows)
        result = inspect(rule, torch.sub(sent, rows, out=rows), context=context, state=state)
        next_one = sent - result.update
        parts = torch.split(next_one, [before[key].numel() for key in layout.floating])
        found = dict(zip(layout.floating, parts, strict=True))
        model = {
            key: found[key].reshape(tensor.shape).to(tensor)
            if key in found
            else _median(torch, [model[key] for model in after]).to(tensor)
            for key, tensor in before.items()
        }
        check_answer(
            (bool(row.isfinite().all()) for row in rows),
            moved=bool(result.update.any()),
            alive=all(bool(model[key].isfinite().all()) for key in layout.floating),
            where=name,
            what=name,
        )
    return result.replace(update=model)


def _matrix(torch: Any, rule: Aggregator, updates: Tensor) -> Tensor:
    name = type(rule).__name__
    if not isinstance(updates, torch.Tensor):
        shapes = {tuple(row.shape) for row in updates}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(
                f"{name}: updates must be a matrix or vectors of one length; "
                f"got {len(updates)} tensors of shapes {sorted(shapes)}"
            )
        return torch.stack(list(updates))
    if updates.ndim != 2 or not updates.is_floating_point():
        raise ValueError(
            f"{name}: updates must be a matrix [n, d] of floats; "
            f"got {updates.dtype} of shape {tuple(updates.shape)}"
        )
    return updates


def _shapes(model: StateDict) -> dict[str, jax.ShapeDtypeStruct]:
    """A model without its numbers; PyTorch's types have NumPy's names."""
    kinds = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in model.items()}
    return {key: jax.ShapeDtypeStruct(model[key].shape, kinds[key]) for key in model}


def _vector(torch: Any, model: StateDict, names: Sequence[str], kind: Any) -> Tensor:
    return torch.cat([model[name].detach().reshape(-1).to(kind) for name in names])


def _median(torch: Any, tensors: Sequence[Tensor]) -> Tensor:
    stack = torch.stack([tensor.detach() for tensor in tensors])
    return torch.median(stack.to(torch.int64), dim=0).values


def _to_jax(torch: Any, matrix: Tensor) -> jax.Array:
    if matrix.dtype == torch.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "updates are float64, which JAX would cut to float32: pass updates.float(), or call "
            "jax.config.update('jax_enable_x64', True) first"
        )
    return jax.dlpack.from_dlpack(matrix.detach().contiguous())


def _to_torch(torch: Any, array: jax.Array) -> Tensor:
    # PyTorch may change the updates as soon as it has the answer.
    return torch.from_dlpack(jax.block_until_ready(array))


def _import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"jaxfl.torch needs PyTorch: pip install 'jaxfl[torch]' ({error})"
        ) from error
