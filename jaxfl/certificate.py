"""How large a backdoor may be that does not change what a model trained with CRFL answers."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxfl.aggregators import Mean
from jaxfl.arguments import integer, seed_of
from jaxfl.clients import FedAvg, FedSGD
from jaxfl.data.federated import FederatedData
from jaxfl.federation import Federation
from jaxfl.models import Softmax
from jaxfl.models.objective import AT_ONCE, ModelState, Objective
from jaxfl.numerics.noise import normal
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.participation import Full
from jaxfl.simulation import Simulation
from jaxfl.smoothing import CRFL

TINY, MOST = 1e-8, 1e30


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a backdoor cannot change, for every test sample. ``certify`` makes it.

    >>> radius, two = np.array([0.5, 0.0, 2.0]), np.array([1, 0, 1])
    >>> Certificate(radius, predicted=two, labels=np.array([1, 0, 0])).certified_accuracy(0.5)
    0.3333333333333333
    """

    radius: np.ndarray
    """Largest size of a backdoor under which the answer stays; 0: none is certain."""
    predicted: np.ndarray
    """The class that most noisy copies of the model answer."""
    labels: np.ndarray

    def certified_rate(self, size: float) -> float:
        """The share of test samples whose answer no backdoor up to this size changes."""
        return float(np.mean(self.radius >= size))

    def certified_accuracy(self, size: float) -> float:
        """The share of those whose answer is right, too."""
        return float(np.mean((self.radius >= size) & (self.predicted == self.labels)))


def certify(
    simulation: Simulation,
    *,
    attackers: int,
    poisoned: float,
    at: int,
    scale: float = 1.0,
    noise: float | None = None,
    draws: int = 1000,
    alpha: float = 0.001,
    lipschitz: float | None = None,
    seed: int = 0,
) -> Certificate:
    """Certifies the model of a simulation with ``smoothing=CRFL()``, after its last round T.

    What is certified is not the model but the vote of noisy copies ``w_T + N(0, noise^2 I)`` of
    it: one training run with, and one without, a backdoor of L2 size below ``radius`` give the
    same most likely class. With p_A a lower bound of that class's share and p_B an upper bound of
    the next one's, each off by Hoeffding's ``sqrt(ln(1 / alpha) / (2 draws))``, and 0 where
    p_A <= p_B::

        radius^2 = -ln(1 - (sqrt(p_A) - sqrt(p_B))^2) sigma^2 / (2 R sum_i p_i^2 D^2 P)
        D = steps lipschitz scale rate poisoned
        P = prod_{t < s < T} (2 Phi(rho_s / sigma) - 1) (2 Phi(rho_T / noise) - 1)

    R attackers of the largest weights p_i, sigma and rho_t the noise and the clip of ``CRFL``,
    rate that of a client's step times the server's.

    It covers: **one** round t = ``at`` < T of attack, by R attackers who train as they are told on
    batches of which the share ``poisoned`` has the backdoor, and multiply what they send by
    ``scale``; the size is that of the change of one sample's input and one-hot label together, of
    which another label is sqrt(2) alone. It covers no attacker who sends anything else or attacks
    twice, and no model but softmax regression with cross-entropy, as the loss must be convex;
    no rule but the mean of all clients, who take plain gradient steps. What is outside is refused.
    As the authors do, it takes rho_t for the largest norm of the models trained in round t, to
    which noise and local steps add a little; it takes the copies of the one model that was trained
    for the law over all noise of training; and the classes compared are those of the same draws.
    With rho / sigma in the hundreds P is 1, so rounds after the attack do not help.

    Cost: ``draws`` evaluations of the test set. Breaks: the radius falls as 1 / (R scale).
    Xie, Chen, Chen, Li, "CRFL: certifiably robust federated learning against backdoor attacks",
    ICML 2021.

    Args:
      simulation: of one run; its state is what it is now.
      attackers: R.
      poisoned: the share of each of their batches, above 0.
      at: the round of the attack, from 1.
      scale: what attackers multiply their update by.
      noise: of the copies; None: that of training.
      draws: how many copies.
      alpha: the probability with which each of the two bounds may be wrong.
      lipschitz: of a sample's gradient in input and one-hot label, over models of norm rho; None:
        the larger of the authors' ``sqrt(2 + 2 rho + rho^2)``, for inputs of norm up to 1, and
        ``sqrt((sqrt(2) + rho sqrt(1 + B^2) / 2)^2 + 1 + B^2)``, for those up to the largest, B.
      seed: of the copies.

    Raises:
      ValueError: the run is not covered, an argument is out of its range, the model has diverged.

    >>> data = jaxfl.data.digits().split(jaxfl.data.IID(), clients=10)
    >>> history = jaxfl.simulate(model=jaxfl.models.Softmax(), data=data, rounds=40,
    ...                          optimizer=jaxfl.SGD(learning_rate=1.0), smoothing=jaxfl.CRFL())
    >>> found = certify(history.simulation, attackers=1, poisoned=0.05, at=20, draws=200)
    >>> found.certified_accuracy(0.0) > found.certified_accuracy(0.05) > 0.5
    True
    """
    if simulation.several:
        raise ValueError(f"certify: takes one run; this simulation has {len(simulation.seeds)}")
    federation, data, state = simulation.federation, simulation.data, simulation.state
    crfl = federation.smoothing
    if crfl is None:
        raise ValueError("certify: needs a federation with smoothing=CRFL()")
    _check_covered(federation, simulation.plan.objective)
    sigma = float(crfl.noise)
    noise = sigma if noise is None else noise
    positive = {"scale": scale, "noise": noise, "CRFL.noise": sigma}
    positive |= {} if lipschitz is None else {"lipschitz": lipschitz}
    for name, value in {"poisoned": poisoned, "alpha": alpha, **positive}.items():
        if not 0 < value <= (MOST if name in positive else 1):
            span = "a number above 0" if name in positive else "above 0 and at most 1"
            raise ValueError(f"certify: {name} must be {span}; got {value}")
    total = int(state.round)
    if total < 2:
        raise ValueError(f"certify: needs at least 2 rounds; this simulation has run {total}")
    at = integer(at, "certify: at", 1, total - 1)
    attackers = integer(attackers, "certify: attackers", 1, data.clients)
    if not bool(jnp.all(jnp.isfinite(state.params))):
        raise ValueError("certify: the model has diverged, so there is nothing to certify")
    largest = float(_largest_norm(data))
    steps, rate = _steps_and_rate(federation, data, largest)
    bounds = np.asarray(crfl.norm_after(jnp.arange(at, total + 1)), np.float64)
    if lipschitz is None:
        lipschitz = softmax_lipschitz(float(bounds[0]), largest)
    count = np.asarray(data.count, np.float64) ** federation.aggregator.by_samples
    weights = np.sort(count / count.sum())[-attackers:]
    moved = attackers * np.sum(weights**2) * (steps * lipschitz * scale * rate * poisoned) ** 2
    deviations = [sigma] * (total - at - 1) + [noise]
    passed = math.prod(
        math.erf(bound / deviation / math.sqrt(2))
        for bound, deviation in zip(bounds[1:], deviations, strict=True)
    )
    key, draws = jax.random.key(seed_of(seed)), integer(draws, "certify: draws", 1)
    votes = np.asarray(
        _votes(simulation.plan.objective, state.params, state.model_state, data, noise, key, draws)
    )
    top, second = share_bounds(votes, alpha)
    return Certificate(
        radius=certified_radius(top, second, sigma, float(moved * passed)),
        predicted=np.argmax(votes, axis=1),
        labels=np.asarray(data.test_labels),
    )


def share_bounds(
    votes: Int[np.ndarray, "N c"], alpha: float
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Of the votes for each class: bounds of the first one's share, and the second one's.

    >>> top, second = share_bounds(np.array([[20, 950, 30]]), alpha=0.001)
    >>> round(float(top[0]), 4), round(float(second[0]), 4)
    (0.8912, 0.0888)
    """
    draws = votes[0].sum()
    half = math.sqrt(math.log(1 / alpha) / (2 * draws))
    shares = np.sort(votes, axis=1) / draws
    return np.maximum(TINY, shares[:, -1] - half), np.minimum(1 - TINY, shares[:, -2] + half)


def certified_radius(
    top: Float[np.ndarray, " N"], second: Float[np.ndarray, " N"], noise: float, moved: float
) -> Float[np.ndarray, " N"]:
    """``sqrt(-ln(1 - (sqrt(top) - sqrt(second))^2) noise^2 / (2 moved))``; 0 if top <= second.

    Args:
      top: lower bounds of the first class's share.
      second: upper bounds of the second one's.
      noise: standard deviation of what the server adds.
      moved: at most how far a backdoor of size 1 moves the model, squared, and what later rounds
        leave of it.
    """
    gap = np.where(top > second, np.square(np.sqrt(top) - np.sqrt(second)), 0)
    return np.sqrt(-np.log1p(-gap) * noise**2 / (2 * moved))


def softmax_lipschitz(norm: float, largest: float) -> float:
    """Of a gradient of softmax regression with bias: see ``certify``.

    For weights W and bias of norm up to ``norm``, inputs of norm up to ``largest``, and labels
    that are shares of classes: ``|G(x + u, y + v) - G(x, y)| <= |u| sqrt(2) + |x'| (|W| |u| / 2 +
    |v|)`` with x' = (x, 1).
    """
    wide = 1 + largest**2
    own = (math.sqrt(2) + norm * math.sqrt(wide) / 2) ** 2 + wide
    return math.sqrt(max(2 + 2 * norm + norm**2, own))


def _check_covered(federation: Federation, objective: Objective) -> None:
    """Raises ValueError where the theorem says nothing of the run."""
    model = getattr(objective.factory, "model", objective.factory)
    algorithm, rule = federation.algorithm, federation.aggregator
    local = algorithm.optimizer if isinstance(algorithm, FedAvg) else SGD()
    # A subclass may do otherwise.
    plain = type(algorithm) is FedAvg or (type(algorithm) is FedSGD and algorithm.momentum is None)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    needs: tuple[tuple[bool, str, Any], ...] = (
        (type(model) is Softmax, "the model Softmax()", model),
        (objective.loss_function is cross_entropy, "cross-entropy", objective.loss_function),
        (plain, "FedSGD without momentum, or FedAvg", algorithm),
        (_plain(local), "local SGD of a constant rate alone", local),
        (_plain(federation.optimizer), "SGD of a constant rate alone", federation.optimizer),
        (type(rule) is Mean, "Mean", rule),
        (type(federation.participation) is Full, "Full()", federation.participation),
        (type(federation.smoothing) is CRFL, "CRFL", federation.smoothing),
        (federation.fairness is None, "no fairness", federation.fairness),
        (not federation.private, "no privacy", federation.privacy),
    )
    for holds, what, got in needs:
        if not holds:
            raise ValueError(f"certify: the theorem is of {what}; got {got}")


def _plain(optimizer: Optimizer) -> bool:
    return (
        type(optimizer) is SGD
        and optimizer.momentum is None
        and optimizer.weight_decay is None
        and isinstance(optimizer.learning_rate, np.ndarray)
    )


def _steps_and_rate(
    federation: Federation, data: FederatedData, largest: float
) -> tuple[int, float]:
    """How many steps the largest client takes, and how far a gradient moves the model in each."""
    algorithm, rate = federation.algorithm, float(np.asarray(federation.optimizer.learning_rate))
    size = min(algorithm.batch_size or data.capacity, data.capacity)
    steps, _ = algorithm.checked_uses(-(-data.capacity // size))
    if isinstance(algorithm, FedAvg):
        local = float(np.asarray(algorithm.optimizer.learning_rate))
        rate, most = rate * local, 4 / (1 + largest**2)
        if steps > 1 and local > most:
            raise ValueError(
                "certify: local steps must not drive two models apart, so their rate must be at "
                f"most 4 / (1 + B^2) = {most:.3g} for inputs of norm up to B = {largest:.3g}; "
                f"got {local:g}"
            )
    return steps, rate


@jax.jit
def _largest_norm(data: FederatedData) -> Float[Array, ""]:
    def norm(sample: Array) -> Array:
        return jnp.linalg.norm(data.normalise(sample[None]).astype(jnp.float32).ravel())

    return jnp.max(jax.lax.map(norm, data.inputs, batch_size=AT_ONCE))


@functools.partial(jax.jit, static_argnames=("objective", "draws"))
def _votes(
    objective: Objective,
    params: Float[Array, " d"],
    model_state: ModelState,
    data: FederatedData,
    noise: Float[Array, ""],
    key: Key[Array, ""],
    draws: int,
) -> Int[Array, "N c"]:
    """How many noisy copies of the model take each test sample for each class."""

    def vote(total: Array, key: Array) -> tuple[Array, None]:
        drawn = normal(key, params.shape, jnp.float32)
        copy = objective.unravel(params + (noise * drawn).astype(params.dtype))

        def answer(sample: Array) -> Array:
            seen = data.normalise(sample[None])
            return jnp.argmax(objective.logits(copy, model_state, seen)[0])

        answers = jax.lax.map(answer, data.test_inputs, batch_size=objective.at_once)
        return total + jax.nn.one_hot(answers, data.classes, dtype=jnp.int32), None

    start = jnp.zeros((data.test_inputs.shape[0], data.classes), jnp.int32)
    return jax.lax.scan(vote, start, jax.random.split(key, draws))[0]
