"""The words and the facts by which mechanisms, the round and accountants understand each other."""

import dataclasses
from typing import Any

from flax import struct
from jaxtyping import Array, Float

from jaxfl.clients import ClientAlgorithm
from jaxfl.participation import Participation
from jaxfl.types import Struct

GAUSSIAN, LAPLACE = "gaussian", "laplace"
STEP = 1e-4
"""Step at which privacy loss distributions are discretised: errors add up over releases."""
SMALLEST = 1e-10
"""The least clip: squares of much smaller numbers are 0 in float32, and so would norms be."""
NOISE_FIRST, ATTACK_FIRST = "noise_then_attack", "attack_then_noise"

NOTHING = "nothing"
EXAMPLE = "one example of one client"
MESSAGE = "a client's whole message"
CLIENT = "all data of one client"

NOBODY = "trusts nobody: the server sees noised messages only"

OVERHEARD = "attackers who see other clients' clean updates send messages that depend on them"
SAID_OPENLY = "clients also send their losses and norms, which are not noised"


@dataclasses.dataclass(frozen=True)
class Release:
    """Releases of noised data about what is protected, as an accountant counts them.

    >>> Release(multiplier=2.0, count=10).rate
    1.0
    """

    multiplier: float
    """Noise in units of the sensitivity; 0 is no noise."""
    count: int
    """How often such a release happens."""
    rate: float = 1.0
    """Probability that the protected data is in a release (Poisson sampling)."""
    overflow: float = 0.0
    """Probability that some sample of the run was truncated."""
    kind: str = GAUSSIAN
    event: Any = None
    """The ``dp_accounting.DpEvent`` of one release, for noise that is neither Gaussian nor
    Laplacian; it then counts instead of ``multiplier``, ``rate`` and ``kind``."""


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What a mechanism may know of the run that it is part of, to say what that releases."""

    algorithm: ClientAlgorithm
    participation: Participation
    aggregator: str
    averages: bool
    """Whether the aggregate moves by clip / cohort at most when one client's update does."""
    noise_order: str
    fairness: bool
    overheard: bool
    """Whether attackers see other clients' updates as they are before the attack."""
    byzantine: int
    byzantine_per_round: int | None
    rounds: int
    population: int = 0
    sizes: tuple[int, ...] = ()
    """Numbers of samples that clients have, each once."""
    taken: int = 0
    """Rounds in which the most frequent client takes part."""


class Turn(Struct):
    """What ``release`` may know of the round."""

    present: Float[Array, " n"]
    """1 in slots that hold a client, else 0."""
    expected: int = struct.field(pytree_node=False)
    """Clients that a round has on average."""
    separation: int = struct.field(pytree_node=False)
    """After how many rounds a client is back at the earliest."""
    mean: bool = struct.field(pytree_node=False)
    """Whether the rule promises that the aggregate is a mean over the clients present."""
