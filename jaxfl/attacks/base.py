"""What Byzantine clients do: to their data, and to the messages they send."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.component import Component, capability
from jaxfl.contracts import expect_like, name_of, own_code
from jaxfl.numerics import rows
from jaxfl.numerics.stream import Stream
from jaxfl.types import Batch, Context, Spec, State, Struct, present_mask

NOTHING, OWN, ALL = "nothing", "its own updates", "all honest updates"


class ClientView(Struct):
    """What an attack on data is told about the client whose batch it changes."""

    id: Int[Array, ""]
    byzantine: Bool[Array, ""]
    rank: Int[Array, ""]
    """Its number among the population's Byzantine clients, from 0; meaningless for others."""
    round: Int[Array, ""]
    classes: int = struct.field(pytree_node=False, default=2)
    logits: Callable[[Array], Array] | None = struct.field(pytree_node=False, default=None)
    """Maps inputs to the logits of the model that the client received."""
    peak: tuple[float, ...] = struct.field(pytree_node=False, default=(1.0,))
    """The largest value of an input, per channel: white in an image."""


class Defence(Struct):
    """The defence as an adaptive attack sees it: the rule, its memory, not the server's key."""

    aggregator: Aggregator
    state: State
    context: Context
    start: State = ()
    """The rule's memory at the start of a run."""
    privacy: Any = None
    """The mechanism of privacy, whose hooks stand between the messages and the rule."""
    memory: State = ()
    """The mechanism's."""
    noise: Key[Array, " n"] | None = None
    """Where the mechanism comes after the attack: keys that are not those of the round."""
    factors: Float[Array, " n"] | None = None
    """What fairness then multiplies the messages by."""

    def guessed(self, likely: Float[Array, " d"], standing: Int[Array, " n"]) -> "Defence":
        """The defence as those know it who see their own updates only.

        The server's own update and samples are no attacker's, nor is a memory of what honest
        clients sent, nor how many samples these have.

        Args:
          likely: what they take the server's own update for.
          standing: the attackers' rows that stand in for all rows.
        """
        given, shares = self.context, self.context.weights[standing]
        context = given.replace(
            weights=rows.safe_ratio(shares, jnp.sum(shares)),
            root_update=None if given.root_update is None else likely,
            root_batch=jax.tree.map(jnp.zeros_like, given.root_batch),
        )
        state = self.state if self.aggregator.public_memory else self.start
        return self.replace(context=context, state=state, factors=None)

    def received(self, updates: rows.Rows) -> Float[Array, "n d"]:
        """What the rule is given where clients send these updates."""
        sent = rows.held(updates)
        if self.privacy is None:
            return sent
        assert self.context.byzantine is not None
        if self.noise is None:
            crafted = jax.vmap(functools.partial(self.privacy.checked, "crafted"))(sent)
            sent = jnp.where(self.context.byzantine[:, None], crafted, sent)
        else:
            message = functools.partial(self.privacy.checked, "message")
            sent = jax.vmap(message)(sent, self.noise, self.context.byzantine)
        if self.factors is not None:
            sent = sent * self.factors[:, None].astype(sent.dtype)
        return self.privacy.checked("bound", sent, self.memory)[0]

    def probe(self, updates: rows.Rows) -> Float[Array, " d"]:
        """What the server would make of these updates, up to its own randomness."""
        received = self.received(updates)
        return self.aggregator.checked(received, self.state, self.context).update


class AttackView(Struct):
    """All that an attack on messages may look at in one round."""

    updates: Float[Array, "n d"]
    """The honest rows and, in the attackers' rows, what they would send if they were honest. To an
    attack that declares ``streams``, it may be a ``Stream`` that never holds all of them."""
    key: Key[Array, ""]
    """The attackers' own randomness."""
    defence: Defence
    """The actual defence, to probe."""
    round: Int[Array, ""]
    params: Float[Array, " d"] | None
    weights: Float[Array, " n"]
    honest: Bool[Array, " n"]
    """Rows of honest clients, present and finite: one honest NaN must not disarm the attack."""
    own: Bool[Array, " n"]
    """Rows of attackers, present and finite."""
    attackers: Int[Array, " a"]
    """Indices of the attackers' rows, ascending, padded with n."""
    ranks: Int[Array, " a"]
    """The number of each attacker among the population's Byzantine clients, from 0."""
    client_ids: Int[Array, " n"]

    @property
    def count(self) -> Int[Array, ""]:
        """How many attackers there are."""
        return jnp.sum(self.attackers < self.honest.shape[0], dtype=jnp.int32)

    def own_rows(self) -> Float[Array, "a d"]:
        """What the attackers would send if they were honest (arbitrary in padded places)."""
        if isinstance(self.updates, Stream):
            return self.updates.take(self.attackers)
        return self.updates.at[self.attackers].get(mode="clip")

    def send(self, crafted: Float[Array, "a_or_1 d"]) -> rows.Rows:
        """The updates with the attackers' rows replaced by the crafted ones."""
        if isinstance(self.updates, Stream):
            return self._send_streamed(self.updates, crafted.astype(self.updates.dtype))
        return self.updates.at[self.attackers].set(self.full(crafted), mode="drop")

    def _send_streamed(self, updates: Stream, crafted: Float[Array, "a_or_1 d"]) -> Stream:
        place = jnp.full((updates.shape[0],), -1, jnp.int32)
        numbers = jnp.arange(self.attackers.shape[0], dtype=jnp.int32)
        place = place.at[self.attackers].set(numbers, mode="drop")

        def sent(row: Array, place: Array) -> Array:
            own = crafted[jnp.clip(place, 0, crafted.shape[0] - 1)]
            return jnp.where(place < 0, row, own)

        return updates.each(sent, place)

    def full(self, crafted: Float[Array, "a_or_1 d"]) -> Float[Array, "a d"]:
        """One row for each attacker, of the updates' type."""
        shape = (self.attackers.shape[0], self.updates.shape[1])
        return jnp.broadcast_to(crafted, shape).astype(self.updates.dtype)


class Attack(Component):
    """A Byzantine strategy. Abstract.

    An attack on messages declares ``crafts`` and overrides ``craft``, an attack on data declares
    ``poisons`` and overrides ``poison``. What is crafted is written over the rows of Byzantine
    clients and over nothing else, so an attack cannot touch an honest row even by mistake.

    Raises:
      TypeError: a class declares one of the two without its method, or has a method that it does
        not declare (raised when the class is defined); it has neither and is not ``NoAttack``
        (raised when an attack is made).
    """

    poisons = capability(False)
    """Changes the data of Byzantine clients."""
    crafts = capability(False)
    """Changes the messages of Byzantine clients."""
    knows = capability(OWN)
    """What they know besides the model; with what they control, this is the threat model."""
    probes = capability(False)
    """Tries out the defence."""
    follows_model = capability(False)
    """Needs the model's parameters in every round."""
    needs_root = capability(False)
    """Knows the server's own update, so the defence must have one."""

    @capability
    def streams(self) -> bool:
        """Needs no more of the updates than passes over their rows, which are never all held."""
        return not self.crafts

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for trait, method in (("crafts", "craft"), ("poisons", "poison")):
            # A capability that depends on fields counts as declared.
            declared = depends_on_fields(cls, trait) or getattr(cls, trait)
            overrides = getattr(cls, method) is not getattr(Attack, method)
            if overrides and not declared:
                raise TypeError(
                    f"{cls.__name__} overrides {method} but does not declare it: "
                    f"add {trait} = capability(True)"
                )
            if declared and not overrides:
                raise TypeError(f"{cls.__name__} declares {trait} but does not override {method}")

    def __post_init__(self) -> None:
        super().__post_init__()
        cls = type(self)
        idle = cls.craft is Attack.craft and cls.poison is Attack.poison
        if idle and not isinstance(self, NoAttack):
            raise TypeError(f"{cls.__name__} is abstract: override craft or poison")

    @classmethod
    def example(cls) -> "Attack":
        """An attack of this class, for tables and the contract tests."""
        return cls()

    @classmethod
    def threat(cls) -> tuple[str, str]:
        """The threat model of the class in words: what the attackers control, what they know."""
        example = cls.example()
        controlled, _ = example.threat_model
        known = f"{ALL}, or {OWN}" if depends_on_fields(cls, "knows") else example.knows
        return controlled, known + _besides(example.needs_root, example.probes)

    @property
    def threat_model(self) -> tuple[str, str]:
        """As ``threat``, but of this attack with its settings."""
        controls = (("its data", self.poisons), ("its messages", self.crafts))
        controlled = " and ".join(what for what, yes in controls if yes) or "nothing"
        return controlled, self.knows + _besides(self.needs_root, self.probes)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        """Raises ValueError where the attack does not fit the data."""

    @property
    def backdoor(self) -> Any:
        """The attack that plants a trigger, if any: its success is measured."""
        return None

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run."""
        return ()

    def observe(self, view: AttackView, state: State) -> State:
        """The memory after a round in which ``craft`` is not used."""
        return state

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        """The batch a Byzantine client trains on."""
        return batch

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]:
        """The rows that the attackers send: one per attacker, or one that all of them send.

        Args:
          view: the updates, the round, who is honest, where the attackers are, the defence.
          state: the attack's memory.

        Returns:
          The rows, and the memory for the next round.
        """
        return view.own_rows(), state

    def __call__(
        self,
        updates: Array | np.ndarray,
        byzantine: Array | np.ndarray,
        *,
        key: Key[Array, ""] | None = None,
        defence: Aggregator | None = None,
        context: Context | None = None,
    ) -> Float[Array, "n d"]:
        """Attacks updates ``[n, d]`` in a notebook; ``byzantine`` ``[n]`` marks the attackers.

        ``defence`` is what an adaptive attack works against, ``context`` what that defence knows
        besides the updates. An attack with memory is in its first round.

        Raises:
          ValueError: the attack probes the defence and none is given, needs a model, or the
            arguments are not a matrix of floats and its mask.
        """
        if self.probes and defence is None:
            raise ValueError(
                f"{type(self).__name__} works against a defence: call it with one, such as "
                "attack(updates, byzantine, defence=Median())"
            )
        if self.follows_model:
            raise ValueError(f"{type(self).__name__} needs a model: use it in a simulation")
        updates, byzantine = jnp.asarray(updates), jnp.asarray(byzantine, bool)
        if updates.ndim != 2 or byzantine.shape != updates.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}: updates must be [n, d] and byzantine [n]; got shapes "
                f"{updates.shape} and {byzantine.shape}"
            )
        if not jnp.issubdtype(updates.dtype, jnp.floating):
            raise ValueError(
                f"{type(self).__name__}: updates must be floating-point numbers; "
                f"got {updates.dtype}"
            )
        key = jax.random.key(0) if key is None else key
        defence = Mean() if defence is None else defence
        context = Context.of(updates.shape[0]) if context is None else context
        if self.probes:
            # The rule's own call says what it needs and was not given.
            jax.eval_shape(lambda u: defence(u, context=context), updates)
        return _attack(self, updates, byzantine, key, defence, context)


@jax.jit
def _attack(attack, updates, byzantine, key, defence, context):
    n, d = updates.shape
    spec = Spec(population=n, cohort=n, dim=d, max_byzantine=n, dtype=updates.dtype)
    start = defence.init(spec)
    probe = Defence(aggregator=defence, state=start, context=context, start=start)
    return attack_rows(attack, updates, byzantine, attack.init(spec), context, key, probe, n)[0]


@jax.named_scope("attack")
def attack_rows(
    attack: Attack,
    updates: rows.Rows,
    byzantine: Bool[Array, " n"],
    state: State,
    context: Context,
    key: Key[Array, ""],
    defence: Defence,
    max_byzantine: int,
    ranks: Int[Array, " n"] | None = None,
) -> tuple[rows.Rows, State]:
    """The updates with the Byzantine rows rewritten, and the attack's new memory.

    ``ranks``: each row's number among the population's Byzantine clients; None: as they come.
    """
    if max_byzantine == 0 or not attack.crafts:
        return updates, state
    n = updates.shape[0]
    usable = present_mask(context, n) & jnp.isfinite(rows.squared_norms(updates))
    attackers = jnp.nonzero(byzantine, size=max_byzantine, fill_value=n)[0].astype(jnp.int32)
    if ranks is None:
        ranks = jnp.cumsum(byzantine, dtype=jnp.int32) - 1
    view = AttackView(
        updates=updates,  # pyright: ignore[reportArgumentType]
        key=key,
        defence=defence,
        round=context.round,
        params=context.params,
        weights=context.weights,
        honest=~byzantine & usable,
        own=byzantine & usable,
        attackers=attackers,
        ranks=ranks.at[attackers].get(mode="clip"),
        client_ids=context.client_ids,
    )
    with own_code(attack, ".craft"):
        crafted, memory = attack.craft(view, state)
    _check_crafted(f"{name_of(attack)}.craft", crafted, max_byzantine, updates.shape[1])
    expect_like(f"{name_of(attack)}.craft returned the memory", memory, state)
    return view.send(crafted), memory


def _check_crafted(name: str, crafted: Any, attackers: int, dim: int) -> None:
    found = getattr(crafted, "shape", type(crafted).__name__)
    if found not in ((1, dim), (attackers, dim)):
        rows = f"1 or {attackers}" if attackers > 1 else "1"
        raise ValueError(f"{name} returned {found}; needs ({rows}, {dim})")


def depends_on_fields(cls: type[Component], name: str) -> bool:
    """Whether a capability depends on the fields, so that only an instance has a value."""
    return not hasattr(cls, name)


def _besides(root: bool, probes: bool) -> str:
    return ", the server's update" * root + "; tries the defence" * probes


class NoAttack(Attack):
    """Byzantine clients follow the protocol: the baseline of every table.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> NoAttack()(updates, byzantine)[4].round(2)
    Array([4., 4.], dtype=float32)
    """

    name = "none"
