"""What a run guarantees: epsilon by dp-accounting, and in words what it means."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxfl.accounting.releases import PLD, RDP, deployment, exact, worst
from jaxfl.arguments import integer
from jaxfl.federation import Federation
from jaxfl.privacy.base import Privacy
from jaxfl.privacy.deployment import STEP, Deployment, Release


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """A guarantee of differential privacy: its numbers, and what they mean.

    >>> noised = jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=4.0)
    >>> found = guarantee(jaxfl.Federation(privacy=noised), [20] * 10, rounds=9)
    >>> round(found.epsilon, 2), found.holds
    (3.15, True)
    """

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
        The step of the loss distributions is the mechanism's ``discretisation``.

    Raises:
      ValueError: an unknown accountant, noise that is still to be calibrated, a mechanism that
        does not declare what it releases or does not go with the other parts.
    """
    _check_accountant(accountant)
    if not federation.private:
        return None
    privacy = federation.privacy
    federation.check_privacy(len(sizes))
    if not privacy.calibrated:
        raise ValueError(f"{type(privacy).__name__}: epsilon is a target; calibrate first")
    run = deployment(federation, rounds, sizes, participations)
    epsilon = worst(privacy.declared(run), privacy.delta, accountant, privacy.discretisation)
    found = _caveats(privacy, run)
    if math.isinf(epsilon) and not found:
        found = (f"truncated samples have used up delta = {privacy.delta:g}",)
    return Guarantee(
        epsilon=epsilon,
        delta=privacy.delta,
        noise_multiplier=float(np.min(privacy.multiplier())),
        protects=privacy.protects,
        neighbours=privacy.neighbours(run),
        trust=privacy.trusts,
        caveats=found,
    )


def gaussian_epsilon(
    *,
    noise_multiplier: float,
    steps: int,
    delta: float,
    rate: float = 1.0,
    accountant: str = PLD,
    discretisation: float = STEP,
) -> float:
    """Epsilon of so many releases with Gaussian noise, for planning: no federation is needed.

    Args:
      noise_multiplier: standard deviation of the noise in units of the sensitivity, above 0.
      steps: releases in all, at least 1.
      delta: above 0 and below 1.
      rate: probability that the protected one is in a release (Poisson sampling), up to 1.
      accountant: as for ``guarantee``.
      discretisation: step of the privacy loss distributions, as of a mechanism.

    Raises:
      ValueError: a number out of its range, an unknown accountant.

    >>> round(gaussian_epsilon(noise_multiplier=4.0, steps=9, delta=1e-5), 2)
    3.15
    """
    steps = integer(steps, "steps", 1)
    for name, value, within, wanted in (
        ("noise_multiplier", noise_multiplier, noise_multiplier < math.inf, "finite"),
        ("delta", delta, delta < 1, "below 1"),
        ("discretisation", discretisation, discretisation < 1, "below 1"),
        ("rate", rate, rate <= 1, "at most 1"),
    ):
        if not (value > 0 and within):
            raise ValueError(f"{name} must be above 0 and {wanted}; got {value!r}")
    _check_accountant(accountant)
    release = Release(float(noise_multiplier), steps, float(rate))
    return worst([release], delta, accountant, discretisation)


def _check_accountant(accountant: str) -> None:
    if accountant not in (PLD, RDP):
        raise ValueError(f"accountant must be {PLD} or {RDP}; got {accountant!r}")


def caveats(federation: Federation, rounds: int) -> tuple[str, ...]:
    """Why what the mechanism protects is not guaranteed in such a run; empty where it is."""
    federation.privacy.check_declared()
    if not federation.private:
        return ()
    return _caveats(federation.privacy, deployment(federation, rounds))


def statement(federation: Federation, rounds: int) -> str:
    """In words, without numbers: what the mechanism protects, from whom, and what is not held."""
    privacy, run = federation.privacy, deployment(federation, rounds)
    words = privacy.protects, privacy.neighbours(run), privacy.trusts, _caveats(privacy, run)
    return f"{type(privacy).__name__} {_sentence(*words)}"


class Meter:
    """Epsilon as a run goes on: of the number of rounds and of participations so far.

    By the exact formula for Gaussian noise without sampling, by Renyi's accountant else.

    >>> noised = jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=4.0)
    >>> meter = Meter(jaxfl.Federation(privacy=noised), [20] * 10, rounds=9)
    >>> round(meter(9, 9), 2)
    3.15
    """

    def __init__(
        self, federation: Federation, sizes: Sequence[int] | np.ndarray, rounds: int
    ) -> None:
        self._privacy = federation.privacy
        self._run = deployment(federation, rounds, sizes)
        if len(self._run.sizes) > 1:
            # Who is clearly better off after one round and at the end is taken to be so between:
            # left out of every later count.
            kept: set[int] = set()
            for now in ({"rounds": 1, "taken": 1}, {}):
                found = {n: self._epsilon(sizes=(n,), **now) for n in self._run.sizes}
                kept |= {n for n, epsilon in found.items() if epsilon >= 0.8 * max(found.values())}
            self._run = dataclasses.replace(self._run, sizes=tuple(sorted(kept)))

    def __call__(self, rounds: int, participations: int) -> float:
        """Epsilon after so many rounds; infinite where there is none."""
        return self._epsilon(rounds=rounds, taken=participations)

    def _epsilon(self, **changes: int | tuple[int, ...]) -> float:
        found = self._privacy.declared(dataclasses.replace(self._run, **changes))  # pyright: ignore[reportArgumentType]
        return worst(found, self._privacy.delta, PLD if all(map(exact, found)) else RDP)


def _caveats(privacy: Privacy, run: Deployment) -> tuple[str, ...]:
    silent = privacy.calibrated and not np.any(np.asarray(privacy.multiplier()) > 0)
    return (*(("there is no noise",) if silent else ()), *privacy.caveats(run))


def _sentence(protects: str, neighbours: str, trust: str, caveats: tuple[str, ...]) -> str:
    text = f"protects {protects} ({neighbours}); {trust}"
    return text + "".join(f". Not guaranteed: {caveat}" for caveat in caveats)
