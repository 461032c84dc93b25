"""How good the model is after a number of rounds."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfl.clients import ClientAlgorithm
from jaxfl.contracts import expect
from jaxfl.data.federated import FederatedData
from jaxfl.metrics import FairnessMetrics, fairness_metrics
from jaxfl.models.words import mean_over_words
from jaxfl.state import FederationState, Plan
from jaxfl.types import Struct

OWN_BATCH = 64
"""Samples of one client that its own model is evaluated on at once."""


class Evaluation(Struct):
    """How good the model is after a number of rounds.

    All is NaN of a model that has diverged: whose parameters are not finite, or whose logits are
    not on any of the samples that a number is about.
    """

    round: Int[Array, ""]
    accuracy: Float[Array, ""]
    """On the test set. Of next words the share that is predicted, each word counting the same."""
    loss: Float[Array, ""]
    """Mean test loss; of next words the mean over all of them, not over texts."""
    validation_accuracy: Float[Array, ""] | None
    """On the samples held out for choices; None where there are none."""
    client_accuracy: Float[Array, " K"] | None
    """On the samples that each client holds out, or on its training samples where clients hold
    out none; of the client's own model, where its algorithm keeps one. None unless asked for."""
    fairness: FairnessMetrics | None
    """How even ``client_accuracy`` is over the honest clients; NaN where the model, or one of
    their own models, has diverged."""
    attack_success: Float[Array, ""] | None = None
    """Share of the test samples of other classes that the model takes for the backdoor's target
    when they carry its trigger; None without a backdoor. Of next words the share of all test texts
    in which the target follows the trigger."""
    perplexity: Float[Array, ""] | None = None
    """``exp(loss)`` where labels are next words: as if the model hesitated among so many; else
    None."""


def named(evaluation: Evaluation) -> dict[str, Any]:
    """What was measured, by the names of the log and of ``History.table``."""
    found = {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_perplexity": evaluation.perplexity,
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
    personal: type[ClientAlgorithm] | None = None,
) -> Evaluation:
    """Test accuracy and loss; if asked, accuracy on clients' own samples, a backdoor's success.

    ``personal`` is the algorithm whose clients are asked by models of their own.
    """
    over = functools.partial(_over, plan, data, state)
    losses, correct = over(data.test_inputs, data.test_labels)
    validation = per_client = metrics = success = None
    if data.validation_inputs is not None:
        assert data.validation_labels is not None
        right = over(data.validation_inputs, data.validation_labels)[1]
        validation = _mean(right, data.validation_labels)
    if client_accuracy:
        index, sizes = data.held_index(), data.test_count
        if sizes is None:
            index, sizes = data.order[: data.order.shape[0] - data.root], data.count
        if personal is None:
            right = over(data.inputs, data.labels, index=index)[1]
            per_client = _of_one_model(right, sizes)
        else:
            per_client = _of_own_models(plan, data, state, personal, index, sizes)
        metrics = fairness_metrics(per_client, ~state.byzantine)
        lost = jnp.any(jnp.isnan(per_client) & (sizes > 0) & ~state.byzantine)
        metrics = jax.tree.map(lambda metric: jnp.where(lost, jnp.nan, metric), metrics)
    if backdoor is not None:
        inputs, labels = backdoor.challenge(data)
        target = backdoor.meant(inputs, labels)
        other = jnp.ones(labels.shape[0], bool) if labels.ndim > 1 else labels != target
        triggered = functools.partial(backdoor.triggered, peak=data.peak, memory=state.attack)
        _, taken = over(inputs, target, triggered)
        success = jnp.sum(jnp.where(other, taken, 0)) / jnp.maximum(jnp.sum(other), 1)
    loss = _mean(losses, data.test_labels)
    return Evaluation(
        round=state.round,
        accuracy=_mean(correct, data.test_labels),
        loss=loss,
        validation_accuracy=validation,
        client_accuracy=per_client,
        fairness=metrics,
        attack_success=success,
        perplexity=jnp.exp(loss) if data.test_labels.ndim > 1 else None,
    )


def _mean(values: Float[Array, " b"], labels: Array) -> Float[Array, ""]:
    """Over samples; over all next words where labels are those."""
    return jnp.mean(values) if labels.ndim == 1 else mean_over_words(values, labels)


def _over(
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    inputs: Array,
    labels: Array,
    change: Any = lambda x: x,
    index: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss of the server's model on each sample, and whether it is right: 1, 0, or NaN.

    Of the samples at ``index`` where it is given; they are read batch by batch, never all copied.
    """
    on_one = functools.partial(_on_one, plan, data, state, state.params, change)
    # A text has logits for each of its words.
    size = max(1, plan.objective.at_once // math.prod(labels.shape[1:]))
    one, samples = on_one, (inputs, labels)
    if index is not None:
        one, samples = lambda i: on_one((inputs[i], labels[i])), index
    losses, correct = jax.lax.map(one, samples, batch_size=size)
    # Logits can be finite although parameters are not: a unit of -inf is 0 after a ReLU.
    alive = jnp.all(jnp.isfinite(state.params))
    return jnp.where(alive, losses, jnp.nan), jnp.where(alive, correct, jnp.nan)


def _on_one(
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    params: Float[Array, " d"],
    change: Any,
    sample: tuple[Array, Array],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """One sample a call, to be vmapped: a remainder needs no padding."""
    seen = change(data.normalise(sample[0][None]))
    losses, correct = plan.objective.evaluate(params, state.model_state, seen, sample[1][None])
    return losses[0], correct[0]


def _of_one_model(correct: Float[Array, " N"], sizes: Int[Array, " K"]) -> Float[Array, " K"]:
    """Each client's accuracy, from what is right of all clients' samples, one after the other."""
    total, ends = jnp.concatenate([jnp.zeros(1), jnp.cumsum(correct)]), jnp.cumsum(sizes)
    per_client = (total[ends] - total[ends - sizes]) / sizes
    # The sums of clients before the first NaN do not show it.
    return jnp.where(jnp.isnan(total[-1]), jnp.nan, per_client)


def _of_own_models(
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    personal: type[ClientAlgorithm],
    index: Int[Array, " N"],
    sizes: Int[Array, " K"],
) -> Float[Array, " K"]:
    """Each client's accuracy by its own model. In blocks of one client's samples each."""
    clients, blocks = sizes.shape[0], -(-sizes // OWN_BATCH)
    begins, last = jnp.cumsum(sizes) - sizes, jnp.cumsum(blocks)

    def block(number: Int[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
        client = jnp.minimum(jnp.searchsorted(last, number, side="right"), clients - 1)
        place = (number - last[client] + blocks[client]) * OWN_BATCH + jnp.arange(OWN_BATCH)
        own = place < sizes[client]
        at = index[begins[client] + jnp.where(own, place, 0)]
        params = personal.personal(jax.tree.map(lambda x: x[client], state.clients), state.params)
        name = f"{personal.__name__}.personal returned"
        expect(name, params, state.params.shape, "one number per parameter")
        on_one = functools.partial(_on_one, plan, data, state, params, lambda x: x)
        _, correct = jax.vmap(on_one)((data.inputs[at], data.labels[at]))
        right = jnp.sum(jnp.where(own, correct, 0))
        return client, jnp.where(jnp.all(jnp.isfinite(params)), right, jnp.nan)

    most = index.shape[0] // OWN_BATCH + clients
    owner, right = jax.lax.map(block, jnp.arange(most))
    return jnp.zeros(clients).at[owner].add(right) / sizes
