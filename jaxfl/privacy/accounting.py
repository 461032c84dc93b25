"""What a run's mechanism guarantees, computed by dp-accounting and said in words."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl.aggregators.mean import Mean
from jaxfl.attacks.base import ALL
from jaxfl.participation import Cyclic, Poisson, Uniform
from jaxfl.privacy.base import ATTACK_FIRST, LAPLACE, Privacy
from jaxfl.privacy.central import CentralPrivacy, QuantileClip
from jaxfl.privacy.example import FIXED, ExamplePrivacy
from jaxfl.privacy.message import MessagePrivacy

if TYPE_CHECKING:
    from jaxfl.parts import Federation

RDP, PLD = "rdp", "pld"
LARGE = 30.0
"""Beyond this epsilon, which protects nobody, privacy loss distributions are not computed."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What the mechanism releases about the one it protects, as dp-accounting counts it."""

    kind: str
    """``"gaussian"`` or ``"laplace"``."""
    multiplier: float
    """Noise in units of the sensitivity."""
    rate: float
    """Probability that a release has the protected data in it."""
    releases: int
    """How often."""
    lost_delta: float
    """What truncated samples take from delta."""

    def epsilon(self, delta: float, accountant: str = PLD) -> float:
        """Epsilon at delta; infinite where there is none."""
        left = delta - self.lost_delta
        if self.multiplier <= 0 or left <= 0:
            return math.inf
        return 0.0 if self.releases == 0 else _epsilon(self, left, accountant)


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """A guarantee of differential privacy: its numbers, and what they mean."""

    epsilon: float
    """Infinite where nothing is guaranteed."""
    delta: float
    noise_multiplier: float
    protects: str
    neighbours: str
    trust: str
    caveats: tuple[str, ...]
    """Why the number does not say all, or why there is none."""

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
        server sees who takes part, so sampling clients adds nothing); all of them unless given.
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
    found = mechanism(federation, sizes, rounds, participations)
    neighbours, trust, doubts = _words(federation, rounds)
    epsilon = math.inf if found is None else found.epsilon(privacy.delta, accountant)
    return Guarantee(
        epsilon=epsilon,
        delta=privacy.delta,
        noise_multiplier=float(np.max(privacy.multiplier())),
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


def _sentence(protects: str, neighbours: str, trust: str, caveats: tuple[str, ...]) -> str:
    text = f"protects {protects} ({neighbours}); {trust}"
    return text + "".join(f". Not guaranteed: {caveat}" for caveat in caveats)


def mechanism(
    federation: Federation,
    sizes: Sequence[int] | np.ndarray,
    rounds: int,
    participations: int | None = None,
) -> Mechanism | None:
    """The releases of a run about the one that is worst off; None where no epsilon exists."""
    privacy, sizes = federation.privacy, np.asarray(sizes)
    taken = rounds if participations is None else participations
    if isinstance(privacy, MessagePrivacy):
        if privacy.clip is None:
            return None
        return _released(privacy, releases=taken, kind=privacy.mechanism)
    if isinstance(privacy, ExamplePrivacy):
        return _of_example(federation, privacy, sizes, taken)
    assert isinstance(privacy, CentralPrivacy)
    if not _averages(federation) or federation.fairness is not None:
        return None
    return _of_client(federation, privacy, len(sizes), rounds)


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
            worst = {n: self._epsilon(np.asarray([n]), rounds, rounds) for n in np.unique(sizes)}
            bound = 0.8 * max(worst.values())
            self._sizes = np.asarray([n for n, epsilon in worst.items() if epsilon >= bound])

    def __call__(self, rounds: int, participations: int) -> float:
        """Epsilon after so many rounds; infinite where there is none."""
        return self._epsilon(self._sizes, rounds, participations)

    def _epsilon(self, sizes: np.ndarray, rounds: int, participations: int) -> float:
        found = mechanism(self._federation, sizes, rounds, participations)
        if found is None:
            return math.inf
        exact = found.kind != LAPLACE and found.rate >= 1
        return found.epsilon(self._delta, PLD if exact else RDP)


def _released(
    privacy: Privacy, *, releases: int, kind: str = "gaussian", rate: float = 1.0, **rest: Any
) -> Mechanism:
    doubled, lost = rest.get("doubled", False), rest.get("lost_delta", 0.0)
    multiplier = float(np.min(privacy.multiplier())) / (2 if doubled else 1)
    return Mechanism(kind, multiplier, rate, releases, lost)


def _of_example(
    federation: Federation, privacy: ExamplePrivacy, sizes: np.ndarray, taken: int
) -> Mechanism:
    """The client whose examples are used most: few samples are sampled often."""
    algorithm: Any = federation.algorithm
    fixed, found = getattr(algorithm, "steps", None), []
    for n in np.unique(sizes):
        size = int(n) if algorithm.batch_size is None else min(algorithm.batch_size, int(n))
        per_pass = -(-int(n) // size)
        if algorithm.gradients:
            steps = passes = 1
        elif fixed is not None:
            steps, passes = fixed, -(-fixed // per_pass)
        else:
            steps, passes = algorithm.epochs * per_pass, algorithm.epochs
        if privacy.sampling != FIXED:
            lost = steps * taken * privacy.overflow if size < n else 0.0
            releases = {"rate": size / n, "releases": steps * taken, "lost_delta": lost}
            found.append(_released(privacy, **releases))
        elif algorithm.gradients:
            found.append(_released(privacy, rate=size / n, releases=taken, doubled=size < n))
        else:
            # A pass has every example in one batch: no sampling, one release.
            found.append(_released(privacy, releases=passes * taken, doubled=True))
    return max(_undominated(found), key=lambda m: m.epsilon(privacy.delta, RDP))


def _undominated(found: list[Mechanism]) -> list[Mechanism]:
    """Of equally many releases, the one of the highest rate is worst."""
    worst: dict[int, Mechanism] = {}
    for m in found:
        if m.releases not in worst or m.rate > worst[m.releases].rate:
            worst[m.releases] = m
    return list(worst.values())


def _of_client(
    federation: Federation, privacy: CentralPrivacy, population: int, rounds: int
) -> Mechanism | None:
    participation = federation.participation
    if privacy.correlated is not None:
        return _released(privacy, releases=1) if rounds <= privacy.correlated.rounds else None
    if isinstance(participation, Poisson):
        lost = rounds * participation.overflow
        return _released(privacy, rate=participation.rate, releases=rounds, lost_delta=lost)
    if isinstance(participation, Cyclic):
        return _released(privacy, releases=-(-rounds // participation.groups))
    if isinstance(participation, Uniform):
        rate = participation.cohort(population) / population
        fixed = federation.byzantine_per_round
        if fixed is not None and population > federation.byzantine:
            honest = participation.cohort(population) - fixed
            rate = max(rate, honest / (population - federation.byzantine))
        return _released(privacy, rate=rate, releases=rounds, doubled=True)
    return _released(privacy, releases=rounds)


OVERHEARD = "attackers who see other clients' clean updates send messages that depend on them"


def _overheard(federation: Federation) -> bool:
    return federation.byzantine > 0 and federation.attack.crafts and federation.attack.knows == ALL


def _averages(federation: Federation) -> bool:
    return isinstance(federation.aggregator, Mean) and not federation.aggregator.weighted


def _words(federation: Federation, rounds: int) -> tuple[str, str, tuple[str, ...]]:
    """The neighbouring relation, whom it trusts, and what is not guaranteed."""
    privacy, doubts = federation.privacy, []
    if isinstance(privacy, CentralPrivacy):
        replaced = isinstance(federation.participation, Uniform) and privacy.correlated is None
        neighbours = "one client replaced by another" if replaced else "one client more or less"
        trust = "trusts the server, which sees every update"
        if not _averages(federation):
            doubts.append(
                f"{federation.aggregator} has no sensitivity of clip / cohort, which only "
                "Mean(weighted=False) has"
            )
        if privacy.correlated is not None and rounds > privacy.correlated.rounds:
            doubts.append(f"the noise is correlated over {privacy.correlated.rounds} rounds only")
        if federation.fairness is not None:
            doubts.append("fairness weights depend on other clients' losses")
        if _overheard(federation):
            doubts.append(OVERHEARD)
        return neighbours, trust, tuple(doubts)
    if isinstance(privacy, ExamplePrivacy):
        replaced = privacy.sampling == FIXED
        neighbours = f"one example replaced by {'another' if replaced else 'nothing'}"
        neighbours += "; numbers of samples are public"
    else:
        neighbours = "the message replaced by nothing"
        if isinstance(privacy, MessagePrivacy) and privacy.clip is None:
            doubts.append("without a clip a message may be arbitrarily large")
        if federation.noise == ATTACK_FIRST and _overheard(federation):
            doubts.append(OVERHEARD)
    if federation.fairness is not None:
        doubts.append("clients also send their losses and norms, which are not noised")
    return neighbours, "trusts nobody: the server sees noised messages only", tuple(doubts)


@functools.lru_cache(maxsize=4096)
def _epsilon(found: Mechanism, delta: float, accountant: str) -> float:
    import dp_accounting
    from absl import logging
    from dp_accounting import gaussian_mechanism, pld, rdp

    if found.kind == LAPLACE:
        event: Any = dp_accounting.LaplaceDpEvent(found.multiplier)
    elif found.rate >= 1:
        if accountant == PLD:
            sigma = found.multiplier / math.sqrt(found.releases)
            return float(gaussian_mechanism.get_epsilon_gaussian(sigma, delta))
        event = dp_accounting.GaussianDpEvent(found.multiplier)
    else:
        gaussian = dp_accounting.GaussianDpEvent(found.multiplier)
        event = dp_accounting.PoissonSampledDpEvent(found.rate, gaussian)
    logging.set_verbosity(logging.ERROR)  # it warns of every order that it leaves out
    renyi = rdp.RdpAccountant().compose(event, found.releases).get_epsilon(delta)
    if found.kind == LAPLACE:
        renyi = min(renyi, found.releases / found.multiplier)  # plain composition, delta = 0
    if accountant == RDP or renyi > LARGE:
        return float(renyi)
    return float(pld.PLDAccountant().compose(event, found.releases).get_epsilon(delta))


def calibrate(
    federation: Federation,
    sizes: Sequence[int] | np.ndarray,
    rounds: int,
    *,
    accountant: str = PLD,
) -> Federation:
    """The federation with the least noise that keeps ``rounds`` rounds within its ``epsilon``.

    Itself where the noise is already given. To a thousandth of the noise multiplier.

    Raises:
      ValueError: no noise reaches that epsilon.
    """
    privacy = federation.privacy
    if privacy is None or privacy.calibrated:
        return federation
    target = privacy.epsilon
    assert target is not None

    def with_noise(multiplier: float) -> Federation:
        noisy = privacy.replace(noise_multiplier=multiplier, epsilon=None)
        return federation.replace(privacy=noisy)

    def excess(multiplier: float, kind: str) -> float:
        found = mechanism(with_noise(multiplier), sizes, rounds)
        return math.inf if found is None else found.epsilon(privacy.delta, kind) - target

    name, most = type(privacy).__name__, 1e6
    if excess(most, RDP) > 0 and excess(most, accountant) > 0:
        because = (
            "; ".join(caveats(federation, rounds))
            or f"delta = {privacy.delta} is too small for {rounds} rounds"
        )
        raise ValueError(f"{name}: epsilon = {target} cannot be reached: {because}")
    high = _least(lambda m: excess(m, RDP), 1e-2, most)
    if accountant == RDP:
        return with_noise(high)
    # The tight accountant needs less noise than Renyi's, seldom less than half of it.
    return with_noise(_least(lambda m: excess(m, accountant), high / 2, high))


def _least(excess: Any, low: float, high: float) -> float:
    """The least multiplier, to a thousandth, at which ``excess``, which falls, is not positive."""
    if excess(low) <= 0:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if excess(middle) <= 0 else (middle, high)
    return high


def caution(privacy: Privacy, expected: int) -> None:
    """Raises ValueError where an adaptive clip's noise cannot make up the mechanism's."""
    if isinstance(privacy, CentralPrivacy) and isinstance(privacy.clip, QuantileClip):
        bits, z = np.min(privacy.clip.bits_noise(expected)), np.max(privacy.multiplier())
        if 2 * bits <= z:
            raise ValueError(
                f"QuantileClip: noise must be above half of noise_multiplier = {z:g}; got {bits:g}"
            )
