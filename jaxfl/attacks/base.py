"""What Byzantine clients do: to their data, and to the messages they send."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator, Mean
from jaxfl.attacks.views import AttackView, ClientView, Defence, Learning
from jaxfl.component import Component, capability, changed_since
from jaxfl.contracts import expect_like, name_of, own_code
from jaxfl.models.objective import Objective
from jaxfl.numerics import rows
from jaxfl.types import Batch, Context, Spec, State, present_mask

NOTHING, OWN, ALL = "nothing", "its own updates", "all honest updates"


class Attack(Component):
    """A Byzantine strategy. Abstract.

    An attack on messages declares ``crafts`` and ``knows`` and overrides ``craft``, an attack on
    data declares ``poisons`` and overrides ``poison``. What is crafted is written over the rows of
    Byzantine clients and over nothing else: an attack cannot touch an honest row even by mistake.

    Raises:
      TypeError: a class declares one of the two without its method, or has a method that it does
        not declare, or crafts messages and does not say what it knows (raised when the class is
        defined); it has neither and is not ``NoAttack`` (raised when an attack is made).

    >>> updates, byzantine = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([False, False, True])
    >>> jaxfl.Zero()(updates, byzantine)
    Array([[1.],
           [3.],
           [0.]], dtype=float32)
    """

    poisons = capability(False)
    """Changes the data of Byzantine clients."""
    crafts = capability(False)
    """Changes the messages of Byzantine clients."""
    trains = capability(False)
    """Changes how Byzantine clients train: what becomes of their gradients."""
    learns = capability(False)
    """Changes its memory before clients train, from the model and an attacker's own samples."""
    needs_rare = capability(False)
    """Has samples that no honest client has: ``data.rare``."""
    knows = capability(OWN)
    """What they know besides the model; with what they control, this is the threat model. On it
    rests what mechanisms of privacy guarantee: a class that overrides ``craft`` says it anew,
    unless the class that said it left ``craft`` to be written."""
    probes = capability(False)
    """Tries out the defence."""
    made_for = capability[tuple[type[Aggregator], ...]](())
    """Rules that it was thought out against."""
    follows_model = capability(False)
    """Needs the model's parameters in every round."""
    needs_root = capability(False)
    """Knows the server's own update, so the defence must have one."""

    @capability
    def backdoor(self) -> Any:
        """The attack that plants a trigger, if any: its success is measured."""
        return None

    @capability
    def streams(self) -> bool:
        """Needs no more of the updates than passes over their rows, which are never all held."""
        return not self.crafts

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        methods = {"crafts": "craft", "poisons": "poison", "trains": "bend", "learns": "learn"}
        for trait, method in methods.items():
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
        varies = depends_on_fields(cls, "knows")
        # Those that know more or less by their fields hand a view on to others' ``observe``.
        reads = {"craft", "known"} if varies else {"craft", "known", "observe"}
        unsaid = sorted(reads.intersection(changed_since(cls, "knows")))
        if unsaid and (varies or cls.knows in (NOTHING, OWN)):
            raise TypeError(
                f"{cls.__name__} overrides {unsaid[0]} but does not say what it knows: add "
                "knows = capability(ALL), or OWN or NOTHING, of jaxfl.attacks.base"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        cls = type(self)
        idle = cls.craft is Attack.craft and cls.poison is Attack.poison
        if idle and not isinstance(self, NoAttack):
            raise TypeError(f"{cls.__name__} is abstract: override craft or poison")
        if self.knows not in (NOTHING, OWN, ALL):
            raise ValueError(
                f"{cls.__name__}.knows must be {NOTHING!r}, {OWN!r} or {ALL!r}; got {self.knows!r}"
            )

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
        data, training = ("its data", self.poisons), ("its training", self.trains)
        controls = (data, training, ("its messages", self.crafts))
        controlled = " and ".join(what for what, yes in controls if yes) or "nothing"
        return controlled, self.knows + _besides(self.needs_root, self.probes)

    def aims_at(self, defence: Aggregator) -> bool:
        """Whether it tries out the defence, or is made for its rule.

        That of a pipeline, or of a rule around a rule, is the one inside.
        """
        rule: Any = defence
        while isinstance(rule, Aggregator):
            if self.probes or isinstance(rule, self.made_for):
                return True
            rule = getattr(rule, "rule", None)
        return False

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        """Raises ValueError where the attack does not fit the data."""

    def check_model(self, objective: Objective) -> None:
        """Raises ValueError where the attack does not fit the model."""

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run."""
        return ()

    def observe(self, view: AttackView, state: State) -> State:
        """The memory after a round in which ``craft`` is not used."""
        return state

    def learn(self, own: Learning, state: State) -> State:
        """The memory with which the attackers enter a round.

        Args:
          own: the model, and the samples of the first of the Byzantine clients.
          state: the memory as the last round left it.
        """
        return state

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        """The batch a Byzantine client trains on."""
        return batch

    def prepare(self, params: Float[Array, " d"], state: State) -> Any:
        """What ``bend`` needs to know this round, computed once for all attackers."""
        return ()

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        """What a Byzantine client takes for a gradient, in each of its local steps.

        Args:
          gradient: of its loss, poisoned data included.
          prepared: what ``prepare`` answered.
          client: which attacker it is.
        """
        return gradient

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
    spec = Spec(
        population=n,
        cohort=n,
        dim=d,
        max_byzantine=n,
        dtype=updates.dtype,
        segments=context.segments,
    )
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
    # Who of the others takes part is not among what attackers know who know their own rows.
    others = usable if attack.knows not in (NOTHING, OWN) else jnp.ones(n, bool)
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
        honest=~byzantine & others,
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
