"""Attacks that look at the defence: searches, stealth, trust, and the climb on the damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_every_attack
from test_messages import ATTACKERS, D, N, both_types, draw, knowledge, known, perturbation, send

from jaxfl.aggregators import (
    NBS,
    TNBS,
    FLTrust,
    Krum,
    Mean,
    Median,
    Pipeline,
    SignGuard,
    TrimmedMean,
)
from jaxfl.attacks import (
    ALIE,
    IPM,
    AGRTailored,
    FLTrustAdaptive,
    GradientAttack,
    MinMax,
    OptimizedALIE,
    OptimizedIPM,
    SignGuardAware,
    TNBSStealth,
)
from jaxfl.attacks.search import expand_then_contract, grid_then_golden
from jaxfl.preaggregators import NNM
from jaxfl.registry import AGGREGATORS
from jaxfl.types import Context, segments_of

DEFENCES = {
    "median": Median(),
    "trimmed_mean": TrimmedMean(f=3),
    "krum": Krum(f=3),
    "nnm+trimmed_mean": Pipeline(pre=(NNM(f=3),), rule=TrimmedMean(f=3)),
}
ONE_OF_A_KIND = ("krum", "mea_med", "mean", "median", "signguard", "smea")
every_defence = pytest.mark.parametrize("name", sorted(DEFENCES))


def harm(defence, x, rows):
    attacked = x.copy()
    attacked[ATTACKERS] = rows
    return float(np.linalg.norm(np.asarray(defence(attacked)) - known(x, "full").mean(0)))


def test_the_search_finds_the_top_of_a_hill():
    place = grid_then_golden(lambda g: -jnp.abs(jnp.log(g) - 1), 1e-2, 1e2, 40)
    np.testing.assert_allclose(place, np.e, rtol=0.02)


@pytest.mark.parametrize("top", [1.0, 2.5, 60.0])
def test_the_search_returns_the_best_place_it_tried(top):
    """A cliff, as where a selection rejects: damage grows up to it and is 0 beyond."""
    tried = []

    def damage(g):
        jax.debug.callback(lambda v: tried.append(float(v)), g)
        return jnp.where(g <= top, g, 0)

    place = float(grid_then_golden(damage, 1e-2, 1e2, 24))
    jax.effects_barrier()
    assert len(tried) == 24
    assert place == pytest.approx(max(v for v in tried if v <= top))
    assert place > 0.9 * top


def byzfl_search(damage, step, count, ratio=0.8):
    """Expansion by doubling from 0, then contraction, always from the best place."""
    place, value, left = 0.0, damage(0.0), count - 1
    while left > 0:
        left -= 1
        hurt = damage(place + step)
        if hurt > value:
            place, value, step = place + step, hurt, 2 * step
        else:
            step *= ratio
            break
    while left > 0:
        left -= 1
        hurt = damage(place + step)
        if hurt > value:
            place, value = place + step, hurt
        step *= ratio
    return place


@pytest.mark.parametrize("top", [0.3, 7.0, 33.0, 500.0])
def test_expansion_and_contraction(top):
    place = expand_then_contract(lambda g: -jnp.abs(g - top), 10.0, 20)
    assert float(place) == pytest.approx(byzfl_search(lambda g: -abs(g - top), 10.0, 20), rel=1e-5)


@every_defence
@pytest.mark.parametrize(
    "direction", ["std", *(pytest.param(d, marks=pytest.mark.slow) for d in ("unit", "sign"))]
)
def test_agr_tailored_is_the_worst_of_its_line(name, direction):
    x, defence = draw(), DEFENCES[name]
    rows = known(x, "full")
    mean, p = rows.mean(0), perturbation(direction, rows)
    p = p / np.linalg.norm(p) * np.linalg.norm(rows.std(0, ddof=1))
    hurts = [harm(defence, x, mean + g * p) for g in np.geomspace(1e-2, 1e2, 60)]
    sent = send(AGRTailored(direction=direction, evaluations=48), x, defence=defence)
    along = (sent[0] - mean) @ p / (p @ p)
    np.testing.assert_allclose(sent[0], mean + along * p, atol=1e-4 * max(1, along))
    assert harm(defence, x, sent) >= 0.97 * max(hurts)


@every_defence
@pytest.mark.parametrize("search", ["grid", pytest.param("expansion", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cls", "fixed"), [(OptimizedALIE, ALIE), (OptimizedIPM, IPM)])
def test_optimised_attacks_hurt_no_less_than_fixed_ones(cls, fixed, search, name):
    x, defence = draw(), DEFENCES[name]
    best = harm(defence, x, send(cls(search=search, evaluations=30), x, defence=defence))
    strengths = [0.1, 0.3, 1.0, 1.5] if search == "grid" else []
    for strength in strengths:
        given = {"z": strength} if fixed is ALIE else {"scale": strength}
        assert best >= 0.9 * harm(defence, x, send(fixed(**given), x))
    assert best >= harm(defence, x, np.tile(known(x, "full").mean(0), (3, 1))) * 0.999


@pytest.mark.slow
@every_defence
def test_the_climb_from_a_random_start_is_ahead_of_fixed_attacks_in_its_ball(name):
    x, defence = draw(d=200), DEFENCES[name]
    rows = known(x, "full")
    mean = rows.mean(0)
    ball = np.linalg.norm(rows - mean, axis=1).max()

    def cut(sent):
        offset = sent - mean
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        return mean + offset * np.minimum(1, ball / length)

    fixed = [
        ALIE(z=1.5),
        ALIE(),
        IPM(scale=0.5),
        IPM(scale=1.0),
        MinMax(),
        MinMax(direction="unit"),
    ]
    rival = max(harm(defence, x, cut(send(attack, x))) for attack in fixed)
    sent = send(GradientAttack(), x, defence=defence)
    assert np.linalg.norm(sent - mean, axis=1).max() <= ball * 1.001
    # A row at the edge of the ball that Krum selects cannot be outdone.
    assert harm(defence, x, sent) > min(rival, ball * (1 - 1e-6))


def test_the_climb_never_falls_behind_its_starts():
    x, defence = draw(), DEFENCES["krum"]
    starts = (ALIE(z=0.5), IPM(scale=0.3))
    attack = GradientAttack(iterations=2, radius=10.0, starts=starts)
    reached = harm(defence, x, send(attack, x, defence=defence))
    for start in starts:
        assert reached >= harm(defence, x, send(start, x)) * 0.999


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_OF_A_KIND else pytest.mark.slow)
        for name in sorted(AGGREGATORS.keys() - {"pipeline"})
    ],
)
def test_the_climb_goes_through_every_rule(name):
    """Every registered rule can be differentiated: the program compiles."""
    rule = AGGREGATORS[name].example(2)
    if rule.needs_root or rule.makes_inputs or name in ("oracle", "byzantine_sgd"):
        pytest.skip("cannot be called alone")
    attack, x = GradientAttack(iterations=1), draw()
    layers = segments_of({"bias": x[0, :3], "kernel": x[0, 3:]})
    context = Context.of(N, params=jnp.zeros(D), segments=layers)
    shape = jax.eval_shape(lambda x: attack(x, ATTACKERS, defence=rule, context=context), x)
    assert shape.shape == (N, D)


def lengths(x, knowledge):
    return np.linalg.norm(known(x, knowledge), axis=1)


@both_types
@knowledge
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.7, 1.0])
def test_stealth_has_the_norm_of_an_honest_update(quantile, knowledge, double):
    x = draw()
    sent = send(TNBSStealth(quantile=quantile, knowledge=knowledge), x, double=double)
    mean = known(x, knowledge).mean(0)
    wanted = np.quantile(lengths(x, knowledge), quantile) * (1 - 1e-3 * np.arange(3) / 3)
    expected = -wanted[:, None] * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(sent, expected, rtol=1e-9 if double else 1e-4, atol=1e-6)


@pytest.mark.parametrize("high", [1, 2, 3])
def test_stealth_that_knows_the_window_is_never_dropped(high):
    x, attack = draw(), TNBSStealth(high=high)
    attacked = np.asarray(attack(x, ATTACKERS))
    ordered = np.sort(lengths(x, "full"))
    np.testing.assert_allclose(
        np.linalg.norm(attacked[ATTACKERS][0]), ordered[-high] * (1 - 1e-3), rtol=1e-5
    )
    for rule in (NBS(f=high), TNBS(f=3, low=0, high=high)):
        assert np.asarray(rule.inspect(attacked).info.selected)[ATTACKERS].all()


def test_stealth_with_partial_knowledge_aims_at_the_same_share_of_norms():
    byzantine = np.arange(50) < 10
    x = draw(n=50)
    own = np.sort(np.linalg.norm(x[byzantine], axis=1))
    sent = np.asarray(TNBSStealth(high=10, knowledge="partial")(x, byzantine))[byzantine]
    # 10 of 40 are a quarter: of 10 the third largest.
    assert np.linalg.norm(sent[0]) == pytest.approx(own[-3] * (1 - 1e-3), rel=1e-5)


@both_types
@knowledge
def test_signguard_aware_matches_signs_and_norm(knowledge, double):
    x = draw(d=500)
    x[:, :40] = 0
    rows = known(x, knowledge)
    sent = send(SignGuardAware(knowledge=knowledge), x, double=double)[0]
    positive = (rows > 0).sum() // len(rows)
    negative = (rows < 0).sum() // len(rows)
    assert (sent > 0).sum() == positive
    assert (sent < 0).sum() == negative
    mean, median = rows.mean(0), np.median(np.linalg.norm(rows, axis=1))
    assert np.linalg.norm(sent) == pytest.approx(median, rel=1e-5)
    # Of 2,000 other rows with these signs and magnitudes none points away more.
    random, shown = np.random.default_rng(0), np.sign(sent)
    size = median * np.abs(mean) / np.linalg.norm(mean)
    for _ in range(2000):
        other = random.permutation(shown) * size
        assert sent @ mean <= other @ mean * np.linalg.norm(sent) / np.linalg.norm(other) + 1e-6


def test_signguard_keeps_what_was_made_for_it():
    x = draw(d=2000)
    attacked = np.asarray(SignGuardAware()(x, ATTACKERS))
    kept = np.asarray(SignGuard().inspect(attacked, context=Context.of(N)).info.selected)
    assert kept[ATTACKERS].all()
    flipped = np.where(ATTACKERS[:, None], -x, x)
    assert not np.asarray(SignGuard().inspect(flipped).info.selected)[ATTACKERS].any()


def trust_answer(rows, root):
    cosine = rows @ root / np.linalg.norm(rows, axis=1) / np.linalg.norm(root)
    trust = np.maximum(cosine, 0)
    scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(root)
    return (trust[:, None] * scaled).sum(0) / trust.sum()


@pytest.mark.parametrize("seed", range(3))
def test_no_climb_beats_the_closed_form_against_fltrust(seed):
    """Gradient ascent on all attackers' rows, from many starts is never better."""
    x = draw(seed=seed).astype(np.float64)
    root = x[~ATTACKERS].mean(0) + 0.3 * np.random.default_rng(seed).normal(size=D)
    honest = x[~ATTACKERS]
    sign = np.sign(trust_answer(honest, root))

    def gain(rows):
        return -sign @ trust_answer(np.concatenate([honest, rows]), root)

    known_root = Context.of(N, root_update=jnp.asarray(root, jnp.float32))
    sent, _ = test_every_attack.attacked(
        FLTrustAdaptive(), x.astype(np.float32), ATTACKERS, root_update=known_root.root_update
    )
    rows = np.asarray(sent, np.float64)[ATTACKERS]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(root), rtol=1e-4)
    reached = gain(rows)

    def climbed(rows):
        honest_part, guide = jnp.asarray(honest), jnp.asarray(root)

        def objective(e):
            both = jnp.concatenate([honest_part, e])
            unit = both / jnp.linalg.norm(both, axis=1, keepdims=True)
            trust = jnp.maximum(unit @ guide / jnp.linalg.norm(guide), 0)
            return -jnp.asarray(sign) @ (trust @ unit) / trust.sum() * jnp.linalg.norm(guide)

        def step(e, _):
            slope = jax.grad(objective)(e)
            e = e + 0.05 * slope / (jnp.linalg.norm(slope, axis=1, keepdims=True) + 1e-12)
            return e / jnp.linalg.norm(e, axis=1, keepdims=True), None

        return jax.lax.scan(step, rows / jnp.linalg.norm(rows, axis=1, keepdims=True), None, 400)[0]

    with jax.enable_x64(True):
        starts = np.random.default_rng(seed).normal(size=(20, 3, D)) + 0.3 * root
        ends = [gain(np.asarray(e)) for e in jax.jit(jax.vmap(climbed))(jnp.asarray(starts))]
    assert max(ends) <= reached * (1 + 1e-5) + 1e-6
    assert max(ends) >= reached - 0.1 * abs(reached)


def test_fltrust_gives_way_to_what_was_made_for_it():
    x = draw()
    root = known(x, "full").mean(0)
    given = jnp.asarray(root, jnp.float32)
    sent, _ = test_every_attack.attacked(FLTrustAdaptive(), x, ATTACKERS, root_update=given)
    context = Context.of(N, root_update=given)
    rule = FLTrust()
    sign = np.sign(trust_answer(known(x, "full"), root))
    before = sign @ np.asarray(rule(np.where(ATTACKERS[:, None], 0, x), context=context))
    assert sign @ np.asarray(rule(sent, context=context)) < before
    flipped = np.where(ATTACKERS[:, None], -x, x)
    assert sign @ np.asarray(rule(sent, context=context)) < sign @ np.asarray(
        rule(flipped, context=context)
    )


def test_probing_sees_the_mean_exactly():
    x = draw()
    sent = send(OptimizedIPM(search="grid"), x, defence=Mean())
    mean = known(x, "full").mean(0)
    # Against a mean more is worse: the end of the grid.
    np.testing.assert_allclose(sent[0], -100 * mean, rtol=0.05)
