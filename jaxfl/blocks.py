"""Many rounds as one pure function: blocks of a ``scan``, and evaluation between them."""

import jax
from jaxtyping import Array, Integer

from jaxfl.data.federated import FederatedData
from jaxfl.evaluation import Evaluation, evaluate
from jaxfl.federation import Federation
from jaxfl.record import RoundRecord
from jaxfl.round import minority_clients, run_round
from jaxfl.state import FederationState, Plan, init_state
from jaxfl.types import PyTree


def run_block(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    state: FederationState,
    rounds: int,
    *,
    client_accuracy: bool = False,
) -> tuple[FederationState, RoundRecord, Evaluation]:
    """``rounds`` rounds in one ``scan``, then an evaluation. Pure."""
    state, records = run_rounds(federation, plan, data, state, rounds=rounds)
    asked = {"client_accuracy": client_accuracy, "backdoor": federation.attack.backdoor}
    personal = federation.algorithm.personal_class
    return state, records, evaluate(plan, data, state, personal=personal, **asked)


def run_rounds(
    federation: Federation, plan: Plan, data: FederatedData, state: FederationState, *, rounds: int
) -> tuple[FederationState, RoundRecord]:
    """``rounds`` rounds in one ``scan``: one program, compiled once. Pure."""
    minority = minority_clients(data, state)

    def body(state: FederationState, _: None) -> tuple[FederationState, RoundRecord]:
        return run_round(federation, plan, data, state, minority)

    return jax.lax.scan(body, state, None, length=rounds)


def run(
    federation: Federation,
    plan: Plan,
    data: FederatedData,
    seed: Integer[Array, ""] | int,
    *,
    rounds: int,
    evaluate_every: int,
) -> tuple[FederationState, RoundRecord, Evaluation]:
    """A whole run as one pure function: ``vmap`` it over seeds, partitions, hyper-parameters.

    ``plan`` is ``jaxfl.make_plan(federation, data, model)``: the sizes that shape the program, and
    the check that all parts fit together, which a traced run cannot make.

    ``rounds`` must be a multiple of ``evaluate_every``. Records have a leading axis of rounds,
    evaluations one of blocks.
    """
    if evaluate_every < 1 or rounds % evaluate_every:
        raise ValueError(
            f"rounds must be a multiple of evaluate_every; got {rounds} and {evaluate_every}"
        )

    def block(state: FederationState, _: None) -> tuple[FederationState, PyTree]:
        state, records, evaluation = run_block(federation, plan, data, state, evaluate_every)
        return state, (records, evaluation)

    state, (records, evaluations) = jax.lax.scan(
        block, init_state(federation, plan, seed), None, length=rounds // evaluate_every
    )
    records = jax.tree.map(lambda x: x.reshape(rounds, *x.shape[2:]), records)
    return state, records, evaluations
