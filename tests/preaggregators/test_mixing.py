"""Pre-aggregators, alone and before every rule, against explicitly mixed rows."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references

from jaxfl.aggregators import (
    Aggregator,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    Pipeline,
    Statistics,
    TrimmedMean,
)
from jaxfl.preaggregators import ARC, NNM, Bucketing, Clipping
from jaxfl.registry import PREAGGREGATORS
from jaxfl.types import Aggregated, Context, Info

pytestmark = pytest.mark.grouped_by("name")

N, D, F = 12, 30, 1


def draw(n=N, d=D, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.5, 2, n)[:, None]
    return (0.3 + spread * rng.normal(size=(n, d))).astype(np.float32)


def statistics(x):
    x = np.asarray(x, np.float32)
    usable = np.isfinite(x).all(1)
    norms = np.where(usable, np.linalg.norm(np.where(usable[:, None], x, 0), axis=1), np.inf)
    centred = np.where(usable[:, None], x, 0)
    return Statistics(
        usable=jnp.asarray(usable),
        norms=jnp.asarray(norms, jnp.float32),
        gram=jnp.asarray(centred @ centred.T),
    )


mix = jax.jit(lambda stage, given, context: stage.mix(given, context))


def matrix(stage, x, **known):
    mixing = np.asarray(mix(stage, statistics(x), Context.of(len(x), **known)), np.float64)
    return np.diag(mixing) if stage.diagonal else mixing


@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 0), (5, 2), (12, 3)])
def test_nnm(n, f):
    x = draw(n)
    expected = references.nnm(x.astype(np.float64), f)
    np.testing.assert_allclose(matrix(NNM(f=f), x) @ x, expected, rtol=1e-4, atol=1e-5)


def test_nnm_keeps_two_far_clusters_apart():
    x = np.repeat(np.float32([[0, 0], [100, 0]]), [8, 4], axis=0)
    x[:, 1] = np.arange(12) * 1e-3
    mixed = matrix(NNM(f=4), x) @ x
    np.testing.assert_allclose(mixed[:8], np.tile(x[:8].mean(0), (8, 1)), atol=1e-5)


def test_nnm_gives_no_weight_to_unusable_rows():
    x = draw()
    x[4] = np.nan
    m = matrix(NNM(f=2), x)
    assert (m[4] == 0).all()
    assert (m[:, 4] == 0).all()
    rest = references.nnm(np.delete(x, 4, axis=0).astype(np.float64), 1)
    got = np.delete(np.delete(m, 4, axis=0), 4, axis=1) @ np.delete(x, 4, axis=0)
    np.testing.assert_allclose(got, rest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(12, 2, [2] * 6), (11, 3, [2, 3, 3, 3]), (5, 5, [5]), (3, 7, [3])]
)
def test_bucketing_averages_disjoint_groups(n, size, sizes):
    m = matrix(Bucketing(size=size), draw(n))
    members = m > 0
    assert m.shape == (Bucketing(size=size).rows(n), n)
    np.testing.assert_array_equal(members.sum(0), 1)
    np.testing.assert_array_equal(np.sort(members.sum(1)), sizes)
    np.testing.assert_allclose(m, members / members.sum(1, keepdims=True), rtol=1e-6)


def test_bucketing_regroups_with_the_key():
    x = draw()
    groupings = {(matrix(Bucketing(), x, key=jax.random.key(s)) > 0).tobytes() for s in range(5)}
    assert len(groupings) == 5


def test_bucketing_pairs_every_two_clients_as_often():
    mix_all = jax.jit(jax.vmap(lambda key: Bucketing().mix(given, Context.of(N, key=key))))
    given = statistics(draw())
    members = np.asarray(mix_all(jax.random.split(jax.random.key(0), 4000)) > 0, np.float64)
    together = np.einsum("kbi,kbj->ij", members, members) / 4000
    np.testing.assert_allclose(together[~np.eye(N, dtype=bool)], 1 / (N - 1), atol=0.025)


def test_bucketing_leaves_unusable_rows_out_of_their_group():
    x = draw()
    x[4] = np.nan
    m = matrix(Bucketing(size=3), x)
    assert (m[:, 4] == 0).all()
    np.testing.assert_allclose(m.sum(1), 1, rtol=1e-6)
    assert np.sort((m > 0).sum(1)).tolist() == [2, 3, 3, 3]


def test_groups_of_one_keep_the_clients_weights():
    x = draw()
    weights = jnp.arange(1.0, N + 1) / (N * (N + 1) / 2)
    context = Context.of(N, weights=weights)
    pipeline = Pipeline(pre=(Bucketing(size=1),), rule=Mean())
    np.testing.assert_allclose(pipeline(x, context=context), weights @ x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "f"), [(5, 0), (5, 1), (5, 2), (12, 3), (12, 5)])
def test_arc(n, f):
    x = draw(n)
    expected = references.arc(x.astype(np.float64), f)
    np.testing.assert_allclose(matrix(ARC(f=f), x) @ x, expected, rtol=1e-5)


def test_arc_leaves_the_smallest_rows_alone():
    x, k = draw(), 2 * 3 * (N - 3) // N
    scale = np.diagonal(matrix(ARC(f=3), x))
    largest = np.argsort(np.linalg.norm(x, axis=1))[N - k :]
    assert (scale[largest] < 1).all()
    assert (np.delete(scale, largest) == 1).all()


def test_arc_counts_in_integers():
    """(2 f / n)(n - f) is 57 exactly for n = 242, f = 33, but 56.99... in floats."""
    norms = np.arange(1, 243, dtype=np.float32)
    given = Statistics(usable=jnp.ones(242, bool), norms=jnp.asarray(norms), gram=None)
    scale = mix(ARC(f=33), given, Context.of(242))
    assert (scale < 1).sum() == 2 * 33 * (242 - 33) // 242


def test_arc_survives_zero_rows():
    x = draw()
    x[:10] = 0
    np.testing.assert_array_equal(Pipeline(pre=(ARC(f=3),), rule=Mean())(x), np.zeros(D))


@pytest.mark.parametrize("stage", [NNM(f=6), ARC(f=6)], ids=repr)
def test_mixing_needs_an_honest_majority(stage):
    name = type(stage).__name__
    with pytest.raises(ValueError, match=f"{name} needs n > 2f clients; got n = 12, f = 6"):
        Pipeline(pre=(stage,), rule=Mean())(draw())


RULES = {
    "mean": (Mean(), references.mean),
    "median": (Median(), references.median),
    "trimmed_mean": (TrimmedMean(f=F), functools.partial(references.trimmed_mean, f=F)),
    "krum": (Krum(f=F), functools.partial(references.krum, f=F)),
    "geometric_median": (GeometricMedian(), references.geometric_median),
    "centered_clipping": (
        CenteredClipping(tau=1.5, iterations=2),
        functools.partial(references.centered_clipping, v=np.zeros(D), tau=1.5, iterations=2),
    ),
}
CHAINS = {
    "nnm": (NNM(f=3),),
    "arc": (ARC(f=3),),
    "bucketing": (Bucketing(size=2),),
    "arc+nnm": (ARC(f=3), NNM(f=3)),
    "nnm+arc": (NNM(f=3), ARC(f=3)),
    "bucketing+nnm": (Bucketing(size=2), NNM(f=1)),
    "clipping+arc": (Clipping(tau=5.0), ARC(f=3)),
}
USUAL = {("nnm", rule) for rule in RULES} | {
    *((chain, rule) for chain in CHAINS for rule in ("median", "krum")),
    ("arc+nnm", "trimmed_mean"),
    ("nnm+arc", "geometric_median"),
    ("bucketing+nnm", "centered_clipping"),
    ("arc", "mean"),
    ("clipping+arc", "mean"),
}
"""Compiling takes the time: only NNM meets every rule in ``make test``."""
PAIRS = [
    pytest.param(chain, rule, marks=() if (chain, rule) in USUAL else pytest.mark.slow)
    for chain in CHAINS
    for rule in RULES
]


def mix_explicitly(chain, x):
    for stage in chain:
        if isinstance(stage, NNM):
            x = references.nnm(x, stage.f)
        elif isinstance(stage, ARC):
            x = references.arc(x, stage.f)
        else:
            x = matrix(stage, x) @ x
    return x


@pytest.mark.parametrize("offset", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(("chain", "rule"), PAIRS)
def test_pipeline_equals_mixing_first(chain, rule, offset):
    x = draw() + np.float32(offset)
    x[2] *= 20
    ours, reference = RULES[rule]
    got = Pipeline(pre=CHAINS[chain], rule=ours)(x)
    expected = reference(mix_explicitly(CHAINS[chain], x.astype(np.float64)))
    atol = 5e-3 if rule == "geometric_median" else 1e-4
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("rule", ["krum", "geometric_median", "mean"])
def test_pipeline_weights_are_those_of_the_clients(rule):
    x = draw()
    result = Pipeline(pre=(NNM(f=3), Bucketing(size=2)), rule=RULES[rule][0]).inspect(x)
    np.testing.assert_allclose(result.info.weights @ x, result.update, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(result.info.selected, np.asarray(result.info.weights) > 0)


def test_pipeline_carries_the_memory_of_its_rule():
    rule = CenteredClipping(tau=1.0)
    pipeline = Pipeline(pre=(NNM(f=3),), rule=rule)
    v, state = np.zeros(D), None
    for seed in range(2):
        x = draw(seed=seed)
        result = pipeline.inspect(x, state=state)
        state = result.state
        v = references.centered_clipping(references.nnm(x.astype(np.float64), 3), v, 1.0, 3)
        np.testing.assert_allclose(result.update, v, rtol=1e-3, atol=1e-4)


def test_pipeline_over_several_blocks_of_columns():
    x = draw(d=9000)
    got = Pipeline(pre=(ARC(f=3), NNM(f=3)), rule=Median())(x)
    expected = np.median(references.nnm(references.arc(x.astype(np.float64), 3), 3), axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_nested_pipelines_are_one_list():
    x = draw()
    nested = Pipeline(pre=(ARC(f=3),), rule=Pipeline(pre=(NNM(f=3),), rule=Krum(f=3)))
    flat = Pipeline(pre=(ARC(f=3), NNM(f=3)), rule=Krum(f=3))
    got, expected = nested.inspect(x), flat.inspect(x)
    np.testing.assert_array_equal(got.update, expected.update)
    np.testing.assert_array_equal(got.info.weights, expected.info.weights)


@pytest.mark.parametrize(
    "rule", [CenteredClipping(tau=2.0), MoNNA(f=3, trusted=4), MoNNA(f=3, trusted=7)], ids=repr
)
@pytest.mark.parametrize("broken", [False, True])
def test_in_n_space_and_directly(rule, broken):
    """Some rules read the matrix a few times where nothing is mixed, its products where it is."""
    x = draw()
    if broken:
        x[2, 3], x[7] = np.nan, 1e30
    direct = rule.inspect(x)
    mixed = Pipeline(pre=(Bucketing(size=1),), rule=rule).inspect(x)
    np.testing.assert_allclose(direct.update, mixed.update, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(direct.info.weights, mixed.info.weights, rtol=1e-5, atol=1e-6)


class FirstRow(Aggregator):
    """Neither weighting nor coordinatewise: gets the mixed rows themselves."""

    def aggregate(self, updates, state, context):
        finite = jnp.all(jnp.isfinite(updates), axis=1)
        first = jnp.argmax(finite)
        weights = jnp.eye(len(updates), dtype=updates.dtype)[first]
        return Aggregated(update=updates[first], state=state, info=Info(weights=weights))


def test_other_rules_get_the_mixed_rows():
    x = draw()
    x[0] = np.nan
    result = Pipeline(pre=(ARC(f=3), NNM(f=3)), rule=FirstRow()).inspect(x)
    usable = x[1:].astype(np.float64)
    # The dropped row is one of the f: two more are clipped, and each mean leaves out two.
    expected = usable * scales_of_arc(usable, len(x), 3)[:, None]
    near = np.argsort(references.squared_distances(expected), axis=1, kind="stable")[
        0, : len(x) - 3
    ]
    np.testing.assert_allclose(result.update, expected[near].mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.info.weights @ np.nan_to_num(x), result.update, atol=1e-4)
    assert result.info.weights[0] == 0


def scales_of_arc(x, n, f):
    norms = np.linalg.norm(x, axis=1)
    threshold = np.sort(norms)[n - 2 * f * (n - f) // n - 1]
    return np.minimum(1, threshold / norms)


def test_rules_are_checked_for_the_rows_they_get():
    with pytest.raises(ValueError, match="TrimmedMean needs n > 2f clients; got n = 6, f = 3"):
        Pipeline(pre=(Bucketing(size=2),), rule=TrimmedMean(f=3))(draw())


@pytest.mark.parametrize("name", sorted(PREAGGREGATORS))
def test_a_call_shows_the_rows_that_a_rule_gets(name):
    stage = PREAGGREGATORS[name].example(f=2)
    x = np.random.default_rng(4).normal(size=(12, 30)).astype(np.float32)
    mixed = stage(x)
    assert mixed.shape == (stage.rows(12), 30)
    piped = Pipeline(pre=[stage], rule=Mean(weighted=False))(x)
    np.testing.assert_allclose(mixed.mean(axis=0), piped, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(stage(list(x)), mixed)


def test_the_rows_of_a_call_are_those_of_numpy():
    x = np.random.default_rng(4).normal(size=(7, 5)).astype(np.float32)
    distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    expected = np.stack([x[np.argsort(row)[:5]].mean(axis=0) for row in distances])
    np.testing.assert_allclose(NNM(f=2)(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (np.ones(3, np.float32), r"NNM: updates must be a matrix \[n, d\]"),
        (np.ones((3, 2, 2), np.float32), r"NNM: updates must be a matrix.*got \(3, 2, 2\)"),
        (np.ones((0, 2), np.float32), r"NNM: updates must be a matrix.*got \(0, 2\)"),
        ({"a": np.ones((3, 2))}, "NNM: updates must be a matrix.*got dict"),
        (np.ones((3, 2), int), "NNM: updates must be floating-point; got int"),
        ([np.ones(3), np.ones(2)], "NNM: a list of updates must be of vectors of one length"),
    ],
)
def test_what_is_no_matrix_is_refused(updates, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        NNM(f=0)(updates)


def test_the_key_of_a_context_decides_the_buckets():
    x = np.random.default_rng(4).normal(size=(7, 5)).astype(np.float32)
    for seed in (1, 2):
        key = jax.random.key(seed)
        bucket = np.asarray(jax.random.permutation(key, 7)) // 3
        expected = [x[bucket == b].mean(axis=0) for b in range(3)]
        got = Bucketing(size=3)(x, context=Context.of(7, key=key))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
