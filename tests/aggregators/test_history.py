"""FoolsGold and ByzantineSGD over several rounds, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.aggregators import ByzantineSGD, FoolsGold
from jaxfl.types import Context, Spec

N, D, ROUNDS = 9, 20, 4


def draw_rounds(kind="random", rounds=ROUNDS, seed=0):
    """Updates of several rounds, in float64; clients 0 and 1 are sybils after round 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rounds, N, D))
    x[1:, 0] = x[1:, 1] + 0.01 * rng.normal(size=(rounds - 1, D))
    if kind == "tied":
        x[:, 3] = x[:, 4]
        x[:, 0] = x[:, 1]
    if kind == "skewed":
        x = np.exp(x)
    if kind == "sparse":
        x *= rng.random(size=x.shape) < 0.3
        x[:, 5] = 0
    return x * 1e-12 if kind == "tiny" else x


def run_rounds(rule, rounds, dtype, params=None, ids=None, population=N):
    state = rule.init(Spec(population=population, cohort=N, dim=D, dtype=dtype))
    results = []
    for t, x in enumerate(rounds):
        known = {"round": jnp.int32(t)}
        if params is not None:
            known["params"] = jnp.asarray(params[t], dtype)
        if ids is not None:
            known["client_ids"] = jnp.asarray(ids[t], jnp.int32)
        result = rule.inspect(jnp.asarray(x, dtype), context=Context.of(N, **known), state=state)
        state = result.state
        results.append(result)
    return results


def reference_foolsgold(histories):
    n = len(histories)
    norms = np.linalg.norm(histories, axis=1)
    unit = histories / np.where(norms == 0, 1, norms)[:, None]
    cosines = unit @ unit.T - np.eye(n) * (norms > 0)
    most = np.maximum(cosines.max(1), 0)
    pardoned = cosines.copy()
    for i in range(n):
        for j in range(n):
            if i != j and most[j] > most[i]:
                pardoned[i, j] *= most[i] / most[j]
    np.fill_diagonal(pardoned, 0)
    rates = np.clip(1 - pardoned.max(1), 0, 1)
    if rates.max() == 0:
        return np.ones(n)
    rates = np.minimum(rates / rates.max(), 0.99)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(rates / (1 - rates)) + 0.5, 0, 1)


@pytest.mark.parametrize("kind", ["random", "skewed", "sparse", "tiny"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_foolsgold(kind, dtype):
    rounds = draw_rounds(kind).astype(dtype).astype(np.float64)
    with jax.enable_x64(dtype == "float64"):
        results = run_rounds(FoolsGold(), rounds, dtype)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    for t, result in enumerate(results):
        rates = reference_foolsgold(rounds[: t + 1].sum(0))
        np.testing.assert_allclose(result.info.scores, rates, rtol=10 * rtol, atol=10 * rtol)
        expected = rates @ rounds[t] / rates.sum()
        scale = np.abs(rounds[t]).max()
        np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=10 * rtol * scale)


def test_foolsgold_silences_sybils():
    results = run_rounds(FoolsGold(), draw_rounds(), "float32")
    assert results[0].info.weights[:2].min() > 0.05
    assert results[-1].info.weights[:2].max() < 0.01
    assert results[-1].info.weights[2:].min() > 0.05


def test_foolsgold_as_in_the_paper_is_a_sum():
    x = draw_rounds()[:1]
    (mean,) = run_rounds(FoolsGold(), x, "float32")
    (total,) = run_rounds(FoolsGold(average=False), x, "float32")
    factor = np.sum(mean.info.scores)
    np.testing.assert_allclose(total.update, mean.update * factor, rtol=1e-5)


@pytest.mark.parametrize("population", [N, 30])
def test_histories_belong_to_clients_not_to_rows(population):
    rounds = draw_rounds(rounds=3)
    rng = np.random.default_rng(7)
    ids = np.stack([rng.permutation(population)[:N] for _ in range(3)])
    results = run_rounds(FoolsGold(), rounds, "float32", ids=ids, population=population)
    histories = np.zeros((population, D))
    for x, who, result in zip(rounds, ids, results, strict=True):
        histories[who] += x
        rates = reference_foolsgold(histories[who])
        np.testing.assert_allclose(result.info.scores, rates, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(results[-1].state, histories, rtol=1e-5, atol=1e-5)


def test_a_history_that_overflows_is_left_out():
    rounds = np.ones((3, N, D))
    rounds[:] = draw_rounds()[:3]
    rounds[:, 2] = 3e18  # squared norms of 2e38, then 7e38
    results = run_rounds(FoolsGold(), rounds, "float32")
    assert np.isfinite(results[-1].update).all()
    assert results[-1].info.weights[2] == 0


class ReferenceByzantineSGD:
    def __init__(self, deviation, diameter, horizon, delta):
        far = 4 * deviation * np.sqrt(horizon * np.log(16 * N * horizon / delta))
        self.deviation, self.far_a, self.far_b = deviation, diameter * far, far
        self.progress, self.history = np.zeros(N), np.zeros((N, D))
        self.good, self.start = np.ones(N, bool), None

    def central(self, x, radius):
        distances = np.linalg.norm(x[:, None] - x[None], axis=2)
        return x[np.argmax((distances <= radius).sum(1))]

    def step(self, x, params):
        self.start = params if self.start is None else self.start
        self.progress += x @ (params - self.start)
        self.history += x
        self.good &= np.abs(self.progress - np.median(self.progress)) <= self.far_a
        middle = self.central(self.history, self.far_b)
        self.good &= np.linalg.norm(self.history - middle, axis=1) <= self.far_b
        middle = self.central(x, 2 * self.deviation)
        self.good &= np.linalg.norm(x - middle, axis=1) <= 4 * self.deviation
        return self.good @ x / N


# Who is expelled: 2 by a single update, 4 by the sum of small biases, 6 by its sum of products.
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "thresholds", [(3.0, 3.0, 2.0, 0.5), (3.0, 1e3, 2.0, 0.5), (1e3, 9, 9, 0.1)]
)
def test_byzantine_sgd(thresholds, dtype):
    rounds = draw_rounds(rounds=12)
    rounds[:, 0] = np.random.default_rng(5).normal(size=(12, D))
    rounds[5, 2] += 20
    rounds[:, 4] += 1.9
    params = np.cumsum(np.random.default_rng(3).normal(size=(12, D)), axis=0)
    rounds[:, 6] -= 0.3 * (params - params[0])
    rule = ByzantineSGD(
        deviation=thresholds[0], diameter=thresholds[1], horizon=thresholds[2], delta=thresholds[3]
    )
    with jax.enable_x64(dtype == "float64"):
        results = run_rounds(rule, rounds, dtype, params=params)
    reference = ReferenceByzantineSGD(*thresholds)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    for x, w, result in zip(rounds, params, results, strict=True):
        expected = reference.step(x, w)
        np.testing.assert_array_equal(result.info.selected, reference.good)
        np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=rtol)
    expelled = np.flatnonzero(~reference.good)
    assert list(expelled) == ([] if thresholds[0] == 1e3 else EXPELLED[thresholds[1]])


EXPELLED = {3.0: [2, 4, 6], 1e3: [2, 4]}


def test_byzantine_sgd_expels_for_good():
    rounds = draw_rounds(rounds=3)
    rounds[1, 4] = np.nan
    results = run_rounds(ByzantineSGD(), rounds, "float32", params=np.zeros((3, D)))
    for result, count in zip(results, [N, N - 1, N - 1], strict=True):
        assert np.sum(result.info.selected) == count
    expected = np.delete(rounds[2], 4, axis=0).sum(0) / N
    np.testing.assert_allclose(results[2].update, expected, rtol=1e-4, atol=1e-5)


def test_byzantine_sgd_needs_the_parameters():
    with pytest.raises(ValueError, match=r"ByzantineSGD needs context\.params"):
        ByzantineSGD()(np.ones((5, 3), np.float32))
