"""What a run guarantees: epsilon by dp-accounting, and in words what it means."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxfl.accounting.releases import PLD, RDP, averages, mechanisms, replaces, worst
from jaxfl.attacks.base import ALL
from jaxfl.federation import Federation
from jaxfl.privacy.base import ATTACK_FIRST
from jaxfl.privacy.central import CentralPrivacy
from jaxfl.privacy.example import FIXED, ExamplePrivacy
from jaxfl.privacy.message import MessagePrivacy


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """A guarantee of differential privacy: its numbers, and what they mean."""

    epsilon: float
    """What the noised releases cost; infinite where no noise bounds it. It is the whole truth
    only where there are no ``caveats``."""
    delta: float
    noise_multiplier: float
    protects: str
    neighbours: str
    trust: str
    caveats: tuple[str, ...]
    """Why nothing is guaranteed, or what the number does not cover."""

    @property
    def holds(self) -> bool:
        """Whether the whole run keeps within epsilon and delta."""
        return math.isfinite(self.epsilon) and not self.caveats

    def __str__(self) -> str:
        if math.isfinite(self.epsilon):
            text = f"epsilon = {self.epsilon:.3g} at delta = {self.delta:.3g}"
        else:
            text = "no epsilon"
        return f"{text}; {_sentence(self.protects, self.neighbours, self.trust, self.caveats)}"


def guarantee(
    federation: Federation,
    sizes: Sequence[int] | np.ndarray,
    rounds: int,
    *,
    participations: int | None = None,
    accountant: str = PLD,
) -> Guarantee | None:
    """What ``rounds`` rounds of the federation guarantee; None without a mechanism.

    Args:
      federation: its privacy, algorithm, participation, rule and fairness decide.
      sizes: samples of each client of the population; the client worst off counts.
      rounds: rounds in all.
      participations: in how many the most frequent client took part (local mechanisms: the
        server sees who takes part, so sampling clients adds nothing); as many as the
        participation allows unless given.
      accountant: ``"pld"`` (tight; privacy loss distributions, or the exact formula for Gaussian
        noise without sampling) or ``"rdp"`` (Renyi, fast). Above an epsilon of 30 always Renyi.

    Raises:
      ValueError: an unknown accountant, or noise that is still to be calibrated.
    """
    privacy = federation.privacy
    if privacy is None:
        return None
    if accountant not in (PLD, RDP):
        raise ValueError(f"accountant must be {PLD} or {RDP}; got {accountant!r}")
    if not privacy.calibrated:
        raise ValueError(f"{type(privacy).__name__}: epsilon is a target; calibrate first")
    found = mechanisms(federation, sizes, rounds, participations)
    neighbours, trust, doubts = _words(federation, rounds)
    epsilon = worst(found, privacy.delta, accountant)
    if math.isinf(epsilon) and not doubts:
        doubts = (f"truncated samples have used up delta = {privacy.delta:g}",)
    return Guarantee(
        epsilon=epsilon,
        delta=privacy.delta,
        noise_multiplier=float(np.min(privacy.multiplier())),
        protects=privacy.protects,
        neighbours=neighbours,
        trust=trust,
        caveats=doubts,
    )


def caveats(federation: Federation, rounds: int) -> tuple[str, ...]:
    """Why what the mechanism protects is not guaranteed in such a run; empty where it is."""
    return () if federation.privacy is None else _words(federation, rounds)[2]


def statement(federation: Federation, rounds: int) -> str:
    """In words, without numbers: what the mechanism protects, from whom, and what is not held."""
    assert federation.privacy is not None
    name, protects = type(federation.privacy).__name__, federation.privacy.protects
    return f"{name} {_sentence(protects, *_words(federation, rounds))}"


class Meter:
    """Epsilon as a run goes on: of the number of rounds and of participations so far.

    By the exact formula for Gaussian noise without sampling, by Renyi's accountant else.
    """

    def __init__(
        self, federation: Federation, sizes: Sequence[int] | np.ndarray, rounds: int
    ) -> None:
        assert federation.privacy is not None
        self._federation, self._sizes = federation, np.asarray(sizes)
        self._delta = federation.privacy.delta
        if isinstance(federation.privacy, ExamplePrivacy):
            # Who is clearly better off at the end is so before: left out of every later count.
            ends = {n: self._epsilon(np.asarray([n]), rounds, None) for n in np.unique(sizes)}
            bound = 0.8 * max(ends.values())
            self._sizes = np.asarray([n for n, epsilon in ends.items() if epsilon >= bound])

    def __call__(self, rounds: int, participations: int) -> float:
        """Epsilon after so many rounds; infinite where there is none."""
        return self._epsilon(self._sizes, rounds, participations)

    def _epsilon(self, sizes: np.ndarray, rounds: int, participations: int | None) -> float:
        found = mechanisms(self._federation, sizes, rounds, participations)
        return worst(found, self._delta, PLD if all(m.exact for m in found) else RDP)


OVERHEARD = "attackers who see other clients' clean updates send messages that depend on them"
LIKE_POISSON = "samples of a fixed size are accounted as Poisson samples at half the noise"
"""For one release that is a theorem (one replaced by another); for many it is common practice."""


def _words(federation: Federation, rounds: int) -> tuple[str, str, tuple[str, ...]]:
    """The neighbouring relation, whom it trusts, and what is not guaranteed."""
    privacy, doubts = federation.privacy, []
    replaced = "replaced by another" if replaces(federation) else "replaced by nothing"
    overheard = federation.byzantine > 0 and federation.attack.crafts
    overheard &= federation.attack.knows == ALL
    assert privacy is not None
    if privacy.calibrated and not np.any(np.asarray(privacy.multiplier()) > 0):
        doubts.append("there is no noise")
    if isinstance(privacy, CentralPrivacy):
        if not averages(federation):
            doubts.append(
                f"{federation.aggregator} has no sensitivity of clip / cohort, which only "
                "Mean(weighted=False) has"
            )
        if privacy.correlated is not None and rounds > privacy.correlated.rounds:
            doubts.append(f"the noise is correlated over {privacy.correlated.rounds} rounds only")
        if replaces(federation) and privacy.correlated is None:
            doubts.append(LIKE_POISSON)
        if federation.fairness is not None:
            doubts.append("fairness weights depend on other clients' losses")
        if overheard:
            doubts.append(OVERHEARD)
        return f"one client {replaced}", "trusts the server, which sees every update", tuple(doubts)
    neighbours = f"the message {replaced}"
    if isinstance(privacy, ExamplePrivacy):
        neighbours = f"one example {replaced}; numbers of samples are public"
        if privacy.sampling == FIXED and federation.algorithm.gradients:
            doubts.append(LIKE_POISSON)
    elif isinstance(privacy, MessagePrivacy) and privacy.clip is None:
        doubts.append("without a clip a message may be arbitrarily large")
    if federation.noise_order == ATTACK_FIRST and overheard:
        doubts.append(OVERHEARD)
    if federation.fairness is not None:
        doubts.append("clients also send their losses and norms, which are not noised")
    return neighbours, "trusts nobody: the server sees noised messages only", tuple(doubts)


def _sentence(protects: str, neighbours: str, trust: str, doubts: tuple[str, ...]) -> str:
    text = f"protects {protects} ({neighbours}); {trust}"
    return text + "".join(f". Not guaranteed: {doubt}" for doubt in doubts)
