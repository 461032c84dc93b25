"""The edge-case backdoor, and the rare samples that it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import jaxfl
from jaxfl import Backdoor, Combined, EdgeCase, Neurotoxin, Scaling
from jaxfl.attacks.views import ClientView
from jaxfl.data import IID, RareData, digits, from_arrays
from jaxfl.models import Softmax
from jaxfl.types import Batch

DIGITS = digits()
RARE = RareData(label=7, size=14)


def test_the_rarest_samples_of_a_class():
    """Those of least density by a Gaussian of 30 components and a common variance."""
    apart = DIGITS.set_apart(RARE)
    own = np.asarray(DIGITS.labels) == 7
    x = np.asarray(DIGITS.inputs)[own].reshape(own.sum(), -1).astype(float)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    rest = np.maximum(values[:-30], 1e-9 * values[-1]).mean()
    cov = (vectors[:, -30:] * (values[-30:] - rest)) @ vectors[:, -30:].T + rest * np.eye(64)
    density = multivariate_normal(x.mean(axis=0), cov)
    rarest = np.argsort(density.logpdf(x))[:14]
    got = apart.rare_inputs.reshape(14, -1)
    np.testing.assert_array_equal(np.sort(got, axis=0), np.sort(x[rarest], axis=0))
    tested = np.asarray(DIGITS.test_labels) == 7
    y = np.asarray(DIGITS.test_inputs)[tested].reshape(tested.sum(), -1)
    count = round(14 / own.sum() * tested.sum())
    rarest = y[np.argsort(density.logpdf(y.astype(float)))[:count]]
    np.testing.assert_array_equal(apart.rare_test_inputs.reshape(count, -1), rarest)
    assert len(apart.labels) == len(DIGITS.labels) - 14
    assert (np.asarray(apart.labels) == 7).sum() == own.sum() - 14
    assert len(apart.test_labels) == len(DIGITS.test_labels)


def test_attackers_train_on_what_is_rare():
    view = ClientView(
        *(jnp.int32(0), jnp.array(True), jnp.int32(3), jnp.int32(0), 10),
        rare=lambda key, count: jnp.full((count, 2, 2), 7.0),
    )
    batch = Batch(jnp.zeros((5, 2, 2)), jnp.full(5, 4, jnp.int32), jnp.arange(5) < 4)
    poisoned = EdgeCase(target=1, fraction=0.5).poison(batch, view, jax.random.key(0))
    assert poisoned.labels.tolist() == [1, 1, 4, 4, 4]
    assert poisoned.inputs[:, 0, 0].tolist() == [7, 7, 0, 0, 0]


@pytest.mark.slow
def test_success_is_of_rare_inputs():
    """Without a defence attackers teach them."""
    data = DIGITS.set_apart(RARE).split(IID(), 6)
    assert data.rare_inputs.shape == (14, 8, 8, 1)
    attack, model = EdgeCase(target=1), Softmax()
    simulation = jaxfl.Simulation(jaxfl.Federation(attack=attack, byzantine=3), data, model)
    before = float(simulation.evaluate().attack_success)
    success = float(simulation.run(12).evaluations.attack_success[-1])
    assert before < 0.4 < 0.6 < success
    assert success * len(data.rare_test_inputs) % 1 == pytest.approx(0, abs=1e-4)


def test_several_simulations_with_rare_samples_are_one():
    data = DIGITS.set_apart(RARE).split(IID(), 6)
    parts = [jaxfl.Federation(attack=EdgeCase(fraction=x), byzantine=3) for x in (0.25, 0.5)]
    messages = jaxfl.Simulation(parts, data, Softmax(), seeds=[0, 0]).messages()
    assert (np.asarray(messages.own[0]) != np.asarray(messages.own[1])).any()


def test_what_needs_rare_samples():
    for attack in (
        EdgeCase(),
        Neurotoxin(attack=EdgeCase()),
        Combined(data=EdgeCase(), message=Scaling(factor=2.0)),
    ):
        assert attack.needs_rare
        with pytest.raises(ValueError, match=r"needs samples that only .*RareData\(label=7\)"):
            jaxfl.Federation(attack=attack).check(10)
        jaxfl.Federation(attack=attack).check(10, rare=1)
    assert not Backdoor().needs_rare
    with pytest.raises(ValueError, match="EdgeCase: target must be a class, 0 to 2; got 3"):
        EdgeCase(target=3).check((2, 2), 3)


@pytest.mark.parametrize(
    ("rare", "inputs", "message"),
    [
        (RareData(label=0, size=2), np.zeros((4, 2)), "more than size = 2 .* has 2 and 2"),
        (RareData(label=2, size=1), np.zeros((4, 2)), "RareData: class 2 .* has 0 and 0"),
        (RareData(label=0, size=1), np.zeros((4, 2), np.int32), "needs inputs of numbers.*int32"),
    ],
)
def test_rare_samples_must_be_there(rare, inputs, message):
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match=message):
        from_arrays(inputs, labels, inputs, labels).set_apart(rare)
