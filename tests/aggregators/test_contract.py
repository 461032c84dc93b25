"""Every rule: what all registered names must do, and the pipelines that people use."""

import functools
from collections import Counter
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pinned
import pytest
from helpers import products_below_highest

from jaxfl.aggregators import (
    CAF,
    CGE,
    FLAME,
    MDA,
    NBS,
    SMEA,
    TNBS,
    Aggregator,
    Anchored,
    BarrierClipping,
    Bulyan,
    ByzantineSGD,
    CenteredClipping,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    GibbsMean,
    Krum,
    LogOddsMedian,
    LossRejection,
    MeaMed,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    NormClipping,
    Oracle,
    Phocas,
    Pipeline,
    TrimmedMean,
    WeightedTrimmedMean,
    Zeno,
)
from jaxfl.aggregators.coordinatewise import CoordinatewiseRule
from jaxfl.component import Component
from jaxfl.models import Objective, Softmax
from jaxfl.models.layers import segments
from jaxfl.preaggregators import ARC, NNM, Bucketing, Clipping, WeightedNNM
from jaxfl.registry import AGGREGATORS, PREAGGREGATORS
from jaxfl.types import Batch, Context, Spec

pytestmark = pytest.mark.grouped_by("name")

N, D, F = 11, 30, 2
BYZANTINE = np.isin(np.arange(N), [1, 6])

NAMED = {name: cls.example(F) for name, cls in AGGREGATORS.items()}
"""One example of each registered rule."""

TRUST = np.linspace(0.6, 0.9, N)
SETS = np.array([np.isin(np.arange(N), out, invert=True) for out in combinations(range(N), F)])
COMBINED = {
    "multi_krum_iterative": MultiKrum(f=F, iterative=True),
    "monna_around_krum": MoNNA(f=F, pivot=Krum(f=F)),
    "nnm+trimmed_mean": Pipeline(pre=(NNM(f=F),), rule=TrimmedMean(f=F)),
    "arc+bulyan": Pipeline(pre=(ARC(f=F),), rule=Bulyan(f=F)),
    "arc+mean": Pipeline(pre=(ARC(f=F),), rule=Mean()),
    "arc+nnm+krum": Pipeline(pre=(ARC(f=F), NNM(f=F)), rule=Krum(f=F)),
    "nnm+arc+median": Pipeline(pre=(NNM(f=F), ARC(f=F)), rule=Median()),
    "arc+geometric_median": Pipeline(pre=(ARC(f=F),), rule=GeometricMedian()),
    "nnm+centered_clipping": Pipeline(pre=(NNM(f=F),), rule=CenteredClipping(tau=3.0)),
    "bucketing+median": Pipeline(pre=(Bucketing(size=2),), rule=Median()),
    "clipping+nnm+tnbs": Pipeline(pre=(Clipping(tau=5.0), NNM(f=F)), rule=TNBS(f=F)),
    "barrier_clipping_of_a_law": BarrierClipping(weights=TRUST, beta=0.45, budget=4),
    "log_odds_median_of_a_law": LogOddsMedian(honesty=0.5 + TRUST / 2),
    "gibbs_mean_of_a_law": GibbsMean(f=F, sets=SETS, probabilities=SETS @ TRUST),
    "weighted_nnm+weighted_trimmed_mean": Anchored(
        rule=Pipeline(
            pre=(WeightedNNM(trim=0.3, weights=TRUST),),
            rule=WeightedTrimmedMean(trim=0.3, weights=TRUST),
        )
    ),
}
RULES = NAMED | COMBINED
OF_A_LAW = {name for name in COMBINED if "of_a_law" in name or "weighted" in name}
TODAY = {*pinned.NAMES["Aggregator"], *COMBINED} - OF_A_LAW
MEAN_AT_F_0 = {
    "oracle": Oracle(),
    "mean": Mean(),
    "trimmed_mean": TrimmedMean(f=0),
    "mea_med": MeaMed(f=0),
    "phocas": Phocas(f=0),
    "multi_krum": MultiKrum(f=0, q=N),
    "cge": CGE(f=0),
    "nbs": NBS(f=0),
    "tnbs": TNBS(f=0),
    "dnc": DnC(f=0),
    "byzantine_sgd": ByzantineSGD(deviation=100.0),
    "zeno": Zeno(f=0),
    "loss_rejection": LossRejection(f=0),
    "mda": MDA(f=0),
    "smea": SMEA(f=0),
    "caf": CAF(f=0),
    "monna": MoNNA(f=0),
    "nnm+mean": Pipeline(pre=(NNM(f=0),), rule=Mean()),
    "arc+mean": Pipeline(pre=(ARC(f=0),), rule=Mean()),
    "arc+nnm+trimmed_mean": Pipeline(pre=(ARC(f=0), NNM(f=0)), rule=TrimmedMean(f=0)),
}
FROM_ZERO = {"centered_clipping", "nnm+centered_clipping"}
"""Start at v = 0 and take three steps of at most tau = 3."""


THREE = ("arc+nnm+krum", "bucketing+median", "nnm+trimmed_mean")
"""Of the pipelines, those that ``make test`` holds to everything; the others run in test-all."""


def each(names):
    exhaustive = COMBINED.keys() - THREE
    return pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=pytest.mark.slow if n in exhaustive else ()) for n in sorted(names)],
    )


every_rule = each(RULES)
traces = Counter()


def draw(n=N, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def _server():
    """What the server has of its own: 20 samples, a softmax regression of D parameters."""
    random, objective = np.random.default_rng(8), Objective.of(Softmax(), (9,), 3)
    assert objective.dim == D
    inputs, labels = random.normal(size=(20, 9)), random.integers(0, 3, 20)
    return {
        "objective": objective,
        "sample": jax.ShapeDtypeStruct((9,), "f4"),
        "segments": segments(objective, jax.ShapeDtypeStruct((2, 9), "f4")),
        "params": jnp.asarray(random.normal(size=D), jnp.float32),
        "root_update": jnp.asarray(random.normal(size=D), jnp.float32),
        "root_batch": Batch(
            jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.ones(20, bool)
        ),
    }


SERVER = _server()


def given(n=N, **known):
    # Of a fixed type, as the weights of tests that choose them: one program for both.
    weights = jnp.full(n, 1 / n, float)
    defaults = {"byzantine": jnp.asarray(BYZANTINE), "weights": weights}
    return Context.of(n, **(defaults | SERVER | known))


@jax.jit
def compiled(rule, x, state, context):
    traces[type(rule), jax.tree.structure(rule), x.shape, x.dtype] += 1
    return rule.aggregate(x, state, context)


def spec_of(dtype, n=N, dim=D):
    layers = SERVER["segments"] if dim == D else ()
    return Spec(population=max(N, n), cohort=n, dim=dim, dtype=dtype, segments=layers)


def start(rule, x):
    return rule.init(spec_of(x.dtype, *x.shape))


def run(rule, x, state=None, context=None):
    """With a mask of present clients where the rule takes one: all tests then share a program.

    Not by coordinate: ranks that are known are found in another way.
    """
    state = start(rule, x) if state is None else state
    context = given() if context is None else context
    inner = rule
    while not isinstance(inner, CoordinatewiseRule) and hasattr(inner, "rule"):
        inner = inner.rule
    by_coordinate = isinstance(inner, CoordinatewiseRule)
    if rule.accepts_absent and context.present is None and not by_coordinate:
        context = context.replace(present=jnp.ones(len(x), bool))
    return compiled(rule, x, state, context)


def close(got, expected, rtol=1e-4, atol=1e-4):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_an_example_is_of_its_class():
    for cls in (*AGGREGATORS.values(), *PREAGGREGATORS.values()):
        assert type(cls.example()) is cls
        assert getattr(cls.example(F), "f", F) == F


def those(trait, rules=RULES):
    return [name for name, rule in rules.items() if getattr(rule, trait)]


def test_what_rules_claim():
    """The claims of today's rules: a change of one is seen."""
    every = set(RULES)
    by_index = {"monna", "bucketing+median"}
    units = FROM_ZERO | {"auto_gm", "byzantine_sgd", "clipping+nnm+tnbs"}
    others = {"sign_majority", "fltrust", "zeno", "loss_rejection"}
    lengths = {"foolsgold", "clipped_clustering", "signguard_dist"}
    norms = {"cge", "nbs", "tnbs", "norm_clipping", "flame", "signguard", "signguard_sim"}
    norms |= {name for name in RULES if "arc" in name}
    expected = {
        "permutation_equivariant": every - by_index,
        "unit_free": every - units - others,
        "scale_equivariant": every - units - others - lengths,
        "translation_equivariant": every - (units - {"auto_gm"}) - others - lengths - norms,
        "unanimous": every - FROM_ZERO - {"sign_majority", "fltrust", "clipping+nnm+tnbs"},
    }
    for trait, names in expected.items():
        assert set(those(trait)) & TODAY == names & TODAY, trait


CLAIMS = [
    (CGE(f=F, average=False), {"scale_equivariant"}),
    (NormClipping(tau=1.0), set()),
    (NormClipping(noise_std=1.0), {"unanimous"}),
    (GeometricMedian(absolute=True), {"translation_equivariant", "unanimous"}),
    (GeometricMedian(reweightings=2), {"translation_equivariant", "unanimous"}),
    (GeometricMedian(start="zero"), {"scale_equivariant", "unanimous"}),
    (FoolsGold(average=False), set()),
    (FLAME(noise_factor=None), {"scale_equivariant", "unanimous"}),
    (MoNNA(f=F, pivot=CGE(f=F)), {"scale_equivariant", "unanimous"}),
    (MoNNA(f=F, pivot=FLTrust()), {"unanimous"}),
    (Pipeline(pre=(Clipping(),), rule=Krum(f=F)), set()),
    (Pipeline(pre=(NNM(f=F),), rule=FLTrust()), set()),
]


def _words(value):
    # The order of a set is not the same in every process.
    return " ".join(sorted(value)) or "none" if isinstance(value, set) else str(value)[:40]


@pytest.mark.parametrize(("rule", "claims"), CLAIMS, ids=_words)
def test_claims_follow_the_settings(rule, claims):
    for trait in ("scale_equivariant", "translation_equivariant", "unanimous"):
        assert getattr(rule, trait) == (trait in claims), trait


MODEL = {n for n, r in NAMED.items() if r.makes_inputs or "batch" in r.needs_root}
"""They evaluate the model, whose own products are as precise as JAX is told to make them."""


def below_highest(name, n):
    x = jnp.zeros((n, D))
    known = given(n, byzantine=jnp.zeros(n, bool))
    return products_below_highest(compiled.lower(RULES[name], x, start(RULES[name], x), known))


OF_EACH_KIND = ("caf", "geometric_median", "krum", "mea_med", "median", "smea", "arc+nnm+krum")


def mostly_slow(names):
    """One rule of each kind in ``make test``, the others in test-all."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=() if n in OF_EACH_KIND else pytest.mark.slow)
            for n in sorted(names)
        ],
    )


@mostly_slow(RULES.keys() - MODEL)
def test_every_product_is_of_the_highest_precision(name):
    """With fewer bits, as GPUs and TPUs take by default, centres and radii would be wrong."""
    assert not below_highest(name, N)


@pytest.mark.slow
@each(RULES.keys() - MODEL)
def test_every_product_of_many_rows_is_of_the_highest_precision(name):
    assert not below_highest(name, 130)


@each(MODEL)
def test_only_the_models_own_products_are_not(name):
    products = below_highest(name, N)
    assert products
    # Inputs [20, 9], or one by one [256, 1, 9] of DeepSight's, parameters of the layer [9, 3]; no
    # product takes the rows of updates [N, D].
    inputs = "256x1x9x" if RULES[name].makes_inputs else "20x9x"
    assert all(inputs in line and f"x{D}x" not in line for line in products)


@every_rule
def test_calls_compile_once_whatever_the_values(name):
    rule, x = RULES[name], draw()
    earlier = traces.total()
    run(rule, x)
    before = traces.total()
    # None where another test has traced it and its program has not been freed since.
    assert before - earlier <= 1
    for i in range(10):
        other = jax.tree.map(lambda leaf, i=i: leaf * (1 + i / 10), rule)
        run(other, x * i, context=given(key=jax.random.key(i), round=jnp.int32(i)))
    assert traces.total() == before
    assert traces[type(rule), jax.tree.structure(rule), x.shape, x.dtype] >= 1


ONE_OF_A_KIND = ["median", "nnm+trimmed_mean"]
"""A coordinatewise rule, and one with rows mixed before it; a weighting one: ``test_own_rule``."""
EAGER = [
    pytest.param(name, marks=pytest.mark.default_compiler)
    for name in ("mean", "bulyan", "geometric_median", "signguard", "smea", "fltrust")
]


@pytest.mark.parametrize("name", [*EAGER, *ONE_OF_A_KIND])
def test_compiled_equals_eager(name):
    rule, x = RULES[name], jnp.asarray(draw())
    close(rule.aggregate(x, start(rule, x), given()), run(rule, x))


@each(["krum", "centered_clipping", "nnm+trimmed_mean"])
def test_inspect_equals_aggregate(name):
    rule, x = RULES[name], draw()
    close(rule.inspect(x, context=given()), run(rule, x))


@every_rule
def test_the_state_keeps_its_type(name):
    rule, x = RULES[name], draw()
    before, after = (jax.tree.map(jax.typeof, s) for s in (start(rule, x), run(rule, x).state))
    assert before == after


@every_rule
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float64"])
def test_types_and_state_survive_a_scan(name, dtype):
    """scan itself refuses a state whose structure, shape or type changes."""
    rule = RULES[name]
    with jax.enable_x64(dtype == "float64"):

        def step(state, x):
            result = rule.aggregate(x, state, given())
            return result.state, result

        rounds = jax.ShapeDtypeStruct((3, N, D), dtype)
        state = rule.init(spec_of(jnp.dtype(dtype)))
        _, results = jax.eval_shape(lambda s, r: jax.lax.scan(step, s, r), state, rounds)
        assert (results.update.shape, results.update.dtype) == ((3, D), dtype)


@each(["mean", "krum", "trimmed_mean", "geometric_median", "bucketing+median"])
def test_double_precision_is_not_lost(name):
    x = 1 + 1e-9 * np.random.default_rng(0).normal(size=(N, D))
    x[:] = x[0]
    with jax.enable_x64(True):
        got = np.asarray(RULES[name](jnp.asarray(x), context=given()))
    np.testing.assert_allclose(got, x[0], rtol=1e-14)


@each(those("permutation_equivariant"))
def test_order_of_clients_does_not_matter(name):
    rule, x, order = RULES[name], draw(), np.random.default_rng(5).permutation(N)
    weights = np.arange(1, N + 1, dtype=np.float32) / (N * (N + 1) / 2)
    result = run(rule, x, context=given(weights=jnp.asarray(weights)))
    known = {"weights": weights, "byzantine": BYZANTINE, "client_ids": np.arange(N, dtype=np.int32)}
    context = given(**{what: jnp.asarray(values[order]) for what, values in known.items()})
    permuted = run(rule, x[order], context=context)
    close(permuted.update, result.update)
    close(permuted.info, jax.tree.map(lambda leaf: leaf[order], result.info))


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30, "mixed"])
def test_no_bad_row_reaches_the_output(name, bad):
    rule, x = RULES[name], draw()
    if bad == "mixed":
        x[1, 3], x[1, 4], x[6, 3] = np.inf, -np.inf, np.nan
    else:
        x[BYZANTINE] = bad
    result = run(rule, x)
    assert np.isfinite(result.update).all()
    assert np.abs(result.update).max() < 10
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
    if result.info.weights is not None and bad != "mixed":
        np.testing.assert_array_equal(result.info.weights[BYZANTINE], 0)


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "one in each"])
def test_no_usable_row_is_no_step(name, bad):
    """Beyond what f covers, but a model must not be lost to one round."""
    rule, x = RULES[name], draw()
    if bad == "one in each":
        x[np.arange(N), np.arange(N)] = np.nan
    else:
        x[:] = bad
    result = run(rule, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
    if bad != "one in each":
        np.testing.assert_array_equal(result.update, 0)
    assert np.isfinite(result.update).all()


@each(name for name, rule in RULES.items() if rule.tolerates)
@pytest.mark.parametrize("kind", ["equal", "opposed", "spread"])
def test_finite_outliers_stay_bounded(name, kind):
    rule, x = RULES[name], draw()
    rows = {"equal": [1, 1], "opposed": [1, -1], "spread": draw(2, seed=9)}[kind]
    x[BYZANTINE] = 1e15 * np.broadcast_to(np.reshape(rows, (2, -1)), (2, D))
    update = np.asarray(run(rule, x).update)
    honest = x[~BYZANTINE]
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    if name in FROM_ZERO:
        assert np.linalg.norm(update) <= 3 * 3.0 * 1.001  # tau times iterations
    else:
        assert np.linalg.norm(update - honest.mean(0)) <= 2 * radius


def test_the_mean_is_not_robust():
    x = draw()
    x[BYZANTINE] = 1e15
    assert np.abs(run(Mean(), x).update).max() > 1e14
    assert not Mean().tolerates
    assert not RULES["arc+mean"].tolerates
    assert RULES["nnm+trimmed_mean"].tolerates


@each({*those("unanimous"), *FROM_ZERO, "clipping+nnm+tnbs"})
def test_equal_rows_give_that_row(name):
    row = draw(1)[0] / 2
    state = jnp.asarray(row) if name in FROM_ZERO else None
    got = run(RULES[name], np.tile(row, (N, 1)), state=state).update
    np.testing.assert_allclose(got, row, rtol=1e-5, atol=1e-6)


@each(MEAN_AT_F_0)
def test_no_byzantine_client_gives_the_mean(name):
    x = draw()
    context = given(byzantine=jnp.zeros(N, bool))
    close(MEAN_AT_F_0[name].inspect(x, context=context).update, x.mean(0), atol=1e-5)


@each(those("unit_free"))
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_equivariance(name, scale):
    x = draw()
    got = run(RULES[name], np.float32(scale) * x).update / np.float32(scale)
    close(got, run(RULES[name], x).update, rtol=1e-3, atol=1e-4)


def scaled_answers(name, c=np.float32(1000)):
    """A(c G) / c and A(G) in a second round, with the memory of the first."""
    rule, x = RULES[name], draw()
    state = run(rule, draw(seed=4)).state
    context = given(round=jnp.int32(1))
    return run(rule, c * x, state, context).update / c, run(rule, x, state, context).update


@each(those("scale_equivariant"))
def test_scale_equivariance_with_memory(name):
    close(*scaled_answers(name), rtol=1e-3, atol=1e-4)


@each(TODAY - {*those("scale_equivariant")} - {"zeno", "loss_rejection"})
def test_rules_that_do_not_claim_to_scale_do_not(name):
    """But for those that choose by losses, which may choose the same."""
    got, expected = scaled_answers(name)
    assert np.abs(got - expected).max() > 1e-3


def in_new_units(part, c):
    """The rule, or pre-aggregator, with all that is in the units of the updates times c."""
    changes = {}
    for name in part._hints:
        value = getattr(part, name)
        if name in part.in_units:
            changes[name] = c * value
        elif isinstance(value, Component):
            changes[name] = in_new_units(value, c)
        elif isinstance(value, tuple) and value and isinstance(value[0], Component):
            changes[name] = tuple(in_new_units(v, c) for v in value)
    return part.replace(**changes)


@each(name for name, rule in RULES.items() if in_new_units(rule, 100) != rule)
def test_scale_equivariance_together_with_the_parameter(name):
    rule, x = RULES[name], draw()
    close(run(in_new_units(rule, 100), 100 * x).update / 100, run(rule, x).update)


@each(RULES.keys() - MODEL - {"signguard", "signguard_sim", "signguard_dist"})
def test_rules_are_odd(name):
    """No direction is preferred: F(-U) = -F(U), where the server's own update is turned, too.

    Not of rules that evaluate the model, nor of SignGuard, whose mean shift takes points in an
    order of their coordinates, the shares of positive signs first.
    """
    rule, x = RULES[name], draw(seed=5)
    turned = run(rule, -x, context=given(root_update=-SERVER["root_update"])).update
    close(-turned, run(rule, x).update, rtol=1e-5, atol=1e-5)


@each(those("translation_equivariant"))
def test_translation_equivariance(name):
    x, shift = draw(), 50 * draw(1, seed=3)
    close(run(RULES[name], x + shift).update - shift[0], run(RULES[name], x).update, atol=2e-3)


@every_rule
def test_a_pytree_comes_back_in_its_structure(name):
    tree = {"a": jnp.zeros((N, 4, 5)), "b": (jnp.zeros(N), jnp.zeros((N, 9), jnp.bfloat16))}
    got = jax.eval_shape(lambda t: RULES[name](t, context=given()), tree)
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@each(["krum", "median"])
def test_a_pytree_is_aggregated_as_one_vector(name):
    x = draw()
    tree = {"a": x[:, :20].reshape(N, 4, 5), "b": (x[:, 20], x[:, 21:])}
    got = RULES[name](tree)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got)])
    close(flat, run(RULES[name], x).update)


@pytest.mark.parametrize(
    "updates", [{}, np.zeros((0, 3), np.float32), np.float32(1), {"a": np.ones(3), "b": np.ones(2)}]
)
def test_updates_must_share_their_clients(updates):
    with pytest.raises(ValueError, match="Mean: updates must share a leading client axis"):
        Mean()(updates)


def test_a_list_of_clients_vectors_is_a_matrix():
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    rows[0] = 100
    for several in (list(rows), tuple(rows), [jnp.asarray(row) for row in rows]):
        np.testing.assert_array_equal(Mean()(several), rows.mean(axis=0))
        np.testing.assert_array_equal(Median()(several), np.median(rows, axis=0))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([np.ones(3), np.ones(4)], r"one length, one per client.*got a list of \(3,\), \(4,\)"),
        ([np.ones((5, 2)), np.ones((5, 2))], r"a pytree of layers a dict; got a list of \(5, 2\)"),
        ([{"a": np.ones(3)}] * 2, "got a list of dict"),
        ([1.0, 2.0], "got a list of float"),
        ([], "got a list of nothing"),
        (np.ones(3, np.float32), r"Mean: updates must be a matrix \[n, d\].*got .* shape \(3,\)"),
    ],
)
def test_what_is_no_row_per_client_is_refused(updates, message):
    with pytest.raises(ValueError, match=message):
        Mean()(updates)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, bool, np.complex64])
def test_updates_must_be_floats(kind):
    updates = {"a": np.ones((5, 3), np.float32), "b": np.ones((5, 2), kind)}
    with pytest.raises(ValueError, match="Median: updates must be floating-point arrays; got"):
        Median()(updates)


def test_the_context_must_be_of_as_many_clients():
    with pytest.raises(ValueError, match=r"Mean: the context must be one of n = 5 clients.*\(4,\)"):
        Mean()(np.ones((5, 3), np.float32), context=Context.of(4))


@pytest.mark.parametrize(
    ("known", "got"),
    [
        ({"root_update": np.ones(4, np.float32)}, r"root_update .* d = 3 numbers.*got \(4,\)"),
        ({"root_update": {"w": np.ones(3, np.float32)}}, "root_update .* d = 3 .*; got dict"),
        ({"params": np.ones((1, 3), np.float32)}, r"params .* d = 3 numbers.*; got \(1, 3\)"),
    ],
)
def test_vectors_of_the_context_have_the_size_of_an_update(known, got):
    rule = FLTrust() if "root_update" in known else ByzantineSGD()
    context = Context.of(5, **known)
    with pytest.raises(ValueError, match=f"{type(rule).__name__}: {got}"):
        rule(np.ones((5, 3), np.float32), context=context)
    Mean()(np.ones((5, 3), np.float32), context=context.replace(root_update=np.ones(4, "f4")))


@mostly_slow(NAMED)
def test_half_precision_loses_no_more_than_its_rounding(name):
    """Statistics are float32 or better: selections are those of the same numbers in float32."""
    x = jnp.asarray(draw(), jnp.bfloat16)
    rule = NAMED[name]
    half, single = run(rule, x), run(rule, x.astype("f4"))
    assert half.update.dtype == jnp.bfloat16
    close(half.update.astype("f4"), single.update, rtol=1e-2, atol=1e-2)
    if half.info.selected is not None:
        np.testing.assert_array_equal(half.info.selected, single.info.selected)


WITH_F = [cls for cls in (*AGGREGATORS.values(), NNM, ARC) if "f" in cls._hints]


@pytest.mark.parametrize("cls", WITH_F, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("f", [-1, 2.0, 0.5, True, "2", None, [2]])
def test_f_must_be_a_count(cls, f):
    with pytest.raises(ValueError, match=f"{cls.__name__}: f must be"):
        cls(f=f)


def below_half(n):
    return (n - 1) // 2


MOST = dict.fromkeys(pinned.NAMES["Aggregator"].values(), below_half) | {
    "NNM": below_half,
    "ARC": below_half,
    "Krum": lambda n: (n - 3) // 2,
    "MultiKrum": lambda n: (n - 3) // 2,
    "Bulyan": lambda n: (n - 3) // 4,
    "NBS": lambda n: n - 1,
    "Zeno": lambda n: n - 1,
}
"""The largest f by the papers; of a rule that is not here, whatever its ``check`` says."""


@pytest.mark.parametrize("n", [11, 12])
@pytest.mark.parametrize("cls", WITH_F, ids=lambda cls: cls.__name__)
def test_f_must_suit_n(cls, n):
    def rule(f):
        part = cls(f=f)
        return part if isinstance(part, Aggregator) else Pipeline(pre=(part,), rule=Mean())

    def fits(f):
        try:
            rule(f).check(n)
        except ValueError:
            return False
        return True

    allowed = [f for f in range(n + 1) if fits(f)]
    most = allowed[-1]
    assert allowed == list(range(most + 1))
    assert most == MOST.get(cls.__name__, lambda n: most)(n)
    with pytest.raises(ValueError, match=f"{cls.__name__} needs n .* n = {n}, f = {most + 1}"):
        rule(most + 1)(draw(n))


SWEPT = [name for name, rule in RULES.items() if jax.tree.leaves(rule)]


@each(SWEPT)
def test_sweeping_scalars_equals_a_loop(name):
    rule, x = RULES[name], draw()
    rules = [jax.tree.map(lambda leaf, c=c: leaf * c, rule) for c in (0.5, 1.0, 1e5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rules)
    state = start(rule, x)
    swept = jax.vmap(lambda r: compiled(r, x, state, given()).update)(stacked)
    close(swept, np.stack([run(r, x).update for r in rules]))


@pytest.mark.slow
@each(those("differentiable", NAMED))
def test_gradients_are_finite(name):
    rule, x = RULES[name], draw()
    gradient = gradient_of_norm(rule, x)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    np.testing.assert_array_equal(np.isfinite(gradient_of_norm(rule, 0 * x)), True)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(rule, x):
    def norm(x):
        return jnp.sum(
            jnp.square(rule(x, context=given(len(x), byzantine=jnp.zeros(len(x), bool))) - 1)
        )

    return jax.grad(norm)(x)


def gradient_of_norm(rule, x):
    return np.asarray(_gradient(rule, x))


@each(["geometric_median", "auto_gm", "centered_clipping"])
def test_gradient_agrees_with_differences(name):
    """For the rules whose weights depend on the rows."""
    direction = draw(seed=7)
    rule, x = RULES[name], draw()
    slope = np.sum(gradient_of_norm(rule, x) * direction)
    up, down = (run(rule, x + np.float32(e) * direction).update for e in (1e-2, -1e-2))
    expected = (np.square(up - 1).sum() - np.square(down - 1).sum()) / 2e-2
    np.testing.assert_allclose(slope, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", sorted(NAMED.keys() - {"mean", "expected_mean", "fldetector"}))
def test_under_attack_no_rule_is_the_mean(name):
    """A rival's FLTrust was federated averaging for years, and nothing said so.

    FLDetector is the mean until it has a history.
    """
    x = draw()
    x[BYZANTINE] = 10
    close_to_mean = np.allclose(run(RULES[name], x).update, x.mean(axis=0), rtol=0.1, atol=0.1)
    assert not close_to_mean


ABSENT = np.isin(np.arange(N), [0, 4])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in COMBINED else ()) for name in RULES],
)
@pytest.mark.parametrize("content", [1.0, 1e6, np.nan])
def test_absent_clients_are_as_if_removed(name, content):
    rule, x = RULES[name], draw()
    x[ABSENT] = content
    present = jnp.asarray(~ABSENT)
    if not rule.accepts_absent:
        with pytest.raises(ValueError, match=f"{type(rule).__name__} cannot leave out absent"):
            rule.inspect(x, context=given(present=present))
        return
    ids = jnp.asarray(np.flatnonzero(~ABSENT), jnp.int32)
    rest = given(N - 2, byzantine=jnp.asarray(BYZANTINE[~ABSENT]), client_ids=ids)
    expected = compiled(rule, x[~ABSENT], start(rule, x[~ABSENT]), rest)  # without a mask
    got = run(rule, x, context=given(present=present))
    close(got.update, expected.update)
    close(jax.tree.map(lambda leaf: leaf[~ABSENT], got.info), expected.info)
    if got.info.weights is not None:
        np.testing.assert_array_equal(got.info.weights[ABSENT], 0)
