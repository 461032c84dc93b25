"""Rounds that never hold all updates give what those give that hold them in a matrix."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Every, every_rule

import jaxfl
from jaxfl import ALIE, ARC, IPM, QFFL, Clipping, Federation, FedSGD, Mean, Pipeline, Simulation
from jaxfl.aggregators import WeightingRule
from jaxfl.attacks.base import ALL
from jaxfl.component import capability
from jaxfl.data import Dirichlet, RareData, RootData, synthetic
from jaxfl.models import Softmax
from jaxfl.numerics.rows import held, safe_ratio
from jaxfl.numerics.stream import NeedsMatrix, Stream
from jaxfl.plan import make_plan
from jaxfl.registry import ATTACKS
from jaxfl.types import Info

CLIENTS, BYZANTINE, ROUNDS, CHUNK = 13, 3, 2, 5
DATA = synthetic(samples=300, features=6, classes=3).split(
    Dirichlet(alpha=1.0), CLIENTS, root=RootData(size=20)
)
RULES = {name: rule for name, rule in every_rule(f=BYZANTINE).items() if rule.streams}
RULES["arc+mean"] = Pipeline(pre=(ARC(f=BYZANTINE),), rule=Mean())
RULES["clipping+mean"] = Pipeline(pre=(Clipping(tau=0.1),), rule=Mean(weighted=False))
EXAMPLES = {name: kind.example() for name, kind in ATTACKS.items()}
STREAMED = {name: a for name, a in EXAMPLES.items() if a.crafts and a.streams}
THREE = Every(rules=(Mean(), jaxfl.SignGuard(fraction=0.5), jaxfl.FLTrust()))


def simulation(federation, storage, **settings):
    settings = {"client_chunk": CHUNK, "evaluate_every": ROUNDS} | settings
    data = settings.pop("data", DATA)
    return Simulation(federation, data, Softmax(), storage=storage, **settings)


def check(federation, **settings):
    """The same numbers to rounding, and exactly the same choices."""
    held, streamed = (
        simulation(federation, way, **settings).run(ROUNDS) for way in ("matrix", "stream")
    )
    kept = [(h.records, h.evaluations, h.state.replace(key=())) for h in (held, streamed)]
    paths, _ = jax.tree_util.tree_flatten_with_path(kept[0])
    for (path, a), b in zip(paths, jax.tree.leaves(kept[1]), strict=True):
        where = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jnp.floating):
            scale = np.max(np.abs(a), initial=1e-2, where=np.isfinite(a))
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * scale, err_msg=where)
        else:
            np.testing.assert_array_equal(b, a, err_msg=where)
    assert np.all(np.isfinite(streamed.state.params))


@pytest.mark.slow
def test_every_rule_that_streams():
    known = "mean oracle centered_clipping sign_majority cge nbs tnbs norm_clipping fltrust"
    assert {*known.split(), "signguard"} <= set(RULES)
    rule = Every(rules=tuple(RULES.values()))
    check(Federation(aggregator=rule, attack=IPM(scale=3.0), byzantine=BYZANTINE))


@pytest.mark.slow
def test_attacks_that_stream_in_turn():
    attack = jaxfl.TimeVarying(attacks=(ALIE(z=1.0), jaxfl.SignFlip()), seed=7)
    assert len({int(attack.turn(i)) for i in range(ROUNDS)}) == 2
    check(Federation(aggregator=Mean(), attack=attack, byzantine=BYZANTINE))


class Watched(WeightingRule):
    """The mean direction; says of each row how long it is and, to one direction, where it points.

    Relative to itself, so that a long row hides no short one.
    """

    needs = capability(frozenset({"norms", "products"}))
    needs_root = capability(frozenset({"update"}))  # for the attack that FLTrust is met by

    def references(self, state, context, dim):
        return jax.random.normal(jax.random.key(5), (1, dim))

    def weigh(self, statistics, state, context):
        norms = jnp.where(statistics.usable, statistics.norms, 0)
        weights = safe_ratio(jnp.ones_like(norms), norms) / norms.shape[0]
        return weights, Info(weights=weights, scores=statistics.reference_cosines()[:, 0])


@pytest.mark.slow
def test_every_attack_that_streams():
    """Side by side: each has an attacker of its own, whose rows are compared.

    Attacks that learn do so alone.
    """
    known = "alie ipm sign_flip gaussian noise scaling bit_flip nan infinity zero free_rider onset"
    assert {*known.split(), "min_sum", "mixed", "combined", "time_varying"} <= set(STREAMED)
    together = tuple(attack for attack in STREAMED.values() if not attack.learns)
    byzantine = len(together)
    federation = Federation(aggregator=Every(rules=(Watched(),)), byzantine=byzantine)
    clients = 2 * byzantine + 3
    data = synthetic(samples=20 * clients, features=6, classes=3).set_apart(RareData(label=1))
    data = data.split(Dirichlet(alpha=1.0), clients, root=RootData(size=20))
    alone = [attack for attack in STREAMED.values() if attack.learns]
    assert len(alone) == 1
    for attack in (jaxfl.Mixed(attacks=together), *alone):
        check(federation.replace(attack=attack), data=data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": jaxfl.CentralPrivacy(clip=jaxfl.QuantileClip(), noise_multiplier=0.1)},
        {
            "privacy": jaxfl.MessagePrivacy(clip=0.5, noise_multiplier=0.1),
            "noise_order": "attack_then_noise",
            "fairness": QFFL(q=1.0, lipschitz=10.0),
        },
        {
            "privacy": jaxfl.MessagePrivacy(clip=0.5, noise_multiplier=0.1),
            "participation": jaxfl.Poisson(rate=0.6),
            "algorithm": FedSGD(batch_size=4, momentum=0.9),
        },
        {
            "privacy": jaxfl.ExamplePrivacy(clip=0.5, noise_multiplier=0.1),
            "attack": jaxfl.LabelFlip(),
            "algorithm": jaxfl.SCAFFOLD(steps=2, batch_size=4),
            "participation": jaxfl.Uniform(fraction=0.6),
        },
    ],
    ids=["central", "noise last and fairness", "poisson and momentum", "examples and scaffold"],
)
def test_every_part_of_the_round(settings):
    parts = {
        "aggregator": Every(rules=(Mean(), jaxfl.NormClipping(), jaxfl.SignMajority())),
        "attack": ALIE(z=1.0),
        "byzantine": BYZANTINE,
    }
    check(Federation(**(parts | settings)))


@pytest.mark.slow
def test_seeds_and_a_chunk_larger_than_the_cohort():
    parts = {"aggregator": Mean(), "attack": ALIE(z=1.0), "byzantine": BYZANTINE}
    check(Federation(**parts), seeds=(1, 2), client_chunk=100)


@pytest.mark.parametrize("rule", [jaxfl.FLTrust(), pytest.param(THREE, marks=pytest.mark.slow)])
def test_a_client_that_is_not_finite_is_left_out(rule):
    broken = DATA.replace(inputs=DATA.inputs.at[DATA.order[DATA.start[4]]].set(jnp.nan))
    check(Federation(aggregator=rule, algorithm=FedSGD()), data=broken)


class OwnALIE(ALIE):
    """Overrides what was declared to stream."""

    knows = capability(ALL)

    def craft(self, view, state):
        return -jnp.median(view.updates, axis=0)[None], state


class OwnBound(jaxfl.CentralPrivacy):
    """Overrides what was declared to stream."""

    def bound(self, sent, state):
        return jnp.clip(sent, -1, 1), jnp.zeros((sent.shape[0],))

    def releases(self, run):
        return super().releases(run)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"aggregator": jaxfl.Krum(f=3)}, "Krum needs all updates at once"),
        (
            {"aggregator": Pipeline(pre=(jaxfl.NNM(f=3),), rule=Mean())},
            "Pipeline needs all updates at once",
        ),
        ({"attack": jaxfl.MinMax(), "byzantine": 3}, "MinMax needs all updates at once"),
        ({"algorithm": jaxfl.FedNova()}, "FedNova reads the messages at the server"),
        (
            {
                "aggregator": Pipeline(
                    pre=(ARC(f=3),), rule=Pipeline(pre=(), rule=jaxfl.CenteredClipping())
                )
            },
            "Pipeline needs all updates at once",
        ),
        ({"attack": OwnALIE(), "byzantine": 3}, "OwnALIE needs all updates at once"),
        ({"privacy": OwnBound(noise_multiplier=1.0)}, "OwnBound needs all updates at once"),
    ],
)
def test_what_cannot_be_streamed_is_refused(parts, message):
    with pytest.raises(ValueError, match=f'storage = "stream": {message}'):
        simulation(Federation(**parts), "stream")
    known = "auto, matrix, bfloat16, stream"
    with pytest.raises(ValueError, match=f"storage must be one of {known}; got 'disk'"):
        simulation(Federation(), "disk")


def test_no_array_of_all_updates_stands_in_the_program():
    federation = Federation(aggregator=jaxfl.SignGuard(), attack=IPM(), byzantine=BYZANTINE)
    for storage, expected in (("matrix", True), ("stream", False)):
        run = simulation(federation, storage)
        jaxpr = jax.make_jaxpr(run.block(1))(run.federation, run.data, run.state)
        assert (f"[{CLIENTS},{run.plan.spec.dim}]" in str(jaxpr)) is expected


@pytest.mark.parametrize("name", ["arc+mean", "clipping+mean"])
def test_rescaling_compares_no_two_clients(name):
    """A factor for each of 100,000 clients: a matrix with them on its diagonal would be 40 GB."""
    run = simulation(Federation(aggregator=RULES[name]), "stream")
    jaxpr = str(jax.make_jaxpr(run.block(1))(run.federation, run.data, run.state))
    assert f"f32[{CLIENTS}]" in jaxpr
    assert f"[{CLIENTS},{CLIENTS}]" not in jaxpr


def test_the_best_storage_is_chosen(monkeypatch):
    def chosen(**parts):
        return make_plan(Federation(**parts), DATA, Softmax()).storage

    once, twice, never = Mean(), jaxfl.NormClipping(), jaxfl.Median()
    attacked = {"aggregator": once, "attack": IPM(), "byzantine": 3}
    assert {chosen(aggregator=rule) for rule in (once, twice, never)} == {"matrix"}
    monkeypatch.setattr("jaxfl.plan.WORTH_STREAMING", 1000)
    assert chosen(aggregator=once) == "stream"
    assert chosen(aggregator=twice) == chosen(**attacked) == chosen(aggregator=never) == "matrix"
    assert chosen(privacy=jaxfl.CentralPrivacy(noise_multiplier=1.0)) == "matrix"
    assert chosen(fairness=QFFL(q=1.0, lipschitz=10.0)) == "matrix"
    assert chosen(aggregator=jaxfl.SignMajority()) == "stream"
    assert chosen(aggregator=Pipeline(pre=(), rule=once)) == "stream"
    monkeypatch.setattr("jaxfl.plan.memory_of_device", lambda _: 8000)
    assert chosen(aggregator=twice) == chosen(**attacked) == "stream"
    assert chosen(aggregator=never) == "matrix"


@pytest.mark.slow
def test_half_the_memory_costs_two_digits():
    parts = {"aggregator": jaxfl.CenteredClipping(), "attack": IPM(), "byzantine": BYZANTINE}
    held, half = (simulation(Federation(**parts), way) for way in ("matrix", "bfloat16"))
    assert half.messages().sent.dtype == jnp.bfloat16
    assert half.state.aggregator.dtype == jnp.float32  # a sum of many small steps would stall
    start = np.asarray(half.state.params)
    ends = [run.run(ROUNDS).state.params for run in (held, half)]
    assert ends[1].dtype == jnp.float32
    moved = [np.asarray(end) - start for end in ends]
    np.testing.assert_allclose(moved[1], moved[0], atol=0.02 * np.abs(moved[0]).max())
    assert np.any(moved[1] != moved[0])


def test_an_aggregate_is_not_rounded_before_its_noise():
    parts = {"aggregator": Mean(weighted=False)}
    private = Federation(privacy=jaxfl.CentralPrivacy(noise_multiplier=1.0), **parts)
    with pytest.raises(ValueError, match="breaks the guarantee of CentralPrivacy"):
        simulation(private, "bfloat16")


@pytest.mark.slow
def test_rules_take_half_the_memory():
    """Every fourth; each one alone is asked for it in its contract."""
    rule = Every(rules=tuple(every_rule(f=BYZANTINE).values())[::4])
    federation = Federation(aggregator=rule, attack=jaxfl.FreeRider(), byzantine=BYZANTINE)
    # Many rules in one program, twice: optimised, that takes minutes and says no more.
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        ends = [simulation(federation, w).run(ROUNDS).state.params for w in ("matrix", "bfloat16")]
    finally:
        before = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS")
        jax.config.update("jax_disable_most_optimizations", bool(before))
    np.testing.assert_allclose(*ends, atol=0.05 * np.abs(ends[0]).max())


def stream(matrix, chunk=3):
    def watch(block, index, inside):
        return jnp.sum(jnp.where(inside[:, None], block, 0), axis=0), jnp.sum(block, axis=1)

    return Stream(lambda i: (matrix[i], {"row": i}), matrix.shape, matrix.dtype, chunk, watch)


def test_what_a_pass_gives():
    matrix = jax.random.normal(jax.random.key(0), (7, 4))
    rows = stream(matrix)
    counted = rows.sum(lambda block, index, inside: jnp.sum(jnp.where(inside, index, 0)))
    assert counted == 21
    np.testing.assert_array_equal(rows.map(lambda block, index: 2 * block), 2 * matrix)
    np.testing.assert_array_equal(rows.kept.told["row"], np.arange(7))
    np.testing.assert_allclose(rows.kept.total, matrix.sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(rows.kept.numbers, jnp.sum(matrix, axis=1))
    np.testing.assert_array_equal(
        rows.take(jnp.array([6, 0, 9, 2])), matrix[jnp.array([6, 0, 6, 2])]
    )
    doubled = rows.each(lambda row, factor: row * factor, jnp.arange(7.0))
    np.testing.assert_array_equal(
        doubled.map(lambda block, index: block), matrix * np.arange(7.0)[:, None]
    )


def test_a_stream_is_no_matrix():
    rows = stream(jnp.ones((7, 4)))
    for misuse in (lambda x: x.T, lambda x: x.astype(float), held):
        with pytest.raises(NeedsMatrix, match="at once"):
            misuse(rows)
    for misuse in (jnp.sum, jnp.sort, lambda x: 2 * x):
        with pytest.raises((TypeError, NeedsMatrix)):
            misuse(rows)
