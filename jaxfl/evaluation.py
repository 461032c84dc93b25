"""How good the model is after a number of rounds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfl.data.federated import FederatedData
from jaxfl.metrics import FairnessMetrics, fairness_metrics
from jaxfl.state import FederationState, Plan
from jaxfl.types import Struct

EVALUATION_BATCH = 500


class Evaluation(Struct):
    """How good the model is after a number of rounds.

    All is NaN of a model that has diverged: whose parameters are not finite, or whose logits are
    not on any of the samples that a number is about.
    """

    round: Int[Array, ""]
    accuracy: Float[Array, ""]
    """On the test set."""
    loss: Float[Array, ""]
    """Mean test loss."""
    validation_accuracy: Float[Array, ""] | None
    """On the samples held out for choices; None where there are none."""
    client_accuracy: Float[Array, " K"] | None
    """On the samples that each client holds out, or on its training samples where clients hold
    out none; None unless asked for."""
    fairness: FairnessMetrics | None
    """How even ``client_accuracy`` is over the honest clients."""
    attack_success: Float[Array, ""] | None = None
    """Share of the test samples of other classes that the model takes for the backdoor's target
    when they carry its trigger; None without a backdoor."""


def named(evaluation: Evaluation) -> dict[str, Any]:
    """What was measured, by the names of the log and of ``History.table``."""
    found = {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "validation_accuracy": evaluation.validation_accuracy,
        "attack_success": evaluation.attack_success,
    }
    if evaluation.fairness is not None:
        found |= {f"client_{name}": value for name, value in vars(evaluation.fairness).items()}
    return {name: value for name, value in found.items() if value is not None}


@jax.named_scope("evaluation")
def evaluate(
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    *,
    client_accuracy: bool = False,
    backdoor: Any = None,
) -> Evaluation:
    """Test accuracy and loss; if asked, accuracy on clients' own samples, a backdoor's success."""

    def over(inputs: Array, labels: Array, change: Any = lambda x: x) -> tuple[Array, Array]:
        def one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
            # One sample a call, vmapped by ``map``: a remainder needs no padding.
            seen = change(data.normalise(pair[0][None]))
            losses, correct = plan.objective.evaluate(
                state.params, state.model_state, seen, pair[1][None]
            )
            return losses[0], correct[0]

        losses, correct = jax.lax.map(one, (inputs, labels), batch_size=EVALUATION_BATCH)
        # Logits can be finite although parameters are not: a unit of -inf is 0 after a ReLU.
        alive = jnp.all(jnp.isfinite(state.params))
        return jnp.where(alive, losses, jnp.nan), jnp.where(alive, correct, jnp.nan)

    losses, correct = over(data.test_inputs, data.test_labels)
    validation = per_client = metrics = success = None
    if data.validation_inputs is not None:
        assert data.validation_labels is not None
        validation = jnp.mean(over(data.validation_inputs, data.validation_labels)[1])
    if client_accuracy:
        index, sizes = data.held_index(), data.test_count
        if sizes is None:
            index, sizes = data.order[: data.order.shape[0] - data.root], data.count
        _, correct_own = over(data.inputs[index], data.labels[index])
        total, ends = jnp.concatenate([jnp.zeros(1), jnp.cumsum(correct_own)]), jnp.cumsum(sizes)
        per_client = (total[ends] - total[ends - sizes]) / sizes
        # The sums of clients before the first NaN do not show it.
        per_client = jnp.where(jnp.isnan(total[-1]), jnp.nan, per_client)
        metrics = fairness_metrics(per_client, ~state.byzantine)
    if backdoor is not None:
        inputs, labels = backdoor.challenge(data)
        target = jnp.full_like(labels, backdoor.target)
        other = labels != target
        triggered = functools.partial(backdoor.triggered, peak=data.peak, memory=state.attack)
        _, taken = over(inputs, target, triggered)
        success = jnp.sum(jnp.where(other, taken, 0)) / jnp.maximum(jnp.sum(other), 1)
    return Evaluation(
        round=state.round,
        accuracy=jnp.mean(correct),
        loss=jnp.mean(losses),
        validation_accuracy=validation,
        client_accuracy=per_client,
        fairness=metrics,
        attack_success=success,
    )
