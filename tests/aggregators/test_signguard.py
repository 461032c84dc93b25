"""SignGuard and its variants over several rounds, against their definitions."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MeanShift
from threadpoolctl import threadpool_limits

from jaxfl.aggregators import Pipeline, SignGuard, SignGuardDist, SignGuardSim
from jaxfl.preaggregators import NNM
from jaxfl.types import Context, Spec

N, D, ROUNDS, WARMUP = 12, 400, 4, 2
KINDS = ("random", "tied", "skewed", "sparse", "tiny")
PLAIN, SIM, DIST = SignGuard(), SignGuardSim(warmup=WARMUP), SignGuardDist(warmup=WARMUP)
LOWER = SignGuard(lower=True)


def draw_rounds(kind="random", seed=0):
    """Rounds of honest updates around a mean; of 12 clients, 4 attack in different ways."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROUNDS, 1, D)) + 0.7 * rng.normal(size=(ROUNDS, N, D)) + 0.2
    x *= rng.uniform(0.7, 1.5, size=(ROUNDS, N, 1))
    if kind == "tied":
        x[:, 6:9] = x[:, 6:7]
    if kind == "skewed":
        x = x * np.exp(x)
    if kind == "sparse":
        x *= rng.random(size=x.shape) < 0.3
    x[:, 0] *= 10
    x[:, 1] *= 0.01
    x[:, 2:4] *= -1
    return x * 1e-12 if kind == "tiny" else x


@functools.partial(jax.jit, static_argnums=(0, 2))
def drawn_columns(rule, keys, dim):
    """The indices of the coordinates that a rule reads, for each of the keys."""
    return jax.vmap(lambda key: rule.columns(dim, Context.of(N, key=key)))(keys)


def sampled(rule, *seeds):
    return np.asarray(drawn_columns(rule, jax.vmap(jax.random.key)(np.array(seeds)), D))


def lower_median(values):
    return np.sort(values)[(len(values) - 1) // 2]


def similarity(rule, x, previous, early):
    """Further features, as a list of none or one, and what they come from."""
    if isinstance(rule, SignGuardSim):
        scores = x @ previous / (np.linalg.norm(x, axis=1) * max(np.linalg.norm(previous), 1e-300))
        if early:
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            cosines = unit @ unit.T
            np.fill_diagonal(cosines, 0)
            scores = np.array([lower_median(row) for row in cosines])
        middle = lower_median(scores)
        share = np.clip(scores, 0, middle) / (5 * middle + 1e-8) if middle > 0 else 0 * scores
        return [share], scores
    if isinstance(rule, SignGuardDist):
        scores = np.linalg.norm(x - previous, axis=1)
        if early:
            distances = np.linalg.norm(x[:, None] - x[None], axis=2)
            scores = np.sort(distances, axis=1)[:, : len(x) // 2].sum(1)
        return [(scores >= 1.1 * lower_median(scores)) / 5], scores
    return [], None


def largest_cluster(points, deviations):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    width = np.sort(distances, axis=1)[:, max(1, len(points) // 2) - 1].mean()
    if width == 0:
        groups = [np.all(points == p, axis=1) for p in np.unique(points, axis=0)]
        return max(groups, key=lambda g: (g.sum(), -np.median(deviations[g])))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", "Binning data failed")
        # Just wider: whatever lies exactly a bandwidth apart is within it.
        model = MeanShift(bandwidth=width * (1 + 1e-5), bin_seeding=True, cluster_all=False)
        labels = model.fit(points).labels_
    return labels == np.argmax(np.bincount(labels[labels >= 0]))


def reference(rule, x, previous, early, columns):
    """The answer, who is selected, and the scores."""
    norms = np.linalg.norm(x, axis=1)
    middle = np.median(norms)
    ordinary = np.full(len(x), True)
    if rule.filter_norms and middle > 0:
        ordinary = (norms >= rule.low * middle) & (norms <= rule.high * middle)
    features, scores = similarity(rule, x, previous, early)
    alike = np.full(len(x), True)
    if rule.cluster_signs:
        signs = np.sign(x[:, columns])
        shares = np.stack([(signs == s).mean(1) for s in (1, 0, -1)], axis=1)
        shares /= shares.max(0) + 1e-8
        points = np.column_stack([shares, *features])
        alike = largest_cluster(points, np.abs(norms - middle))
    kept = ordinary & alike
    if not kept.any():
        kept = ordinary
    if not kept.any():
        kept = np.arange(len(x)) == np.argsort(norms, kind="stable")[(len(x) - 1) // 2]
    if rule.clip:
        middle = lower_median(norms) if rule.lower else middle
        x = x * np.minimum(1, middle / np.maximum(norms, 1e-300))[:, None]
    return x[kept].mean(0), kept, scores


def start(rule, dtype):
    return rule.init(Spec(population=N, cohort=N, dim=D, dtype=dtype))


aggregate = jax.jit(lambda rule, x, state, context: rule.aggregate(x, state, context))


def run_rounds(rule, rounds, dtype):
    state, results = start(rule, dtype), []
    for t, x in enumerate(rounds):
        context = Context.of(N, key=jax.random.key(t))
        results.append(aggregate(rule, jnp.asarray(x, dtype), state, context))
        state = results[-1].state
    return results


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "rule", [PLAIN, SIM, DIST, LOWER], ids=["SignGuard", "SignGuardSim", "SignGuardDist", "lower"]
)
def test_parity(rule, dtype):
    rtol = 1e-9 if dtype == "float64" else 1e-4
    chosen = 0
    for kind in KINDS:
        rounds = draw_rounds(kind).astype(dtype).astype(np.float64)
        with jax.enable_x64(dtype == "float64"):
            results = run_rounds(rule, rounds, dtype)
            columns = sampled(rule, *range(ROUNDS))
        previous = np.zeros(D)
        for t, (x, result) in enumerate(zip(rounds, results, strict=True)):
            expected, kept, scores = reference(rule, x, previous, t < WARMUP, columns[t])
            np.testing.assert_array_equal(result.info.selected, kept, err_msg=f"{kind} {t}")
            scale = np.abs(x[kept]).max()
            np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=rtol * scale)
            if scores is None:
                assert result.info.scores is None
            else:
                scale = np.abs(scores).max()
                np.testing.assert_allclose(result.info.scores, scores, rtol=rtol, atol=rtol * scale)
            previous = expected
            chosen += kept.sum()
            assert kind == "skewed" or not kept[:2].any()
    assert chosen > 4 * len(KINDS) * ROUNDS


@pytest.mark.parametrize(
    "parts",
    [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        pytest.param((1, 1, 0), marks=pytest.mark.slow),
        pytest.param((0, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_components_can_be_switched_off(parts):
    """Those combinations that the paper's ablation has."""
    filter_norms, cluster_signs, clip = map(bool, parts)
    rule = SignGuardSim(filter_norms=filter_norms, cluster_signs=cluster_signs, clip=clip)
    x = draw_rounds()[0].astype(np.float32)
    key = jax.random.key(0)
    result = aggregate(rule, x, start(rule, "float32"), Context.of(N, key=key))
    columns = sampled(rule, 0)[0] if cluster_signs else None
    expected, kept, _ = reference(rule, x.astype(np.float64), np.zeros(D), True, columns)
    np.testing.assert_array_equal(result.info.selected, kept)
    np.testing.assert_allclose(result.update, expected, rtol=1e-4, atol=1e-4)


def test_the_filters_see_what_they_should():
    x = draw_rounds()[0].astype(np.float32)
    by_norm = SignGuard(cluster_signs=False).inspect(x).info.selected
    np.testing.assert_array_equal(by_norm, ~np.isin(np.arange(N), [0, 1]))
    by_signs = SignGuard(filter_norms=False, fraction=1.0).inspect(x).info.selected
    assert not np.any(by_signs[2:4])
    assert np.sum(by_signs) >= N // 2


def test_the_lower_median_clips_and_filters_nothing():
    """As in the authors' code: norms up to 3.3 pass, and longer than 1 are clipped to it."""
    x = np.eye(6, dtype=np.float32) * np.float32([1, 1, 1, 1.2, 1.3, 3.2])[:, None]
    for kind in (SignGuard, SignGuardSim, SignGuardDist):
        for lower, bound in ((False, 1.1), (True, 1.0)):
            result = kind(lower=lower, cluster_signs=False).inspect(x)
            np.testing.assert_array_equal(result.info.selected, True)
            clipped = np.minimum(np.diagonal(x), bound) / 6
            np.testing.assert_allclose(result.update, clipped, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.75, 1.0, 0.0001])
@pytest.mark.parametrize("dim", [1, 30, 1003])
def test_coordinates_are_drawn_one_from_each_stretch(fraction, dim):
    rule = SignGuard(fraction=fraction)
    size = max(1, round(fraction * 10_000) * dim // 10_000)
    keys = jax.vmap(jax.random.key)(np.arange(400))
    drawn = np.asarray(drawn_columns(rule, keys, dim))
    assert drawn.shape == (400, size)
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(dim), size)])
    assert np.all(drawn < ends)
    assert np.all(drawn[:, 1:] >= ends[:-1])
    assert drawn.min() >= 0
    if dim == 30:
        np.testing.assert_array_equal(np.unique(drawn), np.arange(dim))


def test_a_window_is_one_run():
    rule = SignGuard(window=True)
    drawn = np.asarray(drawn_columns(rule, jax.vmap(jax.random.key)(np.arange(300)), 30))
    assert drawn.shape == (300, 3)
    np.testing.assert_array_equal(np.diff(drawn), 1)
    np.testing.assert_array_equal(np.unique(drawn), np.arange(30))


def test_the_beginning_of_a_window_can_be_given():
    rule = SignGuard(window=True, start=27)
    np.testing.assert_array_equal(rule.columns(30, Context.of(3)), [27, 28, 29])
    x = jnp.ones((7, 4)).at[5:, 3].set(-1.0)  # the last column alone tells the rows apart
    seen = [SignGuard(fraction=0.5, window=True, start=i).inspect(x).info.selected for i in (1, 2)]
    assert [int(jnp.sum(selected)) for selected in seen] == [7, 5]
    with pytest.raises(ValueError, match="window of 3 of 30 coordinates must start by 27; got"):
        SignGuard(window=True, start=28).inspect(jnp.ones((3, 30)))


def test_without_a_client_in_both_sets_those_of_ordinary_norm_are_averaged():
    x = np.abs(draw_rounds()[0].astype(np.float32))
    x[:7] /= np.linalg.norm(x[:7], axis=1, keepdims=True)
    x[7:] *= -1 / np.linalg.norm(x[7:], axis=1, keepdims=True)
    x[:4], x[4:7] = 1000 * x[:4], x[4:7] / 1000  # the larger cluster has no ordinary norm
    result = SignGuard().inspect(x)
    np.testing.assert_array_equal(result.info.selected, np.arange(N) >= 7)


def test_without_an_ordinary_norm_the_client_of_median_norm_answers():
    x = draw_rounds()[0].astype(np.float32)
    norms = np.where(np.arange(N) < 6, 1e-3, 1e3) * (1 + 0.01 * np.arange(N))
    x *= (norms / np.linalg.norm(x, axis=1)).astype(np.float32)[:, None]
    result = SignGuard(high=1.5).inspect(x)  # the larger of two middle norms is at most 2 M
    np.testing.assert_array_equal(result.info.selected, np.arange(N) == 5)
    np.testing.assert_allclose(result.update, x[5], rtol=1e-5)


def test_zero_updates():
    for rule in (PLAIN, SIM, DIST):
        zeros = np.zeros((N, D), np.float32)
        result = aggregate(rule, zeros, start(rule, "float32"), Context.of(N))
        np.testing.assert_array_equal(result.info.selected, True)
        np.testing.assert_array_equal(result.update, 0)


def test_of_two_equal_camps_the_one_with_ordinary_norms_wins():
    """Two messages, six clients each: the bandwidth of the signs is 0."""
    x = np.ones((N, D), np.float32)
    x[::2] *= -1
    x *= np.where(np.arange(N) % 2, 1 + 0.01 * np.arange(N), 1 + 0.1 * np.arange(N))[:, None]
    selected = SignGuard().inspect(x).info.selected
    np.testing.assert_array_equal(selected, np.arange(N) % 2 == 1)


def test_memory_is_the_answer_behind_pre_aggregation_too():
    rule = Pipeline(pre=(NNM(f=2),), rule=SIM)
    rounds = draw_rounds().astype(np.float32)
    state = start(rule, "float32")
    for t, x in enumerate(rounds):
        mixed = np.asarray(_nnm(x))
        context = Context.of(N, key=jax.random.key(t))
        direct = aggregate(SIM, mixed, state, context)
        result = aggregate(rule, x, state, context)
        np.testing.assert_allclose(result.update, direct.update, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(result.state.previous, result.update)
        assert result.state.rounds == t + 1
        state = result.state


def _nnm(x):
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    return np.stack([x[np.argsort(row, kind="stable")[: N - 2]].mean(0) for row in distances])


@pytest.mark.parametrize(
    "rule",
    [SIM, pytest.param(DIST, marks=pytest.mark.slow)],
    ids=lambda rule: type(rule).__name__,
)
def test_scan_equals_a_loop(rule):
    rounds = draw_rounds().astype(np.float32)
    keys = jax.vmap(jax.random.key)(np.arange(ROUNDS))

    def step(state, each):
        result = rule.aggregate(each[0], state, Context.of(N, key=each[1]))
        return result.state, result.update

    _, scanned = jax.jit(lambda s, e: jax.lax.scan(step, s, e))(
        start(rule, "float32"), (rounds, keys)
    )
    looped = [result.update for result in run_rounds(rule, rounds, "float32")]
    np.testing.assert_allclose(scanned, looped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": -0.1}, "SignGuard: low must be at least 0"),
        ({"high": 0.5}, "SignGuard: high must be at least 1"),
        ({"fraction": 0.0}, "SignGuard: fraction must be above 0"),
        ({"fraction": 1.5}, "SignGuard: fraction must be above 0 and at most 1"),
        ({"window": 3}, "SignGuard: window must be true or false"),
        ({"start": 3}, "SignGuard: start needs window = True"),
        ({"start": -1, "window": True}, "SignGuard: start must be at least 0; got -1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SignGuard(**fields)
