"""The short way in: a federation from its parts, run in one call."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxfl.accounting import calibrate, caveats
from jaxfl.aggregators import Aggregator, Mean
from jaxfl.arguments import integer
from jaxfl.attacks import Attack, NoAttack
from jaxfl.clients import ClientAlgorithm, FedSGD
from jaxfl.data.federated import FederatedData
from jaxfl.fairness import Fairness
from jaxfl.federation import Federation
from jaxfl.given import listed_partitions
from jaxfl.history import History
from jaxfl.models.objective import Factory
from jaxfl.models.zoo import Model
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.participation import Full, Participation
from jaxfl.privacy import NoPrivacy, Privacy
from jaxfl.privacy.deployment import NOISE_FIRST
from jaxfl.programs import make_room
from jaxfl.progress import Progress
from jaxfl.simulation import Simulation
from jaxfl.smoothing import CRFL


def simulate(
    *,
    model: Model | nnx.Module | Factory,
    data: FederatedData | Sequence[FederatedData],
    rounds: int,
    attack: Attack = NoAttack(),
    aggregator: Aggregator = Mean(),
    byzantine: int = 0,
    algorithm: ClientAlgorithm = FedSGD(batch_size=32),
    optimizer: Optimizer = SGD(learning_rate=0.1),
    participation: Participation = Full(),
    privacy: Privacy = NoPrivacy(),
    fairness: Fairness | None = None,
    smoothing: CRFL | None = None,
    noise_order: str = NOISE_FIRST,
    seed: int = 0,
    seeds: Sequence[int] | np.ndarray | None = None,
    evaluate_every: int = 10,
    progress: Progress = False,
    **settings: Any,
) -> History:
    """Simulates a federation: the short way in.

    With ``seeds`` in place of ``seed``, all of them run in one program, each on its own partition
    if ``data`` is a list of as many; the history's arrays then lead by an axis of seeds.
    ``progress=True`` shows a bar; a function is called after every block with its evaluation and
    records. Ctrl-C ends the run after its block: the history so far is returned, with a warning,
    and ``history.simulation.run`` goes on from there; a second Ctrl-C ends it at once.

    ``settings`` are those of ``Simulation``: ``honest``, ``client_chunk``, ``devices``, ``way``,
    ``client_accuracy``, ``loss``, ``storage``, ``signs``.

    Example:
      >>> data = jaxfl.data.digits().split(jaxfl.data.Dirichlet(alpha=1.0), clients=10)
      >>> history = simulate(model=jaxfl.models.Softmax(), data=data, rounds=20, byzantine=2,
      ...                    attack=jaxfl.IPM(scale=10.0), aggregator=jaxfl.Krum(f=2))
      >>> history.rounds.tolist(), history.records.loss.shape
      ([10, 20], (20,))

    Warns where the mechanism's guarantee does not hold, and why.

    Raises:
      ValueError: the parts do not fit together.
    """
    federation = Federation(
        algorithm=algorithm,
        attack=attack,
        aggregator=aggregator,
        optimizer=optimizer,
        participation=participation,
        privacy=privacy,
        fairness=fairness,
        smoothing=smoothing,
        byzantine=byzantine,
        noise_order=noise_order,
    )
    rounds = integer(rounds, "rounds", 1)
    if seeds is not None and seed != 0:
        raise ValueError(f"give seed or seeds; got {seed!r} and {seeds!r}")
    partitions = listed_partitions(data)
    several = len(partitions) > 1 and federation.private
    # The noise for an epsilon depends on how many samples clients have.
    parts = [
        calibrate(federation, np.asarray(part.count), rounds)
        for part in (partitions if several else partitions[:1])
    ]
    for caveat in caveats(parts[0], rounds):
        warnings.warn(f"privacy is not guaranteed: {caveat}", stacklevel=2)
    make_room()
    simulation = Simulation(
        parts if several else parts[0],
        data,
        model,
        seeds=(seed,) if seeds is None else seeds,
        evaluate_every=evaluate_every,
        **settings,
    )
    return simulation.run(rounds, progress)
