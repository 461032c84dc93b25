"""The rules that use the server's own samples: formulas, ties, bad rows, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from helpers import NumpySoftmax

from jaxfl import NNM, FLTrust, LossRejection, Pipeline, Zeno
from jaxfl.models import Objective, Softmax
from jaxfl.types import Batch, Context

N, FEATURES, CLASSES, ROOT = 11, 4, 3, 30
OBJECTIVE = Objective.of(Softmax(), (FEATURES,), CLASSES)
DIM = OBJECTIVE.dim
SOFTMAX = NumpySoftmax(OBJECTIVE, FEATURES, CLASSES)
RANDOM = np.random.default_rng(1)
INPUTS = RANDOM.normal(size=(ROOT, FEATURES))
LABELS = np.argmax(INPUTS[:, :CLASSES] + RANDOM.normal(size=(ROOT, CLASSES)), axis=1)
START = RANDOM.normal(size=DIM)
METHODS = ("err", "lfr", "union")


def loss(w):
    return SOFTMAX.loss(w, INPUTS, LABELS)


def error(w):
    return np.mean(SOFTMAX.predict(w, INPUTS) != LABELS)


def updates(kind="random", n=N):
    """Gradients of random halves of the root samples, disturbed."""
    random = np.random.default_rng(2)
    halves = [random.permutation(ROOT)[: ROOT // 2] for _ in range(n)]
    x = np.stack([SOFTMAX.gradient(START, INPUTS[h], LABELS[h]) for h in halves])
    x += 0.5 * random.normal(size=x.shape)
    if kind == "tied":
        x[n // 2 : 2 * (n // 2)] = x[: n // 2]
    if kind == "skewed":
        x *= np.exp(2 * random.normal(size=(n, 1)))
    if kind == "sparse":
        x *= random.random(x.shape) < 0.2
    if kind == "tiny":
        x *= 1e-3
    return x


def context(dtype=np.float32, n=N, **known):
    shapes = tuple(jax.ShapeDtypeStruct(s.shape, dtype) for s in OBJECTIVE.shapes)
    mask = jnp.ones(ROOT, bool)
    batch = Batch(jnp.asarray(INPUTS, dtype), jnp.asarray(LABELS, jnp.int32), mask)
    server = {
        "objective": dataclasses.replace(OBJECTIVE, shapes=shapes),
        "params": jnp.asarray(START, dtype),
        "root_batch": batch,
        "learning_rate": jnp.asarray(0.1, dtype),
    }
    return Context.of(n, **(server | known))


def agree(rule, x, step, expected, scores, kept):
    """In double precision to rounding, in single to its own; exactly the same clients."""
    for dtype, rtol, atol in ((np.float64, 1e-9, 1e-12), (np.float32, 1e-4, 1e-6)):
        with jax.enable_x64(dtype == np.float64):
            known = context(dtype, len(x), learning_rate=jnp.asarray(step, dtype))
            got = rule.inspect(jnp.asarray(x, dtype), context=known)
        if np.min(np.diff(np.unique(scores)), initial=1) > 1e-5 or dtype == np.float64:
            np.testing.assert_array_equal(got.info.selected, kept)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got.update, expected, rtol=rtol, atol=atol * scale)
        np.testing.assert_allclose(got.info.scores, scores, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["random", "tied", "skewed", "sparse", "tiny"])
@pytest.mark.parametrize(
    ("rule", "step"),
    [
        (Zeno(f=3, rho=0.01), 0.5),
        (Zeno(f=2, b=7, rho=0.3, mean_square=True), 0.1),
        (Zeno(f=0, rho=0.0), 0.1),
        (Zeno(f=10), 1.0),
    ],
)
def test_zeno(rule, step, kind):
    x, rho = updates(kind), float(rule.rho)
    scores = references.zeno_scores(x, START, loss, step, rho, rule.mean_square)
    if kind == "tied":  # equal rows: their scores differ by what the order of sums makes of them
        scores[N // 2 : 2 * (N // 2)] = scores[: N // 2]
    dropped = rule.f if rule.b is None else rule.b
    kept = np.full(N, True)
    kept[np.argsort(scores, kind="stable")[:dropped]] = False
    agree(rule, x, step, references.zeno(x, scores, dropped), scores, kept)


@pytest.mark.parametrize("kind", ["random", "skewed", "sparse", "tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_rejection(method, kind):
    x, step = updates(kind), 2.0
    by_loss, by_error = (references.impacts(x, START, measure, step) for measure in (loss, error))
    used = {"err": [by_error], "lfr": [by_loss], "union": [by_loss, by_error]}[method]
    update, kept = references.loss_rejection(x, 3, *used)
    agree(LossRejection(f=3, method=method), x, step, update, used[0], kept)


ROOT_UPDATE = SOFTMAX.gradient(START, INPUTS, LABELS)


@pytest.mark.parametrize("kind", ["random", "tied", "skewed", "sparse", "tiny"])
@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_fltrust(scale, kind):
    x = updates(kind)
    update, cosines, shares = references.fltrust(x, ROOT_UPDATE, scale)
    for dtype, rtol in ((np.float64, 1e-9), (np.float32, 1e-4)):
        with jax.enable_x64(dtype == np.float64):
            known = Context.of(N, root_update=jnp.asarray(ROOT_UPDATE, dtype))
            got = FLTrust(root_scale=scale).inspect(jnp.asarray(x, dtype), context=known)
        np.testing.assert_allclose(got.info.scores, cosines, rtol=rtol, atol=rtol / 100)
        np.testing.assert_allclose(got.info.weights, shares, rtol=rtol, atol=rtol / 100)
        np.testing.assert_array_equal(got.info.selected, cosines > 0)
        np.testing.assert_allclose(got.update, update, rtol=rtol, atol=rtol / 100)


def trusting(x, root=ROOT_UPDATE, rule=None):
    known = Context.of(len(x), root_update=jnp.asarray(root, jnp.float32))
    return (rule or FLTrust()).inspect(jnp.asarray(x, jnp.float32), context=known)


def test_fltrust_is_never_longer_than_the_root_update():
    x = updates()
    x[2:] = 1e15 * (ROOT_UPDATE + np.random.default_rng(0).normal(size=DIM))
    length = np.linalg.norm(ROOT_UPDATE)
    assert 0.5 * length < np.linalg.norm(trusting(x).update) <= 1.0001 * length
    aligned = trusting(np.tile(7 * ROOT_UPDATE, (N, 1)))
    np.testing.assert_allclose(aligned.update, ROOT_UPDATE, rtol=1e-5)


@pytest.mark.parametrize("case", ["opposed", "zero rows", "zero root", "nan root", "inf root"])
def test_without_trust_the_answer_is_zero(case):
    x = {"opposed": -np.abs(updates()) * np.sign(ROOT_UPDATE), "zero rows": 0 * updates()}
    root = {"zero root": 0.0, "nan root": np.nan, "inf root": np.inf}.get(case, 1.0) * ROOT_UPDATE
    got = trusting(x.get(case, updates()), root)
    np.testing.assert_array_equal(got.update, 0)
    np.testing.assert_array_equal(got.info.weights, 0)
    assert not got.info.selected.any()


def test_fltrust_leaves_out_rows_that_are_not_finite():
    x = updates()
    x[[2, 5], 1] = np.nan, 1e30
    rest = np.delete(x, [2, 5], axis=0)
    np.testing.assert_allclose(trusting(x).update, trusting(rest).update, rtol=1e-5)
    np.testing.assert_array_equal(trusting(x).info.weights[np.array([2, 5])], 0)


def test_fltrust_of_mixed_rows():
    x = updates()
    result = trusting(x, rule=Pipeline(pre=(NNM(f=3),), rule=FLTrust()))
    update = references.fltrust(references.nnm(x, 3), ROOT_UPDATE)[0]
    np.testing.assert_allclose(result.update, update, rtol=1e-4, atol=1e-6)
    assert float(result.info.weights.sum()) == pytest.approx(1, rel=1e-5)


def test_the_gradient_of_fltrust_agrees_with_differences():
    x, direction = updates(), np.random.default_rng(4).normal(size=(N, DIM))
    with jax.enable_x64(True):
        known = Context.of(N, root_update=jnp.asarray(ROOT_UPDATE))

        def norm(x):
            return jnp.sum(jnp.square(FLTrust().aggregate(x, (), known).update))

        both = jax.jit(jax.value_and_grad(norm))
        slope = np.sum(both(jnp.asarray(x))[1] * direction)
        up, down = (float(both(jnp.asarray(x + e * direction))[0]) for e in (1e-6, -1e-6))
        assert np.isfinite(both(jnp.zeros((N, DIM)))[1]).all()
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-5)


def test_union_can_remove_twice_as_many():
    x = updates("skewed")
    counts = {
        m: int(LossRejection(f=3, method=m).inspect(x, context=context()).info.selected.sum())
        for m in METHODS
    }
    assert counts["err"] == counts["lfr"] == N - 3
    assert N - 6 <= counts["union"] < N - 3


@pytest.mark.parametrize("rule", [Zeno(f=3), *(LossRejection(f=3, method=m) for m in METHODS)])
def test_among_equals_the_first_are_removed(rule):
    x = np.tile(updates()[:1], (N, 1)).astype(np.float32)
    got = rule.inspect(x, context=context())
    np.testing.assert_array_equal(got.info.selected, np.arange(N) >= 3)
    np.testing.assert_allclose(got.update, x[0], rtol=1e-6)


@pytest.mark.parametrize("rule", [Zeno(f=3), *(LossRejection(f=3, method=m) for m in METHODS)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_are_not_finite_go_first(rule, bad):
    x = updates().astype(np.float32)
    x[[2, 5], 1] = bad
    x[8] *= -20
    rest = np.delete(np.arange(N), [2, 5])
    got = rule.inspect(x, context=context())
    expected = rule.replace(f=1).inspect(x[rest], context=context(n=N - 2))
    np.testing.assert_array_equal(got.info.selected[rest], expected.info.selected)
    np.testing.assert_array_equal(got.info.weights[np.array([2, 5])], 0)
    np.testing.assert_allclose(got.update, expected.update, rtol=1e-5, atol=1e-6)
    assert not got.info.selected[8] or rule == LossRejection(f=3, method="err")


def test_zeno_stands_a_majority_of_attackers():
    x = updates().astype(np.float32)
    x[3:] *= -1
    got = Zeno(f=8).inspect(x, context=context())
    np.testing.assert_array_equal(got.info.selected, np.arange(N) < 3)


@pytest.mark.parametrize("rule", [Zeno(f=2), LossRejection(f=2)])
def test_the_mask_and_the_chunk(rule):
    """Padding in the batch does not count, and chunks are a matter of memory."""
    x = updates().astype(np.float32)
    expected = rule.inspect(x, context=context())
    batch = context().root_batch
    assert batch is not None
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:5]]), batch)
    padded = padded.replace(mask=jnp.arange(ROOT + 5) < ROOT)
    for changes in ({"root_batch": padded, "client_chunk": 4}, {"client_chunk": 50}):
        got = rule.inspect(x, context=context(**changes))
        np.testing.assert_array_equal(got.info.selected, expected.info.selected)
        np.testing.assert_allclose(got.info.scores, expected.info.scores, rtol=1e-4, atol=1e-6)


class Tally:
    """An objective whose loss is parameter 0 times the input: it shows which samples are used."""

    def evaluate(self, flat, statistics, inputs, labels):
        return flat[0] * inputs, jnp.zeros(labels.shape)


def test_zeno_draws_its_samples_anew_each_round():
    tally, powers = Tally(), 2.0 ** jnp.arange(10, dtype=jnp.float32)
    batch = Batch(powers, jnp.zeros(10, jnp.int32), jnp.ones(10, bool))
    server = {"objective": tally, "params": jnp.zeros(1), "root_batch": batch}
    rule, x = Zeno(f=0, rho=0.0, samples=4), np.ones((1, 1), np.float32)
    seen = set()
    for seed in range(8):
        known = Context.of(1, key=jax.random.key(seed), **server)
        total = round(4 * float(rule.inspect(x, context=known).info.scores[0]))
        assert total.bit_count() == 4
        seen.add(total)
    assert len(seen) > 4
    for samples in (10, 50, None):
        known = Context.of(1, **server)
        score = rule.replace(samples=samples).inspect(x, context=known).info.scores[0]
        assert float(score) == pytest.approx(102.3)


@pytest.mark.parametrize("rule", [Zeno(f=2), LossRejection(f=2, method="lfr")])
def test_the_gradient_is_that_of_the_mean_of_the_kept(rule):
    x, known = jnp.asarray(updates(), jnp.float32), context()

    def total(x):
        return jnp.sum(rule.aggregate(x, (), known).update)

    weights = rule.inspect(x, context=known).info.weights
    expected = np.tile(np.asarray(weights)[:, None], (1, DIM))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Zeno(f=11), "Zeno needs n > f clients; got n = 11, f = 11"),
        (Zeno(f=2, b=1), "Zeno needs n > b >= f; got n = 11, b = 1, f = 2"),
        (Zeno(f=2, b=11), "Zeno needs n > b >= f; got n = 11, b = 11, f = 2"),
        (LossRejection(f=6), "LossRejection needs n > 2f clients; got n = 11, f = 6"),
        (
            Zeno(f=2),
            r"Zeno needs the server's data: pass context=Context.of\(n, root_batch=..., "
            r"params=..., objective=...\)",
        ),
        (LossRejection(f=2), "LossRejection needs the server's data: pass context"),
        (
            FLTrust(),
            r"FLTrust needs the server's data: pass context=Context.of\(n, root_update=...\)",
        ),
        (Pipeline(pre=(NNM(f=2),), rule=FLTrust()), "Pipeline needs the server's data"),
    ],
)
def test_what_is_missing_is_one_clear_error(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(updates().astype(np.float32))
