"""PerLayer: a rule for each layer by itself; what needs layers and is not told of any."""

import jax
import numpy as np
import pytest

import jaxfl
from jaxfl import Krum, Mean, Median, PerLayer, Pipeline, TrimmedMean
from jaxfl.aggregators import (
    CenteredClipping,
    GeometricMedian,
    LossRejection,
    MultiKrum,
)
from jaxfl.data import IID, synthetic
from jaxfl.models import MLP, Softmax
from jaxfl.preaggregators import NNM
from jaxfl.types import Context, segments_of

N = 9
SHAPES = {"a": {"bias": (4,), "kernel": (3, 4)}, "b": {"kernel": (4, 2)}, "loose": (5,)}
LAYERS = [(0, 16), (16, 24), (24, 29)]
D = 29


def draw(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D)).astype(np.float32)
    x[0, :16] += 5
    x[1, 16:24] -= 5
    return x


def as_layers(x):
    leaves, tree = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    ends = np.cumsum([np.prod(shape) for shape in leaves])[:-1]
    parts = np.split(x, ends, axis=-1)
    return jax.tree.unflatten(
        tree, [p.reshape(*x.shape[:-1], *s) for p, s in zip(parts, leaves, strict=True)]
    )


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    "rule",
    [
        MultiKrum(f=2),
        pytest.param(Pipeline(pre=(NNM(f=2),), rule=GeometricMedian()), marks=pytest.mark.slow),
    ],
    ids=["multi_krum", "pipeline"],
)
def test_each_layer_is_aggregated_as_if_alone(rule):
    x = draw()
    got = PerLayer(rule=rule).inspect(as_layers(x))
    alone = [rule.inspect(x[:, a:b]) for a, b in LAYERS]
    np.testing.assert_allclose(
        flat(got.update), np.concatenate([one.update for one in alone]), rtol=1e-5, atol=1e-6
    )
    shares = [(b - a) / D for a, b in LAYERS]
    weights = sum(s * one.info.weights for s, one in zip(shares, alone, strict=True))
    np.testing.assert_allclose(got.info.weights, weights, rtol=1e-5, atol=1e-6)
    selected = np.any([one.info.selected for one in alone], axis=0)
    np.testing.assert_array_equal(got.info.selected, selected)


def test_coordinatewise_rules_do_not_care():
    x = draw()
    for rule in (Median(), TrimmedMean(f=2)):
        np.testing.assert_array_equal(flat(PerLayer(rule=rule)(as_layers(x))), rule(x))


def test_another_client_may_win_each_layer():
    x = draw()
    chosen = PerLayer(rule=Krum(f=2))(as_layers(x))
    rows = [np.flatnonzero((x[:, a:b] == flat(chosen)[a:b]).all(axis=1)) for a, b in LAYERS]
    assert len({int(row[0]) for row in rows}) > 1


def test_a_client_that_is_broken_in_one_layer_is_left_out_of_all():
    x = draw()
    x[3, 0] = np.nan
    weights = np.asarray(PerLayer(rule=Mean(weighted=False)).inspect(as_layers(x)).info.weights)
    assert weights[3] == 0
    np.testing.assert_allclose(np.delete(weights, 3), 1 / (N - 1), rtol=1e-6)


def clip(x, most):
    return x * np.minimum(1, most / np.linalg.norm(x, axis=1, keepdims=True))


@pytest.mark.parametrize("share", [False, True])
def test_layerwise_centred_clipping(share):
    """v_l <- v_l + mean_i clip(u_i_l - v_l), with one radius, or with its share of it."""
    tau, x = 1.5, np.stack([draw(seed) for seed in range(3)])
    rule = PerLayer(rule=CenteredClipping(tau=tau, iterations=1), share_units=share)
    v, state = np.zeros(D), None
    for one in x:
        result = rule.inspect(as_layers(one), state=state)
        state = result.state
        for a, b in LAYERS:
            radius = tau * np.sqrt((b - a) / D) if share else tau
            v[a:b] += clip(one[:, a:b] - v[None, a:b], radius).mean(axis=0)
        np.testing.assert_allclose(flat(result.update), v, rtol=1e-4, atol=1e-5)


def test_segments_of_a_context_serve_a_matrix():
    x = draw()
    one = segments_of(jax.tree.map(lambda leaf: leaf[0], as_layers(x)))
    rule = PerLayer(rule=Krum(f=2))
    got = rule(x, context=Context.of(N, segments=one))
    np.testing.assert_array_equal(got, flat(rule(as_layers(x))))
    with pytest.raises(ValueError, match="segments of the context must cover d = 28 numbers; they"):
        rule(x[:, 1:], context=Context.of(N, segments=one))


@pytest.mark.parametrize(
    "rule", [PerLayer(rule=Krum(f=2)), Pipeline(pre=(), rule=PerLayer(rule=Mean()))]
)
def test_a_bare_matrix_tells_no_layers(rule):
    with pytest.raises(ValueError, match="PerLayer needs the model's layers, which a bare matrix"):
        rule(draw())


def test_rules_that_need_the_whole_model_are_refused():
    for rule in (LossRejection(f=1), PerLayer(rule=Mean())):
        with pytest.raises(ValueError, match=f"PerLayer: {type(rule).__name__} needs the whole mo"):
            PerLayer(rule=rule)


@pytest.mark.slow
def test_in_a_federation():
    data = synthetic(samples=300, features=6, classes=3).split(IID(), 8)
    given = {"data": data, "aggregator": PerLayer(rule=Krum(f=2))}
    attack = {"attack": jaxfl.ReverseScaling(factor=50.0), "byzantine": 2, "rounds": 12}
    history = jaxfl.simulate(model=MLP(hidden=(5,)), **given, **attack)
    assert history.final_accuracy > 0.5
    with pytest.raises(ValueError, match=r"MimeLite sends more than a model, which PerLayer"):
        jaxfl.simulate(model=Softmax(), algorithm=jaxfl.MimeLite(), rounds=1, **given)
