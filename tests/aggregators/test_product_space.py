"""ProductSpace against the changes of layers, formed by NumPy; what gauges change and do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import (
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormClipping,
    Pipeline,
    ProductSpace,
    SignGuard,
)
from jaxfl.numerics import low_rank
from jaxfl.numerics.low_rank import Factors
from jaxfl.preaggregators import NNM
from jaxfl.types import Context, segments_of

N, RANK, RATE = 8, 2, 0.7
SHAPES = {
    "first": {"lora_a": (5, RANK), "lora_b": (RANK, 7)},
    "head": {"bias": (3,), "kernel": (4, 3)},
    "second": {"lora_a": (30, RANK), "lora_b": (RANK, 24)},  # (n + 1) r is below both sides
}
LEAVES, TREE = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
ENDS = np.cumsum([np.prod(s) for s in LEAVES])
D = int(ENDS[-1])
SEGMENTS = segments_of(jax.tree.unflatten(TREE, [np.zeros(s) for s in LEAVES]))


def parts(vector):
    """The arrays in a flat vector, by name."""
    leaves = np.split(np.asarray(vector, float), ENDS[:-1])
    return jax.tree.unflatten(TREE, [x.reshape(s) for x, s in zip(leaves, LEAVES, strict=True)])


def layers(vector):
    """What the vector's model is: its layers' matrices, and the head."""
    own = parts(vector)
    products = [own[k]["lora_a"] @ own[k]["lora_b"] for k in ("first", "second")]
    return [*products, own["head"]["bias"], own["head"]["kernel"]]


def formed(params, row):
    """What a step along a row takes from each layer, over the rate, in one vector."""
    now, then = layers(params), layers(params - RATE * row)
    return np.concatenate([np.ravel((x - y) / RATE) for x, y in zip(now, then, strict=True)])


def draw(seed=0):
    random = np.random.default_rng(seed)
    params, rows = random.normal(size=D), 0.4 * random.normal(size=(N, D))
    rows[-1] *= 3
    rows += 0.5 * random.normal(size=D)
    return params, rows


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def inspect(rule, params, rows, rate=RATE, **known):
    known = {k: jnp.asarray(v) for k, v in known.items()}
    known |= {"params": jnp.asarray(params), "learning_rate": jnp.asarray(rate)}
    context = Context.of(N, segments=SEGMENTS, **known)
    return ProductSpace(rule=rule).inspect(jnp.asarray(rows), context=context)


def best(matrix):
    u, s, v = np.linalg.svd(matrix)
    return u[:, :RANK] * s[:RANK] @ v[:RANK]


RULES = {
    "mean": Mean(),
    "multi_krum": MultiKrum(f=2),
    "clipping": NormClipping(),
    "geometric_median": GeometricMedian(),
    "nnm": Pipeline(pre=(NNM(f=2),), rule=Mean()),
    "fltrust": FLTrust(),
}


@pytest.mark.parametrize("name", RULES)
def test_equal_to_forming_the_changes(name):
    params, rows = draw()
    root = rows[:4].mean(axis=0) + 0.1
    changes = np.array([formed(params, row) for row in rows])
    plain = Context.of(N, root_update=jnp.asarray(formed(params, root)))
    want = RULES[name].inspect(jnp.asarray(changes), context=plain)
    got = inspect(RULES[name], params, rows, root_update=root)
    np.testing.assert_allclose(got.info.weights, want.info.weights, rtol=0, atol=1e-9)
    # The layers that follow are the nearest of their rank to those asked for; the head is exact.
    moved = layers(params - RATE * np.asarray(got.update))
    start = 0
    for i, (now, then) in enumerate(zip(layers(params), moved, strict=True)):
        change = np.asarray(want.update)[start : start + now.size].reshape(now.shape)
        asked = now - RATE * change
        np.testing.assert_allclose(then, best(asked) if i < 2 else asked, rtol=0, atol=1e-9)
        start += now.size


def test_a_client_that_is_not_finite_is_left_out():
    params, rows = draw()
    rows[2, 3], rows[5, D - 1] = np.nan, np.inf
    got = inspect(Mean(), params, rows)
    kept = np.delete(np.arange(N), [2, 5])
    np.testing.assert_allclose(np.asarray(got.info.weights)[kept], 1 / len(kept))
    assert np.all(np.isfinite(got.update))


def gauged(params, row, turn):
    """A row after which the model is the same, by other factors."""
    own = parts(params - RATE * row)
    for name in ("first", "second"):
        own[name]["lora_a"] = own[name]["lora_a"] @ turn
        own[name]["lora_b"] = np.linalg.inv(turn) @ own[name]["lora_b"]
    after = np.concatenate([np.ravel(x) for x in jax.tree.leaves(own)])
    return (params - after) / RATE


def test_gauges_change_nothing_in_product_space():
    params, rows = draw()
    rows[-1] = rows[:-1].mean(axis=0)  # what Krum picks
    other = rows.copy()
    other[-1] = gauged(params, rows[-1], np.array([[10.0, 1.0], [0.0, 5.0]]))
    before, after = (inspect(Krum(f=1), params, x) for x in (rows, other))
    assert np.argmax(before.info.weights) == N - 1
    np.testing.assert_allclose(after.info.weights, before.info.weights, atol=1e-12)
    model = [layers(params - RATE * np.asarray(got.update)) for got in (before, after)]
    for x, y in zip(*model, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-8)
    # In factors it is the farthest of all.
    assert np.argmax(Krum(f=1).inspect(jnp.asarray(rows)).info.weights) == N - 1
    assert np.argmax(Krum(f=1).inspect(jnp.asarray(other)).info.weights) != N - 1


def test_a_server_that_takes_no_step_moves_nothing():
    params, rows = draw()
    got = np.asarray(inspect(Mean(), params, rows, rate=0.0).update)
    assert np.isfinite(got).all()
    kept = layers(params - 0.0 * got)
    np.testing.assert_array_equal(kept[0], layers(params)[0])


def test_mixing_before_it_is_in_product_space_too():
    params, rows = draw()
    other = rows.copy()
    other[0] = gauged(params, rows[0], np.array([[10.0, 1.0], [0.0, 5.0]]))
    known = {"params": jnp.asarray(params), "learning_rate": jnp.asarray(RATE)}
    context = Context.of(N, segments=SEGMENTS, **known)
    mixed, mean = NNM(f=2), MultiKrum(f=2)
    before = Pipeline(pre=(mixed,), rule=ProductSpace(rule=mean))
    inside = ProductSpace(rule=Pipeline(pre=(mixed,), rule=mean))
    want, got, deceived = (
        rule.inspect(jnp.asarray(x), context=context)
        for rule, x in ((inside, rows), (before, rows), (before, other))
    )
    np.testing.assert_array_equal(got.update, want.update)
    np.testing.assert_array_equal(got.info.weights, want.info.weights)
    np.testing.assert_allclose(deceived.info.weights, want.info.weights, rtol=0, atol=1e-12)


def test_the_mean_of_products_is_not_the_product_of_means():
    # One of two clients multiplies A by 3 and divides B by 3: 4/3 of the layer, by factors.
    params, rows = draw()
    rows = np.zeros((N, D))
    rows[0::2] = gauged(params, rows[0], 3 * np.eye(RANK))
    factors = layers(params - RATE * rows.mean(axis=0))
    products = layers(params - RATE * np.asarray(inspect(Mean(), params, rows).update))
    for now, by_factors, by_products in zip(layers(params)[:2], factors, products, strict=False):
        np.testing.assert_allclose(by_factors, 4 / 3 * now, rtol=1e-9)
        np.testing.assert_allclose(by_products, now, rtol=0, atol=1e-9)


def test_clients_that_agree_on_a_keep_it():
    # Where nobody moves an orthonormal A, the answer is the mean of B, as FFA-LoRA's.
    random = np.random.default_rng(3)
    a = 2 * np.linalg.qr(random.normal(size=(6, RANK)))[0]
    b = random.normal(size=(N, RANK, 4))
    base, change = Factors(a, 0 * b[0]), Factors(np.zeros((N, 6, RANK)), b)
    base, change = jax.tree.map(jnp.asarray, (base, change))
    new = low_rank.combined(base, change, jnp.full(N, 1 / N), jnp.asarray(1.0))
    np.testing.assert_allclose(new.a, 0, atol=1e-12)
    np.testing.assert_allclose(new.b, b.mean(axis=0), atol=1e-12)


def test_short_changes_keep_their_digits():
    # Of float32 rows 1e-4 apart on layers of size 1, distances are right to a thousandth.
    params, rows = draw()
    rows = (rows[0] + 1e-4 * np.random.default_rng(5).normal(size=(N, D))).astype(np.float32)
    params = params.astype(np.float32)
    with jax.enable_x64(False):
        got = inspect(MultiKrum(f=2, q=1), params, rows, rate=RATE).info.scores
    changes = np.array([formed(params.astype(float), row.astype(float)) for row in rows])
    want = MultiKrum(f=2, q=1).inspect(jnp.asarray(changes)).info.scores
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_without_adapters_it_is_the_rule():
    rows = draw()[1]
    kernel = segments_of({"kernel": np.zeros(D)})
    context = Context.of(N, segments=kernel)
    got = ProductSpace(rule=MultiKrum(f=2)).inspect(jnp.asarray(rows), context=context)
    np.testing.assert_array_equal(got.update, MultiKrum(f=2)(jnp.asarray(rows)))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Median(), "needs a weighting rule, such as Mean or Krum, .* got Median"),
        (Pipeline(pre=(NNM(f=1),), rule=Median()), "got Median"),
        (SignGuard(), "norms and inner products only; SignGuard has columns"),
        (NormClipping(noise_std=0.1), "NormClipping has noise_std"),
    ],
)
def test_rules_that_cannot(rule, text):
    with pytest.raises(ValueError, match=text):
        ProductSpace(rule=rule)


def test_the_adapters_must_be_known():
    context = Context.of(N, segments=SEGMENTS)
    with pytest.raises(ValueError, match=r"pass context=Context.of\(n, params=...\)"):
        ProductSpace()(jnp.asarray(draw()[1]), context=context)
