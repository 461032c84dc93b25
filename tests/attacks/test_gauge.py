"""The gauge attack: no model changes, means of factors do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import Gauge, Krum, Mean, Median, ProductSpace
from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import Defence
from jaxfl.types import Context, Spec, segments_of

N, R, RATE = 8, 2, 0.5
TREE = {"layer": {"lora_a": np.zeros((4, R)), "lora_b": np.zeros((R, 3))}, "loose": np.zeros(5)}
D, SEGMENTS = 4 * R + R * 3 + 5, segments_of(TREE)
BYZANTINE = np.arange(N) >= 6


def model(vector):
    a, b, rest = np.split(np.asarray(vector, float), [4 * R, 4 * R + R * 3])
    return a.reshape(4, R) @ b.reshape(R, 3), rest


def attacked(attack, params, rows):
    known = {"params": jnp.asarray(params), "learning_rate": jnp.asarray(RATE)}
    context = Context.of(N, segments=SEGMENTS, **known)
    defence = Defence(aggregator=Mean(), state=(), context=context)
    spec = Spec(N, N, D, 3)
    sent, _ = jax.jit(attack_rows, static_argnums=7)(
        attack,
        jnp.asarray(rows),
        jnp.asarray(BYZANTINE),
        attack.init(spec),
        context,
        jax.random.key(0),
        defence,
        3,
    )
    return np.asarray(sent), context


def draw():
    random = np.random.default_rng(0)
    params = random.normal(size=D).astype("f4")
    return params, 0.3 * random.normal(size=(N, D)).astype("f4")


@pytest.mark.parametrize("factor", [10.0, -1.0])
def test_each_attackers_model_is_its_honest_one(factor):
    params, rows = draw()
    sent, _ = attacked(Gauge(factor=factor), params, rows)
    np.testing.assert_array_equal(sent[:6], rows[:6])
    for honest, crafted in zip(rows[6:], sent[6:], strict=True):
        for x, y in zip(model(params - RATE * honest), model(params - RATE * crafted), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=2e-6)
    a = np.split(params - RATE * sent, [4 * R], axis=1)[0]
    np.testing.assert_allclose(
        a[6:], factor * (params - RATE * rows)[6:, : 4 * R], rtol=1e-4, atol=1e-5
    )


def test_what_means_of_factors_and_of_products_become():
    """All agree on the layer: by factors it is multiplied, by products it stays."""
    params, rows = draw()
    rows[:] = 0
    c, m = 10.0, 2
    sent, context = attacked(Gauge(factor=c), params, rows)
    by_factors, _ = model(params - RATE * np.asarray(Mean()(sent)))
    times = ((N - m) + m * c) * ((N - m) + m / c) / N**2
    np.testing.assert_allclose(by_factors, times * model(params)[0], rtol=1e-4)
    by_products, _ = model(params - RATE * np.asarray(ProductSpace()(sent, context=context)))
    np.testing.assert_allclose(by_products, model(params)[0], rtol=0, atol=1e-5)


def test_where_the_server_takes_no_step_honest_updates_are_sent(monkeypatch):
    monkeypatch.setitem(globals(), "RATE", 0.0)
    params, rows = draw()
    np.testing.assert_array_equal(attacked(Gauge(factor=3.0), params, rows)[0], rows)


def test_a_rule_of_distances_takes_an_honest_client_for_an_attacker():
    """The attackers send what is nearest to all, by other factors."""
    params, rows = draw()
    rows[6:] = rows[:6].mean(axis=0)
    sent, context = attacked(Gauge(), params, rows)
    assert np.argmax(Krum(f=1).inspect(sent).info.weights) < 6
    kept = ProductSpace(rule=Krum(f=1)).inspect(sent, context=context).info.weights
    assert np.argmax(kept) >= 6


def test_without_adapters_honest_updates_are_sent():
    rows = draw()[1]
    context = Context.of(N, params=jnp.zeros(D), segments=segments_of({"kernel": np.zeros(D)}))
    defence = Defence(aggregator=Median(), state=(), context=context)
    sent, _ = attack_rows(
        Gauge(), jnp.asarray(rows), jnp.asarray(BYZANTINE), (), context, jax.random.key(0),
        defence, 2,
    )  # fmt: skip
    np.testing.assert_array_equal(sent, rows)


def test_a_factor_of_nothing():
    with pytest.raises(ValueError, match="factor must not be 0"):
        Gauge(factor=0.0)
