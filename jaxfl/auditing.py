"""What an adversary learns from one real run: a lower bound on epsilon beside the accountant's.

Fair coins plant canaries, the federation runs as it is, and the coins are guessed from what the
mechanism's adversary sees. Guesses better than (epsilon, delta) allows refute that epsilon.
Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023; Andrew et
al., "One-shot empirical privacy estimation for federated learning", ICLR 2024.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxfl.accounting import calibrate, guarantee
from jaxfl.accounting.releases import deployment
from jaxfl.clients import Broadcast, ClientAlgorithm, FedSGD, Message, Samples
from jaxfl.component import capability, promises
from jaxfl.data.federated import FederatedData
from jaxfl.federation import Federation
from jaxfl.models.objective import Objective
from jaxfl.plan import make_plan
from jaxfl.privacy.base import clipped
from jaxfl.privacy.deployment import CLIENT, EXAMPLE, MESSAGE
from jaxfl.round import Exchange, answer, exchanged, minority_clients, receive
from jaxfl.state import MATRIX, Plan, init_state
from jaxfl.types import Batch, Context, State

GUESSED = (1.0, 0.5, 0.25, 0.125)
"""Shares of the canaries that are guessed: those that are surest."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """What one run says about epsilon at the mechanism's delta. ``audit`` makes it.

    >>> one = np.zeros(1)
    >>> Audit(1.5, upper=1.0, confidence=0.95, canaries=2, scores_in=one, scores_out=one).refuted
    True
    """

    lower: float
    """Epsilon is at least this with probability ``confidence``."""
    upper: float
    """What the accountant says; infinite where nothing is guaranteed."""
    confidence: float
    canaries: int
    scores_in: np.ndarray
    """Of the canaries that were there."""
    scores_out: np.ndarray

    @property
    def refuted(self) -> bool:
        """Whether more leaked than the accountant allows."""
        return self.lower > self.upper


class Canaries(ClientAlgorithm):
    """Another algorithm within a round, with canaries among its clients.

    A canary sends ``sign * what``. Or, where there are labels, it has ``sign * what`` with its
    label in place of its last sample, nothing if the sign is 0. The sign is 1 where the coin says
    that the canary is there, else ``absent``. The server remembers what was released last.
    """

    inner: ClientAlgorithm
    slot: Array
    """Each client's number as a canary; for those that are none, the number of canaries."""
    coins: Array
    absent: float
    what: Array
    labels: Array | None

    private = capability(True)
    post_processes = capability(True)

    def step(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, state: State, key: Array
    ) -> tuple[Message, State]:
        broadcast = broadcast.replace(server=broadcast.server[0])
        slot = len(self.coins) if samples.client is None else self.slot[samples.client]
        canary, slot = jnp.asarray(slot < len(self.coins)), jnp.minimum(slot, len(self.coins) - 1)
        sign = jnp.where(self.coins[slot], 1.0, self.absent)
        what = sign * self.what[slot]
        if self.labels is None:
            message, state = self.inner.checked_step(objective, broadcast, samples, state, key)
            update = jnp.where(canary, what.astype(message.update.dtype), message.update)
            return message.replace(update=update), state
        label = self.labels[slot]

        def load(place: Array, mask: Array, key: Array) -> Batch:
            batch, here = samples.load(place, mask, key), canary & (place == samples.count - 1)
            inputs = jnp.where(here.reshape(-1, *[1] * what.ndim), what[None], batch.inputs)
            labels, gone = jnp.where(here, label, batch.labels), here & (sign == 0)
            return Batch(inputs=inputs, labels=labels, mask=batch.mask & ~gone)

        planted = samples.replace(load=load)
        return self.inner.checked_step(objective, broadcast, planted, state, key)

    def uses(self, per_pass: int) -> tuple[int, int]:
        return self.inner.uses(per_pass)

    def finish(
        self,
        server: State,
        aggregate: Array,
        messages: Message,
        context: Context,
        share: Array,
    ) -> tuple[Array, State]:
        change, inner = self.inner.checked_finish(server[0], aggregate, messages, context, share)
        return change, (inner, aggregate)


def audit(
    federation: Federation,
    data: FederatedData,
    model: Any,
    *,
    rounds: int,
    canaries: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> Audit:
    """Runs the federation once, as ``Simulation`` would, with canaries among honest clients.

    Where a mechanism protects a client's whole message, a canary is a client that sends a vector
    of ten times the clip or nothing; the adversary is the server, which sees what clients send.
    Where it protects all data of one client: the same; the adversary sees what the server
    releases. Where it protects one example, a canary is an example of noise in place of a
    client's last one, or nothing there; the adversary is the server, which knows how many samples
    a client has. Where neighbours differ by replacement, an absent canary sends the opposite
    vector.

    With ``canaries=None`` every honest client is a canary; for central privacy at most as many
    as the model has parameters, because more would hide one another.

    Raises:
      ValueError: no privacy, fairness weights, smoothing, privacy of clients without
        Mean(weighted=False), privacy of examples without FedSGD, privacy of something else, or
        too many canaries.
    """
    _check(federation)
    sizes = np.asarray(data.count)
    federation = calibrate(federation, sizes, rounds)
    plan = make_plan(federation, data, model, storage=MATRIX)
    wide = plan.spec.dim * federation.algorithm.width
    state = init_state(federation, plan, seed)
    if federation.privacy.protects == EXAMPLE and data.labels.ndim > 1:
        raise ValueError("audit: knows no canary for next words; it needs labels that are classes")
    honest = np.flatnonzero(~np.asarray(state.byzantine))
    by_client = federation.privacy.protects == CLIENT
    m = min(len(honest), wide if by_client else len(honest)) if canaries is None else canaries
    if not 2 <= m <= len(honest):
        raise ValueError(f"audit: canaries must be from 2 to {len(honest)} (honest); got {m}")
    planted = _planted(federation, data, rounds, wide, honest[:m], seed)
    state = state.replace(server=(state.server, jnp.zeros((wide,), plan.spec.dtype)))
    found = _run(federation.replace(algorithm=planted), plan, data, state, rounds)

    scores, participations, coins = jax.device_get((*found, planted.coins))
    scores = np.nan_to_num(scores.astype(np.float64))
    taken = None if by_client else int(np.max(participations))
    upper: Any = guarantee(federation, sizes, rounds, participations=taken)
    lower = _lower(scores, coins, upper.delta, confidence)
    return Audit(lower, upper.epsilon, confidence, m, scores[coins], scores[~coins])


def _check(federation: Federation) -> None:
    """Raises ValueError where no canary is known for the federation."""
    if not federation.private or federation.fairness or federation.smoothing:
        raise ValueError(
            "audit: needs a federation with privacy and without fairness weights or smoothing"
        )
    rule, algorithm = federation.aggregator, federation.algorithm
    name, protects = type(federation.privacy).__name__, federation.privacy.protects
    if protects not in (EXAMPLE, MESSAGE, CLIENT):
        raise ValueError(f"audit: knows no canary for {name}, which protects {protects}")
    if protects == CLIENT and not promises(rule, "averages"):
        raise ValueError(f"audit: {name} goes with Mean(weighted=False); got {rule}")
    if protects == EXAMPLE and not isinstance(algorithm, FedSGD):
        raise ValueError(f"audit: {name} goes with FedSGD; got {algorithm}")
    if protects == EXAMPLE and federation.privacy.reach is None:
        raise ValueError(f"audit: {name} does not declare its reach, the clip of a gradient")


def _planted(
    federation: Federation,
    data: FederatedData,
    rounds: int,
    wide: int,
    chosen: np.ndarray,
    seed: int,
) -> Canaries:
    """The federation's algorithm with canaries among its clients: those chosen."""
    privacy = federation.privacy
    by_example, m = privacy.protects == EXAMPLE, len(chosen)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), 3)
    slot = np.full(data.clients, m, np.int32)
    slot[chosen] = np.arange(m)
    if by_example:
        what = jax.random.normal(keys[0], (m, *data.sample_shape))
    elif privacy.norm == 1:
        what = jax.nn.one_hot(jnp.arange(m) % wide, wide)  # longest where norms are sums
    else:
        # Orthogonal and dense: cosines with random signs.
        number, place = np.arange(m)[:, None] % wide, np.arange(wide)[None] + 0.5
        waves = np.cos(np.pi / wide * number * place) * np.sqrt((1 + (number > 0)) / wide)
        what = jnp.asarray(waves, jnp.float32) * jax.random.rademacher(keys[0], (1, wide))
    reach = 1.0 if privacy.reach is None else float(np.max(privacy.reach))
    strength = 1.0 if by_example else 10 * reach
    return Canaries(
        inner=federation.algorithm,
        batch_size=federation.algorithm.batch_size,
        slot=jnp.asarray(slot),
        coins=jax.random.bernoulli(keys[2], shape=(m,)),
        absent=-1.0 if privacy.replaces(deployment(federation, rounds)) else 0.0,
        what=strength * what,
        labels=jax.random.randint(keys[1], (m,), 0, data.classes) if by_example else None,
    )


@functools.partial(jax.jit, static_argnames=("plan", "rounds"))
def _run(
    federation: Federation, plan: Plan, data: FederatedData, state: State, rounds: int
) -> tuple[Float[Array, " m"], Int[Array, " K"]]:
    """The whole run: every canary's score, and how often each client took part."""
    planted: Any = federation.algorithm
    privacy, minority = federation.privacy, minority_clients(data, state)

    def body(carry: Any, _: None) -> tuple[Any, None]:
        before, scores = carry
        received = receive(federation, plan, data, before)
        state, _record = answer(federation, plan, before, received, minority)
        if privacy.protects == CLIENT:
            # A round of a larger clip has more noise.
            released = state.server[1] / privacy.threshold(before.privacy)
            seen = jnp.matmul(planted.what, released, precision="highest")
        else:
            seen = _excess(federation, plan, data, before, exchanged(received))
        return (state, scores + seen), None

    (state, scores), _ = jax.lax.scan(body, (state, jnp.zeros(len(planted.coins))), None, rounds)
    return scores, state.participations


def _excess(
    federation: Federation, plan: Plan, data: FederatedData, state: State, messages: Exchange
) -> Array:
    """How far each canary's message goes its way, less the others' mean: noise that all share."""
    planted: Any = federation.algorithm
    ids, sent, along, m = messages.ids, messages.sent, planted.what, len(planted.coins)
    if planted.labels is not None:
        along = _gradients(planted, federation.privacy, plan, state)
        size = planted.batch_size or data.capacity
        size = jnp.minimum(size, data.count.at[ids].get(mode="clip"))
        sent = sent * size.astype(sent.dtype)[:, None]
    place = planted.slot.at[ids].get(mode="fill", fill_value=m)
    here = jnp.zeros((m,), bool).at[place].set(True, mode="drop")
    received = jnp.zeros_like(along).at[place].set(sent.astype(along.dtype), mode="drop")
    others = (jnp.sum(received, axis=0)[None] - received) / jnp.maximum(jnp.sum(here) - 1, 1)
    return jnp.where(here, jnp.sum(along * (received - others), axis=1), 0)


def _gradients(planted: Any, privacy: Any, plan: Plan, state: State) -> Float[Array, "m d"]:
    """What each canary example adds to a sum of clipped gradients, less what its absence does."""
    params, loss = plan.objective.unravel(state.params), plan.objective.loss

    def gradient(inputs: Array, label: Array) -> Array:
        batch = Batch(inputs[None], label[None], jnp.ones((1,), bool))
        whole = jax.grad(loss, has_aux=True)(params, state.model_state, batch, jax.random.key(0))
        flat = ravel_pytree(whole[0])[0].astype(jnp.float32)
        return clipped(flat, jnp.asarray(privacy.reach, jnp.float32))

    there = jax.vmap(gradient)(planted.what, planted.labels)
    return there - jax.vmap(gradient)(-planted.what, planted.labels) if planted.absent else there


def _lower(scores: np.ndarray, coins: np.ndarray, delta: float, confidence: float) -> float:
    """The lower bound: canaries above a middle are guessed in, below it out, the surest first.

    The reverse guess is tried too: an attack can flip the sign of a sum. The best of all guesses
    counts, and the confidence pays for having chosen; no guess depends on the coins.
    """
    from jax_privacy.auditing import CanaryScoreAuditor, Explicit

    excess = scores - np.mean(np.quantile(scores, (0.1, 0.9)))  # between two heaps, if there are
    sure, above = np.abs(excess), excess > 0
    surest, each = np.sort(sure)[::-1], (1 - confidence) / (2 * len(GUESSED))
    bounds = []
    for right in (above == coins, above != coins):
        # Guesses on both sides as one-sided ones: "in" are those that are right. The library
        # wants some of each kind: -1 is never guessed.
        auditor = CanaryScoreAuditor(np.append(sure[right], -1), np.append(sure[~right], -1))
        for share in GUESSED:
            threshold = Explicit(float(surest[max(round(share * len(sure)), 1) - 1]))
            bounds.append(auditor.epsilon_one_run(each, delta, threshold_strategy=threshold))
    return float(max(bounds))
