"""Every attack: what all registered names must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pinned
import pytest
from helpers import products_below_highest

from jaxfl.aggregators import (
    CenteredClipping,
    FLTrust,
    FoolsGold,
    LossRejection,
    Mean,
    Median,
    Pipeline,
)
from jaxfl.attacks import (
    A3FL,
    ALIE,
    DBA,
    IPM,
    AGRTailored,
    Attack,
    Backdoor,
    BitFlip,
    ByzMean,
    ClientView,
    Combined,
    Defence,
    FLTrustAdaptive,
    FreeRider,
    Gaussian,
    GradientAttack,
    InformedAttack,
    LabelFlip,
    Mimic,
    Mixed,
    NoAttack,
    Onset,
    OptimizedALIE,
    OptimizedIPM,
    Scaling,
    ShiftSearch,
    SignFlip,
    TimeVarying,
    TNBSStealth,
)
from jaxfl.attacks.base import ALL, NOTHING, OWN, attack_rows
from jaxfl.attacks.branches import Branches
from jaxfl.component import capability
from jaxfl.models import Objective, Softmax
from jaxfl.preaggregators import NNM
from jaxfl.registry import AGGREGATORS, ATTACKS
from jaxfl.types import Batch, Context, Segment, Spec

pytestmark = pytest.mark.grouped_by("name")

N, D, MOST = 8, 20, 4
NAMED = {name: cls.example() for name, cls in ATTACKS.items()}
NOT_FINITE = {name for name, a in NAMED.items() if not np.isfinite(getattr(a, "value", 0.0))}
"""They send one number that is not finite."""
FROM_THE_SECOND_ROUND = {name for name, attack in NAMED.items() if attack.trains}
"""They look at a move of the model first, which also changes how they train."""
every_attack = pytest.mark.parametrize("name", sorted(NAMED))


def draw(n=N, d=D):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32) + np.float32(0.3)


def mask(*attackers, n=N):
    return np.isin(np.arange(n), attackers)


def layers(d):
    """A dense layer and an adapter of rank 1."""
    first, second = d // 2 - d // 2 % 2, d - d // 4
    return (
        Segment("a.bias", 0, (2,), "bias"),
        Segment("a.kernel", 2, (first // 2 - 1, 2), "kernel"),
        Segment("b.lora_a", first, (second - first, 1), "lora_a"),
        Segment("b.lora_b", second, (1, d - second), "lora_b"),
    )


def context(n=N, d=D, **known):
    known = {"segments": layers(d)} | known
    server = {"params": jnp.ones(d), "root_update": jnp.full(d, 0.3, jnp.float32)}
    return Context.of(n, **(server | known))


@jax.jit
def at_round(attack, x, byzantine, state, given, key):
    """The attacked rows as the simulator makes them, and the attack's memory."""
    rule = FLTrust() if attack.needs_root else Median()
    defence = Defence(aggregator=rule, state=(), context=given)
    return attack_rows(attack, x, byzantine, state, given, key, defence, MOST)


def attacked(attack, x, byzantine, *, when=0, state=None, seed=0, **known):
    n, d = x.shape
    if state is None:
        state = attack.init(Spec(n, n, d, MOST, x.dtype))
    given = context(n, d, round=jnp.int32(when), **known)
    return at_round(
        attack, jnp.asarray(x), jnp.asarray(byzantine), state, given, jax.random.key(seed)
    )


BRANCHES = [n for n, a in sorted(NAMED.items()) if not (a.learns or a.probes or a.needs_root)]
TOGETHER = Branches(attacks=tuple(NAMED[name] for name in BRANCHES), which=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", BRANCHES)
def test_as_a_branch_of_many_it_is_what_it_is_alone(name):
    """Beside an honest client of NaN, too: who knows less than others is told no more."""
    x, byzantine, which = draw(), mask(1, 2), BRANCHES.index(name)
    x[5] = np.nan
    state = TOGETHER.init(Spec(N, N, D, MOST, x.dtype))
    for when in range(2):
        together = TOGETHER.replace(which=which)
        sent, after = attacked(together, x, byzantine, when=when, state=state)
        alone, memory = attacked(NAMED[name], x, byzantine, when=when, state=state[which])
        np.testing.assert_allclose(sent, alone, rtol=1e-6, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, after[which], memory)
        state = after


def test_attacks_that_learn_are_no_branches():
    with pytest.raises(ValueError, match="Branches: A3FL learns, which it does alone"):
        Branches(attacks=(A3FL(),), which=0)


@every_attack
def test_every_product_is_of_the_highest_precision(name):
    """On the memory of a later round, so that nothing is left out for a first one."""
    attack, x, state = NAMED[name], jnp.asarray(draw()), NAMED[name].init(Spec(N, N, D, MOST))
    given, key = context(round=jnp.int32(2)), jax.random.key(0)
    lowered = at_round.lower(attack, x, jnp.asarray(mask(2, 3)), state, given, key)
    assert not products_below_highest(lowered)


@functools.cache
def draws(name):
    """Whether the attack follows its key: one draw per place, or a random start."""
    attack, x = NAMED[name], draw()
    one, two = (np.asarray(attacked(attack, x, mask(2, 3), seed=seed)[0]) for seed in (0, 1))
    return not np.array_equal(one, two, equal_nan=True)


def several(attack):
    """Whether it is made of attacks that take turns, so that its traits are not those of all."""
    return hasattr(attack, "attacks")


def with_partial_knowledge(attack):
    inner = {"attack": None} if hasattr(attack, "attack") else {}
    return attack.replace(knowledge="partial", **inner)


def test_every_registered_attack_has_an_example():
    assert {name: type(attack) for name, attack in NAMED.items()} == ATTACKS


@pytest.mark.parametrize("name", sorted(pinned.NAMES["Attack"]))
def test_these_attacks_draw_and_no_others(name):
    drawing = {"fang_trim", "free_rider", "gaussian", "gradient", "mimic", "noise"}
    assert draws(name) == (name in drawing)


@every_attack
def test_honest_rows_are_untouched_for_every_number_of_attackers(name):
    attack, x = NAMED[name], draw()
    rng = np.random.default_rng(1)
    for count in range(MOST + 1):
        byzantine = np.isin(np.arange(N), rng.permutation(N)[:count])
        rows = np.asarray(attacked(attack, x, byzantine)[0])
        assert rows[~byzantine].tobytes() == x[~byzantine].tobytes()
        if name not in NOT_FINITE:
            assert np.isfinite(rows).all()
        if attack.crafts and count and name not in FROM_THE_SECOND_ROUND:
            assert (rows[byzantine] != x[byzantine]).any(axis=1).all()
        if not attack.crafts:
            np.testing.assert_array_equal(rows, x)


@every_attack
@pytest.mark.parametrize("honest", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_nearly_nobody_is_honest(name, honest):
    """The simulation is legal, and what is sent finite."""
    x = draw(MOST)
    byzantine = np.arange(MOST) >= honest
    rows = np.asarray(attacked(NAMED[name], x, byzantine)[0])
    np.testing.assert_array_equal(rows[:honest], x[:honest])
    if name not in NOT_FINITE:
        assert np.isfinite(rows).all()


@every_attack
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_attackers_would_have_sent_cannot_spoil_the_honest(name, bad):
    attack, x, byzantine = NAMED[name], draw(), mask(1, 5)
    x[1] = bad
    rows = np.asarray(attacked(attack, x, byzantine)[0])
    assert rows[~byzantine].tobytes() == x[~byzantine].tobytes()
    if attack.knows == ALL and not several(attack):
        assert np.isfinite(rows[byzantine]).all()


@pytest.mark.parametrize("name", sorted(n for n, a in NAMED.items() if a.knows == ALL))
def test_an_honest_row_that_is_not_finite_does_not_disarm_an_attack(name):
    if draws(name) or isinstance(NAMED[name], Mixed):
        pytest.skip("draws anew, or also sends what attackers would honestly send")
    x = draw()
    broken = x.copy()
    broken[5, 3] = np.nan
    absent = ~mask(5)
    expected = attacked(NAMED[name], x, mask(2, 3), present=jnp.asarray(absent))[0][2]
    got = attacked(NAMED[name], broken, mask(2, 3))[0][2]
    assert np.isfinite(got).all()
    if not NAMED[name].probes:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(NAMED.keys() - NOT_FINITE))
def test_places_without_an_attacker_change_nothing(name):
    """At most four attackers have a place; fewer act as if there were no more places."""
    attack, x = NAMED[name], draw()
    if not attack.crafts or attack.follows_model or attack.needs_root or draws(name):
        pytest.skip("sends nothing of its own, cannot be called alone, or draws once per place")
    for attackers in [(7,), (0, 4), (2, 3, 7)]:
        byzantine = mask(*attackers)
        alone = attack(x, byzantine, defence=Median())
        np.testing.assert_allclose(attacked(attack, x, byzantine)[0], alone, rtol=1e-4, atol=1e-5)


@every_attack
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_types_and_memory_survive_a_scan(name, dtype):
    """scan itself refuses a memory whose structure, shape or type changes."""
    attack = NAMED[name]
    with jax.enable_x64(dtype == "float64"):
        spec = Spec(N, N, D, MOST, jnp.dtype(dtype))

        def step(state, x):
            rows, state = at_round.__wrapped__(
                attack, x, jnp.asarray(mask(2, 3)), state, context(), jax.random.key(0)
            )
            return state, rows

        rounds = jax.ShapeDtypeStruct((3, N, D), dtype)
        _, rows = jax.eval_shape(lambda s, r: jax.lax.scan(step, s, r), attack.init(spec), rounds)
        assert (rows.shape, rows.dtype) == ((3, N, D), dtype)


@pytest.mark.parametrize(
    "name", sorted(n for n, a in NAMED.items() if a.crafts and jax.tree.leaves(a))
)
def test_strengths_are_swept_by_vmap(name):
    """All leaves of an attack, several values at once, in one program."""
    attack, x, byzantine = NAMED[name], draw(), mask(2, 3)
    leaves, tree = jax.tree.flatten(attack)
    factors = np.array([0.5, 0.8, 1.0])
    stacked = jax.tree.unflatten(tree, [np.multiply.outer(factors, leaf) for leaf in leaves])
    swept = jax.vmap(lambda a: attacked(a, x, byzantine)[0])(stacked)
    for i, factor in enumerate(factors):
        one = jax.tree.unflatten(tree, [np.asarray(factor * leaf) for leaf in leaves])
        np.testing.assert_allclose(swept[i], attacked(one, x, byzantine)[0], rtol=1e-3, atol=1e-4)


@every_attack
def test_only_poisoning_attacks_change_data(name):
    attack = NAMED[name]
    texts = name == "token_backdoor"
    inputs = jnp.zeros((10, 6), jnp.int32) if texts else jnp.zeros((10, 6, 6))
    batch = Batch(inputs, jnp.arange(10, dtype=jnp.int32), jnp.ones(10, bool))
    # In the round when TimeVarying flips labels.
    when = next(
        (t for t in range(50) if isinstance(attack, TimeVarying) and attack.turn(t) == 2), 0
    )
    client = ClientView(jnp.int32(0), jnp.array(True), jnp.int32(0), jnp.int32(when), 10)
    client = client.replace(
        memory=attack.init(Spec(N, N, D, MOST)), rare=lambda key, count: jnp.ones((count, 6, 6))
    )
    poisoned = attack.poison(batch, client, jax.random.key(0))
    changed = bool((poisoned.labels != batch.labels).any())
    assert changed == attack.poisons
    assert poisoned.labels.dtype == batch.labels.dtype
    assert poisoned.inputs.shape == batch.inputs.shape


@every_attack
def test_the_threat_model_is_stated(name):
    attack = NAMED[name]
    assert attack.knows in (NOTHING, OWN, ALL)
    assert attack.crafts or attack.poisons or isinstance(attack, NoAttack)
    partial = getattr(attack, "knowledge", None)
    if partial is not None:
        assert attack.knows == ALL
        part = with_partial_knowledge(attack)
        assert part.knows == OWN
        assert part.threat_model[1] == OWN + "; tries the defence" * part.probes
    controls, knows = type(attack).threat()
    if callable(getattr(attack, "parts", None)):
        assert (controls, knows) == ("as its attacks", "as its attacks")
    else:
        assert controls == attack.threat_model[0]
        assert knows.startswith(f"{ALL}, or {OWN}" if partial is not None else "")


PARTIAL = sorted(n for n, a in NAMED.items() if hasattr(a, "knowledge"))


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_knowledge_reads_only_the_attackers_own_rows(name):
    attack = with_partial_knowledge(NAMED[name])
    x, byzantine = draw(), mask(1, 4, 6)
    other = np.where(byzantine[:, None], x, -3 * x[::-1])
    one, two = (np.asarray(attacked(attack, u, byzantine)[0])[byzantine] for u in (x, other))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    full = np.asarray(attacked(NAMED[name], x, byzantine)[0])[byzantine]
    assert not np.allclose(one, full, rtol=1e-3)


@pytest.mark.parametrize("name", [*PARTIAL, "alie, z of the cohort"])
def test_partial_knowledge_does_not_tell_how_many_take_part(name):
    """Central privacy hides that, and counts on attackers who know no more than their own."""
    attack = ALIE() if name not in NAMED else NAMED[name]
    attack, x, byzantine = with_partial_knowledge(attack), draw(), mask(1, 4, 6)
    ends = []
    for absent in (False, True):
        present = np.ones(N, bool)
        present[[0, 3, 7]] = not absent
        found = attacked(attack, np.where(present[:, None], x, 0), byzantine, present=present)
        ends.append(np.asarray(found[0])[byzantine])
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ShiftSearch, OptimizedIPM, OptimizedALIE, AGRTailored])
def test_a_defence_is_tried_without_who_else_takes_part(kind):
    """The mean is over those present, and others stand before attackers as it happens."""
    attack, x, key = kind.example().replace(knowledge="partial"), draw(), jax.random.key(0)
    ends = []
    for own, absent in (([1, 4, 6], []), ([1, 4, 6], [0, 3, 7]), ([0, 5, 7], [2, 3])):
        moved = x.copy()
        moved[own] = x[[1, 4, 6]]
        present = jnp.asarray(~np.isin(np.arange(N), absent))
        known, rule = context(present=present), Mean(weighted=False)
        defence = Defence(aggregator=rule, state=(), context=known, start=())
        rows = jnp.asarray(moved), jnp.asarray(mask(*own))
        state = attack.init(Spec(N, N, D, MOST))
        found, _ = jax.jit(attack_rows, static_argnums=7)(
            attack, *rows, state, known, key, defence, MOST
        )
        ends.append(np.asarray(found)[own])
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-4, atol=1e-5)


@jax.jit
def sent_against(attack, rule, memory, known, key):
    """What the attackers send where the rule remembers this, in a round of which it knows this."""
    x, byzantine = jnp.asarray(draw()), jnp.asarray(mask(1, 4, 6))
    spec = Spec(N, N, D, MOST)
    defence = Defence(aggregator=rule, state=memory, context=known, start=rule.init(spec))
    return attack_rows(attack, x, byzantine, attack.init(spec), known, key, defence, MOST)[0][1]


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        (OptimizedIPM, "root update"),
        pytest.param(OptimizedIPM, "root batch", marks=pytest.mark.slow),
        (FLTrustAdaptive, "root update"),
        *(
            pytest.param(kind, "root update", marks=pytest.mark.slow)
            for kind in (AGRTailored, OptimizedALIE, ShiftSearch)
        ),
        (OptimizedIPM, "memory"),
        (GradientAttack, "memory"),
        pytest.param(GradientAttack, "numbers of samples", marks=pytest.mark.slow),
    ],
)
def test_partial_knowledge_does_not_leak_through_the_defence_that_is_tried(kind, secret):
    random = np.random.default_rng(5)
    rule, one, two = Mean(), context(), context()
    memories = (), ()
    if secret == "root update":
        rule, two = FLTrust(), context(root_update=jnp.asarray(random.normal(size=D), jnp.float32))
    elif secret == "root batch":
        rule, (one, two) = LossRejection(f=3), (server(seed) for seed in (0, 1))
    elif secret == "memory":
        rule = FoolsGold()
        memories = [jnp.asarray(random.normal(size=(N, D)), jnp.float32) for _ in range(2)]
    else:
        one, two = (context(weights=weights_of_others(random)) for _ in range(2))
    for knowledge, equal in (("partial", True), ("full", False)):
        attack, key = kind.example().replace(knowledge=knowledge), jax.random.key(0)
        first = sent_against(attack, rule, memories[0], one, key)
        second = sent_against(attack, rule, memories[1], two, key)
        assert np.isfinite(first).all()
        assert np.allclose(first, second, rtol=1e-4, atol=1e-5) == equal


def weights_of_others(random):
    weights = np.where(mask(1, 4, 6), 0.1, 0.2 * random.random(N))
    return jnp.asarray(weights, jnp.float32)


def server(seed):
    """What the server has of its own: a model of D parameters and samples."""
    random, objective = np.random.default_rng(seed), Objective.of(Softmax(), (9,), 2)
    assert objective.dim == D
    inputs, labels = random.normal(size=(12, 9)), random.integers(0, 2, 12)
    batch = Batch(
        jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.ones(12, bool)
    )
    return context(objective=objective, root_batch=batch, learning_rate=jnp.float32(0.1))


def test_a_memory_is_public_where_it_follows_from_what_was_sent():
    public = {"centered_clipping", "sequential_centered_clipping"}
    public |= {"signguard_sim", "signguard_dist"}
    spec = Spec(N, N, D, MOST)
    rules = {name: cls.example() for name, cls in AGGREGATORS.items()}
    remembering = {name for name, rule in rules.items() if jax.tree.leaves(rule.init(spec))}
    assert {"foolsgold", "byzantine_sgd", *public} <= remembering
    # Who says so of a memory of one's own is looked at here.
    assert {name for name in remembering if rules[name].public_memory} == public
    assert Pipeline(pre=(NNM(f=1),), rule=CenteredClipping()).public_memory


def test_absent_clients_are_not_honest():
    x, absent = draw(), mask(4, 5)
    x[4:6] = 1e6
    rows, _ = attacked(IPM(scale=1.0), x, mask(0), present=jnp.asarray(~absent))
    np.testing.assert_allclose(rows[0], -x[[1, 2, 3, 6, 7]].mean(0), rtol=1e-4)


def test_a_defence_can_be_probed():
    class Probing(Attack):
        crafts = capability(True)
        knows = capability(ALL)

        def craft(self, view, state):
            return -view.defence.probe(view.updates)[None], state

    x = draw()
    np.testing.assert_allclose(
        Probing()(x, mask(1), defence=Mean())[1], -x.mean(0), rtol=1e-4, atol=1e-6
    )


def test_the_base_sends_what_is_honest():
    class Polite(Attack):
        crafts = capability(True)
        knows = capability(OWN)

        def craft(self, view, state):
            return super().craft(view, state)

    np.testing.assert_array_equal(Polite()(draw(), mask(1, 2, 6)), draw())


def test_an_attack_that_would_silently_do_nothing_is_refused():
    class Idle(Attack):
        pass

    for cls in (Attack, Idle):
        with pytest.raises(TypeError, match=f"{cls.__name__} is abstract: override craft or pois"):
            cls()
    with pytest.raises(TypeError, match="abstract class InformedAttack"):
        InformedAttack()
    with pytest.raises(TypeError, match="Silent declares crafts but does not override craft"):

        class Silent(Attack):
            crafts = capability(True)

    with pytest.raises(TypeError, match="Clean declares poisons but does not override poison"):

        class Clean(Attack):
            poisons = capability(True)

    with pytest.raises(TypeError, match=r"Sly overrides craft .* add crafts = capability\(True\)"):

        class Sly(Attack):
            def craft(self, view, state):
                return view.own_rows(), state

    with pytest.raises(TypeError, match="Nosy overrides craft but does not say what it knows"):

        class Nosy(Attack):
            crafts = capability(True)

            def craft(self, view, state):
                return view.updates[:1], state

    with pytest.raises(TypeError, match="Listening overrides observe but does not say what it kn"):

        class Listening(Gaussian):
            def observe(self, view, state):
                return view.updates

    with pytest.raises(TypeError, match="Borrowed overrides known but does not say what it knows"):

        class Borrowed(ALIE):
            def known(self, view):
                return view.honest

    with pytest.raises(TypeError, match="Turned overrides craft but does not say what it knows"):

        class Turned(SignFlip):
            def craft(self, view, state):
                return view.updates[:1], state

    class Half(Attack):
        crafts = capability(True)
        knows = capability("half of them")

        def craft(self, view, state):
            return view.own_rows(), state

    with pytest.raises(ValueError, match=r"Half\.knows must be 'nothing', 'its own up"):
        Half()

    with pytest.raises(TypeError, match="Poisoner overrides poison but does not declare it"):

        class Poisoner(Attack):
            def poison(self, batch, client, key):
                return batch


@pytest.mark.parametrize(
    "attack", [AGRTailored(), OptimizedALIE(), OptimizedIPM(), GradientAttack()]
)
def test_an_attack_on_a_defence_wants_one(attack):
    with pytest.raises(ValueError, match=f"{type(attack).__name__} works against a defence"):
        attack(draw(), mask(1))


def test_an_attack_on_the_root_update_wants_one():
    x, known_root = draw(), Context.of(N, root_update=jnp.full(D, 0.3))
    alone = FLTrustAdaptive()(x, mask(1), defence=FLTrust(), context=known_root)
    np.testing.assert_allclose(alone, attacked(FLTrustAdaptive(), x, mask(1))[0], rtol=1e-5)
    with pytest.raises(ValueError, match="FLTrust needs the server's data: pass context="):
        AGRTailored()(x, mask(1), defence=FLTrust())
    with pytest.raises(ValueError, match=r"FLTrustAdaptive works against .* such as FLTrust"):
        FLTrustAdaptive()(draw(), mask(1), defence=Median())


def test_an_attack_that_follows_the_model_wants_a_simulation():
    with pytest.raises(ValueError, match="FreeRider needs a model: use it in a simulation"):
        FreeRider()(draw(), mask(1))


@pytest.mark.parametrize(
    ("x", "byzantine"), [(np.ones((3, 2, 2)), mask(0, n=3)), (np.ones((3, 2)), mask(0, n=4))]
)
def test_updates_and_mask_must_fit(x, byzantine):
    with pytest.raises(ValueError, match=r"IPM: updates must be \[n, d\] and byzantine \[n\]"):
        IPM()(x, byzantine)


def test_updates_must_be_floats():
    with pytest.raises(ValueError, match="ALIE: updates must be floating-point numbers; got int"):
        ALIE()(np.arange(24).reshape(8, 3), mask(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByzMean(attack=LabelFlip()), "ByzMean is made of attacks on messages alone"),
        (
            lambda: ByzMean(attack=Combined(data=Backdoor(), message=Scaling(factor=2.0))),
            "ByzMean is made of attacks on messages alone; got Combined",
        ),
        (
            lambda: ByzMean(attack=ALIE(), knowledge="partial"),
            "ByzMean with partial knowledge is made of attacks that know no more; got ALIE",
        ),
        (lambda: GradientAttack(starts=(NoAttack(),)), "GradientAttack is made of attacks on mess"),
        (
            lambda: GradientAttack(starts=(ALIE(),), knowledge="partial"),
            "GradientAttack with partial knowledge is made of attacks that know no more",
        ),
        (
            lambda: Combined(data=LabelFlip(), message=Mixed(attacks=(IPM(), LabelFlip()))),
            "Combined: data must be an attack on data and message one on messages",
        ),
    ],
)
def test_attacks_that_do_not_fit_into_each_other(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_root_update_that_is_not_finite_is_none(bad):
    x, byzantine = draw(), mask(1, 4)
    rows = attacked(FLTrustAdaptive(), x, byzantine, root_update=jnp.full(D, bad))[0]
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("target", [0, None])
def test_nobody_to_mimic(target):
    x = draw()
    x[0] = np.nan
    rows = attacked(Mimic(target=target), x[:3], np.array([False, True, True]))[0]
    np.testing.assert_array_equal(rows[1:], 0)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Gaussian, {"std": -1}, "Gaussian: std must be at least 0"),
        (ALIE, {"sign": 2}, "ALIE: sign must be one of -1, 1"),
        (ALIE, {"sign": 0.5}, "ALIE: sign must be an integer"),
        (ALIE, {"z": np.nan}, "ALIE: z must be finite; got nan"),
        (IPM, {"scale": -0.1}, "IPM: scale must be at least 0"),
        (IPM, {"scale": np.inf}, "IPM: scale must be finite; got inf"),
        (IPM, {"scale": "big"}, "IPM: scale must be a number"),
        (IPM, {"knowledge": "none"}, "IPM: knowledge must be one of full, partial, everybody"),
        (Onset, {"attack": IPM(), "start": -1}, "Onset: start must be at least 0"),
        (Onset, {"attack": Mean(), "start": 1}, "Onset: attack must be Attack"),
        (TimeVarying, {"attacks": ()}, "TimeVarying: attacks must name at least one attack"),
        (Mixed, {"attacks": ()}, "Mixed: attacks must name at least one attack"),
        (Combined, {"data": IPM(), "message": IPM()}, "Combined: data must be an attack on data"),
        (BitFlip, {"bits": (32,)}, "BitFlip: bits must be positions from 0 to 31"),
        (BitFlip, {"bits": ()}, "BitFlip: bits must be positions from 0 to 31"),
        (DBA, {"size": 2, "parts": 5}, "DBA: parts must be at most the trigger's pixels, 4"),
        (Backdoor, {"fraction": 1.5}, "Backdoor: fraction must be at least 0 and at most 1"),
        (TNBSStealth, {"quantile": 2}, "TNBSStealth: quantile must be at least 0 and at most 1"),
        (AGRTailored, {"evaluations": 3}, "AGRTailored: evaluations must be at least 4"),
    ],
)
def test_bad_values(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)
