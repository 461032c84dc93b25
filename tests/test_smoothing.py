"""CRFL: what the server does to its model, in the round, and the certificate, in plain NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged

import jaxfl
from jaxfl import CRFL, SGD, FedAvg, Federation, FedProx, FedSGD, Mean, Simulation
from jaxfl.certificate import certified_radius, share_bounds, softmax_lipschitz
from jaxfl.models import MLP, Softmax
from jaxfl.state import round_keys

CLIP = CRFL(start=0.5, growth=0.25, most=0.9, noise=0.125)
PLAIN = Federation(
    algorithm=FedSGD(), aggregator=Mean(weighted=False), optimizer=SGD(learning_rate=1.0)
)
SIZES = (3, 9, 5, 12, 7)
THREAT = {"attackers": 2, "poisoned": 0.5, "at": 1}


def simulation(federation, model=None, **settings):
    return Simulation(federation, ragged(SIZES), model or Softmax(), **settings)


@functools.cache
def trained(federation=None):
    run = simulation(federation or PLAIN.replace(smoothing=CLIP))
    run.run(3)
    return run


def test_the_norm_grows_to_its_end():
    expected = [0.5, 0.75, 0.9, 0.9]
    np.testing.assert_allclose(CLIP.norm_after(jnp.arange(4)), expected, rtol=1e-6)
    long = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(CLIP.clipped(long, jnp.int32(1)), [0.45, 0.6], rtol=1e-6)
    short = jnp.array([0.03, 0.04])
    assert CLIP.clipped(short, jnp.int32(1)).tolist() == short.tolist()
    assert np.isnan(CLIP.clipped(jnp.array([jnp.nan, 1.0]), jnp.int32(1))[0])


def test_what_is_sent_has_noise_of_the_scale():
    params, key = jnp.ones(40_000), jax.random.key(0)
    assert CLIP.sent(params, jnp.int32(0), key).tolist() == params.tolist()
    added = np.asarray(CLIP.sent(params, jnp.int32(1), key)) - 1
    assert abs(added.mean()) < 5 * 0.125 / 200
    assert abs(added.std() / 0.125 - 1) < 5 / math.sqrt(2 * 40_000)


def test_rounds_clip_the_model_and_noise_what_is_sent():
    """w <- clip(s - g(s)) from s = w + noise, but the first s is w; the noise is not kept."""
    federation = PLAIN.replace(smoothing=CLIP)
    run = simulation(federation, evaluate_every=1)
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    own = [client_arrays(run.data, k) for k in range(len(SIZES))]
    for t, bound in ((1, 0.75), (2, 0.9), (3, 0.9)):
        before = run.state
        key = jax.random.fold_in(round_keys(before).noise, len(SIZES) + 1)
        at = np.asarray(CLIP.sent(before.params, before.round, key), np.float64)
        assert (t == 1) == np.array_equal(at, before.params)
        expected = np.stack([softmax.gradient(at, *pair) for pair in own])
        np.testing.assert_allclose(run.messages().own, expected, atol=1e-6)
        run.run(1)
        step = at - expected.mean(axis=0)
        step *= min(1, bound / np.linalg.norm(step))
        np.testing.assert_allclose(run.state.params, step, atol=1e-6)
        assert math.isclose(np.linalg.norm(run.state.params), bound, rel_tol=1e-5)


def test_bounds_and_radius_by_hand():
    top, second = share_bounds(np.array([[20, 950, 10, 20], [500, 500, 0, 0]]), alpha=0.001)
    np.testing.assert_allclose(top, [0.8912, 0.4412], atol=5e-5)
    np.testing.assert_allclose(second, [0.0788, 0.5588], atol=5e-5)
    moved = 17 * (0.1 * 0.05 / 20) ** 2
    radius = certified_radius(top, second, 0.01, moved)
    np.testing.assert_allclose(radius, [5.224, 0], atol=5e-4)
    sure, _ = share_bounds(np.array([[1000, 0]]), alpha=0.001)
    assert sure < 1


def test_the_constant_bounds_how_a_gradient_changes():
    assert softmax_lipschitz(3.0, 1.0) == math.sqrt(17)
    random, worst = np.random.default_rng(0), 0.0

    def gradient(w, x, y):
        logits = w @ x
        e = np.exp(logits - logits.max())
        return np.outer(e / e.sum() - y, x)

    for _ in range(3000):
        largest, norm = random.choice([0.5, 1.0, 5.0]), random.choice([0.5, 3.0])
        w, x, u = random.normal(size=(3, 4)), random.normal(size=3), random.normal(size=3)
        w, x = norm * w / np.linalg.norm(w), largest * x / np.linalg.norm(x)
        u, y = u * random.choice([0.01, 1.0]), np.eye(3)[random.integers(3)]
        v = random.choice([0.0, 0.1, 1.0]) * (np.eye(3)[random.integers(3)] - y)
        one, other = np.append(x, 1), np.append(x + u, 1)
        change = np.linalg.norm(gradient(w, other, y + v) - gradient(w, one, y))
        size = math.hypot(np.linalg.norm(u), np.linalg.norm(v))
        worst = max(worst, change / size / softmax_lipschitz(norm, largest))
    assert 0.5 < worst <= 1


def formula(run, steps, rate, weights, rhos, noise, draws=2000, alpha=0.01, scale=3.0):
    """The radius of given votes, in NumPy."""
    largest = max(np.linalg.norm(client_arrays(run.data, k)[0], axis=1).max() for k in range(5))
    squared = (math.sqrt(2) + rhos[0] * math.sqrt(1 + largest**2) / 2) ** 2 + 1 + largest**2
    squared = max(squared, 2 + 2 * rhos[0] + rhos[0] ** 2)
    passed = math.erf(rhos[1] / CLIP.noise / math.sqrt(2)) * math.erf(rhos[2] / noise / 2**0.5)
    divisor = 2 * 2 * steps**2 * squared * (weights**2).sum() * scale**2 * rate**2 * 0.5**2
    half = math.sqrt(math.log(1 / alpha) / (2 * draws))

    def radius(shares):
        top, second = np.sort(shares)[::-1][:2]
        gap = math.sqrt(max(top - half, 1e-8)) - math.sqrt(second + half)
        gap = gap**2 if top - half > second + half else 0
        return math.sqrt(-math.log(1 - gap) * CLIP.noise**2 / (divisor * passed))

    return radius


@pytest.mark.parametrize(
    ("federation", "steps", "rate", "weights"),
    [
        (PLAIN, 1, 1.0, np.full(2, 0.2)),
        (
            PLAIN.replace(
                algorithm=FedAvg(batch_size=4, epochs=2, optimizer=SGD(learning_rate=0.1)),
                aggregator=Mean(),
                optimizer=SGD(learning_rate=0.5),
            ),
            6,
            0.05,
            np.array([12, 9]) / 36,
        ),
    ],
)
def test_the_certificate_of_a_run(federation, steps, rate, weights):
    """Votes against the same noise in NumPy: shares agree to the noise of 2,000 draws."""
    run, noise = trained(federation.replace(smoothing=CLIP)), 0.5
    found = jaxfl.certify(run, **THREAT, scale=3.0, noise=noise, draws=2000, alpha=0.01)
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    params, random = np.asarray(run.state.params, np.float64), np.random.default_rng(0)
    inputs = np.asarray(run.data.test_inputs, np.float64)
    copies = [params + noise * random.normal(size=params.size) for _ in range(20_000)]
    answers = np.stack([softmax.predict(copy, inputs) for copy in copies])
    shares = np.stack([(answers == c).mean(axis=0) for c in range(3)], axis=1)
    radius = formula(run, steps, rate, weights, (0.75, 0.9, 0.9), noise)
    ordered = np.sort(shares, axis=1)
    clear = ordered[:, 2] - ordered[:, 1] > 0.1
    assert clear.sum() >= 6
    slack = 4 * math.sqrt(0.25 / 2000 + 0.25 / 20_000)
    for got, own in zip(found.radius[clear], ordered[clear], strict=True):
        around = [radius(own + np.array([0, -move, move])) for move in (-slack, slack)]
        assert around[0] <= got <= around[1]
    assert (found.predicted == shares.argmax(axis=1))[clear].all()
    assert found.radius.max() > 0
    assert found.certified_rate(0.0) == 1
    accuracy = np.mean(found.predicted == np.asarray(run.data.test_labels))
    assert found.certified_accuracy(0.0) == accuracy
    assert found.certified_accuracy(1e9) == found.certified_rate(1e9) == 0


def test_the_radius_falls_with_what_the_attack_may():
    run = trained()

    def largest(**changed):
        return jaxfl.certify(
            run, **(THREAT | {"draws": 50, "lipschitz": 4.0} | changed)
        ).radius.max()

    whole = largest()
    assert whole > 0
    # R sum p_i^2 is R^2 / K^2 where all weigh the same.
    assert math.isclose(largest(attackers=4), whole / 2)
    assert math.isclose(largest(scale=2.0), whole / 2)
    assert math.isclose(largest(poisoned=0.25), whole * 2)
    assert math.isclose(largest(lipschitz=1.0), whole * 4)
    # Noise as large as the clip: another round after the attack takes some of it away.
    loud = trained(PLAIN.replace(smoothing=CLIP.replace(noise=0.9)))
    early, late = (
        jaxfl.certify(loud, **(THREAT | {"at": at, "lipschitz": 4.0, "noise": 0.01})).radius.max()
        for at in (1, 2)
    )
    assert math.isclose(early / late, math.erf(1 / math.sqrt(2)) ** -0.5, rel_tol=1e-6)


SMOOTH = PLAIN.replace(smoothing=CLIP)


class Silent(CRFL):
    """Sends the clipped model as it is."""

    def sent(self, params, rounds, key):
        return self.clipped(params, rounds)


@pytest.mark.parametrize(
    ("federation", "model", "given", "error"),
    [
        (PLAIN, None, {}, r"needs a federation with smoothing=CRFL\(\)"),
        (SMOOTH, MLP(hidden=(3,)), {}, r"the theorem is of the model Softmax\(\); got MLP"),
        (SMOOTH.replace(aggregator=jaxfl.Median()), None, {}, "the theorem is of Mean; got Median"),
        (SMOOTH.replace(smoothing=Silent()), None, {}, "the theorem is of CRFL; got Silent"),
        (
            SMOOTH.replace(algorithm=FedProx(optimizer=SGD(learning_rate=0.1))),
            None,
            {},
            "of FedSGD without momentum, or FedAvg; got FedProx",
        ),
        (
            SMOOTH.replace(algorithm=FedSGD(momentum=0.9)),
            None,
            {},
            "of FedSGD without momentum, or FedAvg; got FedSGD",
        ),
        (
            SMOOTH.replace(optimizer=SGD(learning_rate=0.1, momentum=0.9)),
            None,
            {},
            "SGD of a constant rate alone; got SGD",
        ),
        (
            SMOOTH.replace(algorithm=FedAvg(epochs=2, optimizer=SGD(learning_rate=3.0))),
            None,
            {},
            "local steps must not drive two models apart, .* at most 4 .* got 3",
        ),
        (
            SMOOTH.replace(participation=jaxfl.Uniform(fraction=0.5)),
            None,
            {},
            r"the theorem is of Full\(\); got Uniform",
        ),
        (
            SMOOTH.replace(privacy=jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=1.0)),
            None,
            {},
            "of no privacy; got MessagePrivacy",
        ),
        (SMOOTH.replace(smoothing=CRFL(noise=0.0)), None, {}, "noise must be a number above 0"),
        (None, None, {"poisoned": 0.0}, "poisoned must be above 0 and at most 1; got 0.0"),
        (None, None, {"alpha": 2.0}, "alpha must be above 0 and at most 1; got 2.0"),
        (None, None, {"lipschitz": 0.0}, "lipschitz must be a number above 0; got 0.0"),
        (None, None, {"scale": math.inf}, "scale must be a number above 0; got inf"),
        (None, None, {"at": 3}, "at must be an integer, at least 1 and at most 2; got 3"),
        (None, None, {"attackers": 6}, "attackers must be an integer, at least 1 and at most 5"),
    ],
)
def test_what_is_not_covered_is_refused(federation, model, given, error):
    run = simulation(federation or PLAIN.replace(smoothing=CLIP), model)
    run.state = run.state.replace(round=jnp.int32(3))  # as if it had run
    with pytest.raises(ValueError, match=error):
        jaxfl.certify(run, **(THREAT | given))


def test_runs_that_cannot_be_certified():
    with pytest.raises(ValueError, match="takes one run; this simulation has 2"):
        jaxfl.certify(simulation(SMOOTH, seeds=(0, 1)), **THREAT)
    run = simulation(SMOOTH)
    with pytest.raises(ValueError, match="needs at least 2 rounds; this simulation has run 0"):
        jaxfl.certify(run, **THREAT)
    run.run(2)
    run.state = run.state.replace(params=run.state.params.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="the model has diverged"):
        jaxfl.certify(run, **THREAT)


def test_an_audit_knows_no_canary_beside_it():
    privacy = jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="without fairness weights or smoothing"):
        jaxfl.audit(SMOOTH.replace(privacy=privacy), ragged(SIZES), Softmax(), rounds=1)
