"""What a run carries from round to round, and the keys that a round draws from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from jaxfl.arguments import seed_of
from jaxfl.contracts import started
from jaxfl.federation import Federation
from jaxfl.models.objective import ModelState, Objective
from jaxfl.types import PyTree, Spec, State, Struct

MATRIX, BFLOAT16, STREAM = STORAGES = ("matrix", "bfloat16", "stream")
"""Where a round has its updates: in a matrix of the model's type, in one of half its size, or in
a stream of chunks that are computed anew in every pass over them and never all held."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What shapes the program of a round: static and hashable. ``make_plan`` makes it.

    >>> inputs, labels = np.zeros((6, 4), np.float32), np.array([0, 1, 0, 1, 0, 1])
    >>> data = jaxfl.data.from_arrays(inputs, labels, inputs, labels).split(jaxfl.data.IID(), 3)
    >>> plan = jaxfl.make_plan(jaxfl.Federation(), data, jaxfl.models.Softmax(), client_chunk=1)
    >>> plan.spec.dim, plan.chunk, plan.storage
    (10, 1, 'matrix')
    """

    objective: Objective
    spec: Spec
    chunk: int
    """Clients vmapped at once."""
    storage: str = MATRIX
    """Of the updates, one of ``STORAGES``."""
    signs: bool = False
    """Whether each round's record counts the signs of what was sent, which costs a read of it."""
    together: int | None = None
    """Runs vmapped at once, the others in turn; None: all."""

    @property
    def message_type(self) -> Any:
        """The type of the numbers that the server receives."""
        return jnp.bfloat16 if self.storage == BFLOAT16 else self.spec.dtype


class FederationState(Struct):
    """All that a run carries from round to round; a checkpoint of it resumes the run."""

    params: Float[Array, " d"]
    model_state: ModelState
    optimizer: PyTree
    clients: State
    """Memory of every client of the population, leading axis K."""
    attack: State
    aggregator: State
    server: State
    """Memory of the clients' algorithm at the server."""
    privacy: State
    """The mechanism's memory: the clip, where it adapts; earlier noise, where it is correlated."""
    fairness: State
    root: State
    """Memory of the server as a client of its own; () where the rule needs no root update."""
    byzantine: Bool[Array, " K"]
    participations: Int[Array, " K"]
    """Rounds that each client has taken part in."""
    round: Int[Array, ""]
    key: Key[Array, ""]

    @property
    def ranks(self) -> Int[Array, " K"]:
        """Of every Byzantine client its number among them."""
        return jnp.cumsum(self.byzantine, dtype=jnp.int32) - 1


class RoundKeys(Struct):
    """The keys of one round, one for each who draws."""

    cohort: Key[Array, ""]
    clients: Key[Array, ""]
    noise: Key[Array, ""]
    """Of the mechanism of privacy: folded with a client's id, or the server's."""
    attack: Key[Array, ""]
    probe: Key[Array, ""]
    """What attackers take the server's randomness for when they try out the defence."""
    server: Key[Array, ""]
    root: Key[Array, ""]
    """Of the server's step on its own samples."""


def round_keys(state: FederationState) -> RoundKeys:
    """The keys of the round that comes next."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(state.key, state.round), 7))


def init_state(
    federation: Federation,
    plan: Plan,
    seed: Integer[Array, ""] | int,
    byzantine: Integer[Array, ""] | int | None = None,
) -> FederationState:
    """The state before the first round; the seed decides parameters and who is Byzantine.

    ``byzantine`` clients are, at most and by default as many as ``federation.byzantine``.
    """
    if not isinstance(seed, jax.Array | np.ndarray):
        seed = seed_of(seed)
    spec = plan.spec
    model_key, byzantine_key, run_key = jax.random.split(jax.random.key(seed), 3)
    params, model_state = plan.objective.init(model_key)
    wide = dataclasses.replace(spec, dim=spec.dim * federation.algorithm.width)
    one_client: Any = started(federation.algorithm, "init", spec)
    attackers = federation.byzantine if byzantine is None else byzantine
    return FederationState(
        params=params,
        model_state=model_state,
        optimizer=federation.optimizer.transform().init(params),
        clients=jax.tree.map(lambda x: jnp.tile(x, (spec.population, *[1] * x.ndim)), one_client),
        attack=started(federation.attack, "init", wide),
        aggregator=started(federation.aggregator, "init", wide),
        server=started(federation.algorithm, "init_server", spec),
        privacy=started(federation.privacy, "init", wide.dim),
        fairness=() if federation.fairness is None else started(federation.fairness, "init", spec),
        root=one_client if "update" in federation.aggregator.needs_root else (),
        byzantine=jax.random.permutation(byzantine_key, spec.population) < attackers,
        participations=jnp.zeros((spec.population,), jnp.int32),
        round=jnp.zeros((), jnp.int32),
        key=run_key,
    )
