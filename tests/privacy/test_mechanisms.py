"""What the mechanisms do in the round: noise, clips, samples, memory; against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import NumpySoftmax, client_arrays, ragged
from scipy import stats

from jaxfl import (
    IPM,
    SGD,
    Federation,
    FedSGD,
    Krum,
    Mean,
    MessagePrivacy,
    MimeLite,
    Poisson,
    SignFlip,
    Simulation,
)
from jaxfl.clients import Samples
from jaxfl.models import MLP, Softmax
from jaxfl.participation import Cyclic
from jaxfl.privacy import BandedNoise, CentralPrivacy, ExamplePrivacy, NoPrivacy, QuantileClip
from jaxfl.privacy.deployment import Turn
from jaxfl.types import Batch

SIZES = (3, 9, 5, 12, 7)


def simulation(federation, sizes=SIZES, model=None, **settings):
    return Simulation(federation, ragged(sizes), model or Softmax(), **settings)


@pytest.mark.parametrize(("kind", "law"), [("gaussian", stats.norm), ("laplace", stats.laplace)])
def test_a_million_draws_have_the_stated_distribution(key, kind, law):
    """Chi-square over 100 cells of equal probability."""
    privacy = MessagePrivacy(clip=2.0, noise_multiplier=1.5, mechanism=kind)
    noise = np.asarray(privacy.message(jnp.zeros((1_000_000,)), key), np.float64)
    cells = np.floor(law.cdf(noise, scale=3.0) * 100).clip(0, 99)
    counts = np.bincount(cells.astype(int), minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert counts.sum() == 1_000_000


def test_laplacian_noise_clips_the_sum_of_magnitudes(key):
    privacy = MessagePrivacy(clip=2.0, noise_multiplier=0.0, mechanism="laplace")
    message = np.random.default_rng(0).normal(size=30).astype(np.float32)
    clipped = np.asarray(privacy.message(jnp.asarray(message), key))
    np.testing.assert_allclose(clipped, message * 2 / np.abs(message).sum(), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_message_that_is_not_finite_is_nothing_and_a_huge_one_is_clipped(key, bad):
    privacy = MessagePrivacy(clip=2.0)
    assert not np.any(privacy.message(jnp.asarray([1.0, bad, 3.0]), key))
    huge = privacy.message(jnp.asarray([3e38, -3e38, 3e38, 3e38]), key)
    np.testing.assert_allclose(huge, [1, -1, 1, 1], rtol=1e-5)


def test_sensitivity_is_the_clip_for_any_neighbours(key):
    """Search over pairs of messages, among them the worst that gradients can be."""
    privacy, rng = MessagePrivacy(clip=1.5), np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-30, 30, size=(200, 1))
    messages = (scales * rng.normal(size=(200, 6))).astype(np.float32)
    bounded = np.asarray(jax.vmap(privacy.message, (0, None))(messages, key), np.float64)
    assert np.linalg.norm(bounded, axis=1).max() <= 1.5 * (1 + 1e-6)
    pairs = np.linalg.norm(bounded[:, None] - bounded[None], axis=2)
    assert pairs.max() <= 3.0 * (1 + 1e-6)
    assert pairs.max() > 2.5


def test_no_noise_where_the_multiplier_is_zero():
    for privacy in (
        MessagePrivacy(clip=1e6),
        ExamplePrivacy(clip=1e6, noise_multiplier=0.0, sampling="fixed"),
    ):
        federation = Federation(algorithm=FedSGD(batch_size=4), privacy=privacy)
        private = simulation(federation).messages().sent
        plain = simulation(federation.replace(privacy=NoPrivacy())).messages().sent
        # Loss and gradient of the same batches; only the order of sums differs.
        np.testing.assert_allclose(private, plain, rtol=1e-4, atol=1e-5)


def test_examples_are_clipped_one_by_one_and_divided_by_the_expected_batch():
    privacy = ExamplePrivacy(clip=0.7, noise_multiplier=0.0, sampling="fixed")
    run = simulation(Federation(algorithm=FedSGD(), privacy=privacy))
    softmax = NumpySoftmax(run.plan.objective, 4, 3)
    start = np.asarray(run.state.params, np.float64)
    own = np.asarray(run.messages().own)
    for k, size in enumerate(SIZES):
        x, y = client_arrays(run.data, k)
        total = np.zeros_like(start)
        for i in range(size):
            g = softmax.gradient(start, x[i : i + 1], y[i : i + 1])
            total += g * min(1, 0.7 / np.linalg.norm(g))
        np.testing.assert_allclose(own[k], total / size, rtol=1e-4, atol=1e-6)


def test_example_noise_is_of_the_stated_size_and_each_clients_own():
    quiet = Federation(
        algorithm=FedSGD(batch_size=4),
        privacy=ExamplePrivacy(clip=0.7, noise_multiplier=0.0, sampling="fixed"),
        optimizer=SGD(learning_rate=1e-9),
    )
    loud = quiet.replace(privacy=quiet.privacy.replace(noise_multiplier=2.0))
    model = MLP(hidden=(200,))
    a, b = simulation(quiet, model=model), simulation(loud, model=model)
    noise = []
    for _ in range(2):
        noise.append(np.asarray(b.messages().own - a.messages().own))
        a.run(1)
        b.run(1)
    expected = 2.0 * 0.7 / np.minimum(4, SIZES)
    np.testing.assert_allclose(np.std(noise[0], axis=1), expected, rtol=0.08)
    together = np.corrcoef(np.concatenate(noise))
    assert np.abs(together - np.eye(len(together))).max() < 0.12


def test_poisson_samples_have_the_right_law():
    """Sizes are binomial, every sample is as likely, two are independent."""
    size, count, slots = 5, 12, 40
    samples = Samples(
        count=jnp.int32(count),
        load=lambda place, mask, key: Batch(place, place, mask),
        capacity=slots,
        overflow=1e-12,
    )

    @jax.jit
    @jax.vmap
    def draw(key):
        batch = samples.batch(0, size, key, key)
        return jnp.zeros(count).at[batch.inputs].add(batch.mask)

    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), 20_000)))
    assert drawn.max() == 1
    assert set(np.unique(drawn)) <= {0, 1}
    rate = size / count
    np.testing.assert_allclose(drawn.mean(axis=0), rate, atol=5 * np.sqrt(rate / 20_000))
    sizes = np.bincount(drawn.sum(axis=1).astype(int), minlength=count + 1)
    law = stats.binom.pmf(np.arange(count + 1), count, rate) * 20_000
    likely = law > 5
    squares = (sizes - law)[likely] ** 2 / law[likely]
    assert stats.chi2.sf(squares.sum(), likely.sum() - 1) > 1e-4
    correlation = np.corrcoef(drawn.T) - np.eye(count)
    assert np.abs(correlation).max() < 0.04


def test_poisson_samples_of_a_small_client_are_all_it_has_and_steps_differ():
    samples = Samples(
        count=jnp.int32(3),
        load=lambda place, mask, key: Batch(place, place, mask),
        capacity=40,
        overflow=1e-9,
    )
    key = jax.random.key(0)
    batch = samples.batch(0, 5, key, key)
    assert sorted(np.asarray(batch.inputs)[np.asarray(batch.mask)]) == [0, 1, 2]
    many = samples.replace(count=jnp.int32(40))
    masks = [np.asarray(many.batch(step, 5, key, key).mask).sum() for step in range(12)]
    assert len(set(masks)) > 2


@pytest.mark.parametrize("participation", [None, Poisson(rate=0.6), Cyclic(groups=2)])
def test_central_noise_is_on_the_clipped_sum_over_the_expected_cohort(participation):
    federation = Federation(
        algorithm=FedSGD(),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1.0),
        privacy=CentralPrivacy(clip=0.4, noise_multiplier=0.0),
    )
    expected = 5
    if participation is not None:
        federation = federation.replace(participation=participation)
        expected = 3
    run = simulation(federation)
    exchange, start = run.messages(), np.asarray(run.state.params)
    there = np.ones(len(exchange.ids), bool) if exchange.present is None else exchange.present
    own = np.asarray(exchange.own, np.float64)[np.asarray(there)]
    norms = np.linalg.norm(own, axis=1)
    total = (own * np.minimum(1, 0.4 / norms)[:, None]).sum(axis=0)
    run.run(1)
    np.testing.assert_allclose(start - run.state.params, total / expected, rtol=1e-4, atol=1e-6)


def central_noise(privacy, rounds, participation=None):
    """Released minus exact aggregates of so many rounds of a run that stands still."""
    federation = Federation(
        algorithm=FedSGD(batch_size=3),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1e-6),
        privacy=privacy,
    )
    if participation is not None:
        federation = federation.replace(participation=participation)
    loud = simulation(federation, model=MLP(hidden=(300,)))
    quiet = federation.replace(privacy=privacy.replace(noise_multiplier=0.0))  # the same program
    calm = simulation(quiet, model=MLP(hidden=(300,)))
    noise = []
    for _ in range(rounds):
        before = np.asarray(loud.state.params, np.float64), np.asarray(calm.state.params)
        loud.run(1)
        calm.run(1)
        after = np.asarray(loud.state.params, np.float64), np.asarray(calm.state.params)
        noise.append(((before[0] - after[0]) - (before[1] - after[1])) * 1e6)
    return np.stack(noise)


def test_central_noise_has_the_stated_deviation_and_is_new_every_round():
    noise = central_noise(CentralPrivacy(clip=400.0, noise_multiplier=2.0), 2)
    np.testing.assert_allclose(np.std(noise, axis=1), 2 * 400 / 5, rtol=0.05)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1


@pytest.mark.slow
def test_correlated_noise_is_the_inverse_of_its_matrix_times_white_noise():
    banded, clip = BandedNoise(rounds=4, bands=3), 400.0
    noise = central_noise(
        CentralPrivacy(clip=clip, noise_multiplier=2.0, correlated=banded), 4, Cyclic(groups=2)
    )
    column = np.append(banded.coefficients, 0.0)
    matrix = np.array([[column[i - j] if i >= j else 0 for j in range(4)] for i in range(4)])
    # A client is back after two rounds: the worst sum of two columns that far apart.
    sensitivity = max(np.linalg.norm(matrix[:, j] + matrix[:, j + 2]) for j in range(2))
    assert banded.sensitivity(2) == pytest.approx(sensitivity, rel=1e-5)
    white = matrix @ noise / (2.0 * clip * sensitivity / 3)
    np.testing.assert_allclose(np.cov(white), np.eye(4), atol=0.12)
    # Which is the point: the sum over rounds has less noise than white noise of the same epsilon.
    assert np.std(noise.sum(axis=0)) < 2 * clip / 3 * np.sqrt(2) * np.sqrt(4)


def test_the_clip_finds_the_median_norm():
    federation = Federation(
        algorithm=FedSGD(),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1e-9),
        privacy=CentralPrivacy(clip=QuantileClip(initial=20.0), noise_multiplier=0.0),
    )
    run = simulation(federation)
    norms = np.linalg.norm(run.messages().own, axis=1)
    clips = run.run(60).records.clip
    assert clips[0] == pytest.approx(20.0)
    # C <- C exp(-0.2 (share below - 0.5)), by hand.
    clip, expected = 20.0, []
    for _ in range(60):
        expected.append(clip)
        clip *= np.exp(-0.2 * (np.mean(norms <= clip) - 0.5))
    np.testing.assert_allclose(clips, expected, rtol=1e-3)
    assert abs(np.mean(norms <= clips[-1]) - 0.5) <= 0.11


def test_one_client_more_moves_the_count_below_the_clip_by_a_half():
    """What the bits' share of the noise is accounted with, whatever the client's norm."""
    quantile = QuantileClip(initial=1.0, rate=0.2, noise=2.0)
    norms = jnp.asarray([0.5, 0.7, 2.0, 3.0, 0.1, 9.0])

    @jax.jit
    def clips(privacy, present, keys):
        def draw(key):
            state, zero = privacy.init(3), jnp.zeros(3)
            turn = Turn(present=present, expected=5, separation=1, mean=True)
            return privacy.release(zero, norms, turn, state, key)[1][0]

        return jax.vmap(draw)(keys)

    def logs(multiplier, there):
        privacy = CentralPrivacy(clip=quantile, noise_multiplier=multiplier)
        present = (np.arange(6) < there).astype(np.float32)
        return np.log(clips(privacy, present, jax.random.split(jax.random.key(0), 4_000)))

    for there in (4, 5):
        step = logs(0.0, there + 1).mean() - logs(0.0, there).mean()
        assert abs(step) == pytest.approx(0.2 * 0.5 / 5, rel=1e-3)
    # With everybody expected there, it follows the share: 2 of the first 5 are above the clip.
    assert logs(0.0, 5).mean() == pytest.approx(-0.2 * (3 / 5 - 0.5), rel=1e-3)
    assert np.std(logs(1.0, 5)) == pytest.approx(0.2 * 2.0 / 5, rel=0.05)


def test_every_one_of_several_federations_is_checked():
    def adapted(multiplier):
        privacy = CentralPrivacy(clip=QuantileClip(noise=2.0), noise_multiplier=multiplier)
        return Federation(aggregator=Mean(weighted=False), privacy=privacy)

    with pytest.raises(ValueError, match="noise_multiplier = 5; got 2"):
        Simulation([adapted(1.0), adapted(5.0)], ragged(SIZES), Softmax(), seeds=(0, 1))


def test_an_adaptive_clip_shares_the_noise():
    privacy = CentralPrivacy(clip=QuantileClip(initial=400.0, noise=2.0), noise_multiplier=1.0)
    federation = Federation(
        algorithm=FedSGD(batch_size=3),
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1e-6),
        privacy=privacy,
    )
    run = simulation(federation, model=MLP(hidden=(300,)))
    start = np.asarray(run.state.params, np.float64)
    mean = np.asarray(run.messages().own, np.float64).mean(axis=0)
    run.run(1)
    noise = (start - np.asarray(run.state.params, np.float64)) * 1e6 - mean
    assert np.std(noise) == pytest.approx((1 - 1 / 16) ** -0.5 * 400 / 5, rel=0.06)
    with pytest.raises(ValueError, match="noise must be above half of noise_multiplier = 5; got 2"):
        simulation(federation.replace(privacy=privacy.replace(noise_multiplier=5.0)))


@pytest.mark.parametrize(
    ("order", "clips", "bounded"),
    [
        ("noise_then_attack", None, False),
        ("noise_then_attack", True, True),
        ("attack_then_noise", None, True),
        ("attack_then_noise", False, False),
    ],
)
def test_crafted_messages_are_clipped_where_that_is_asked_for(order, clips, bounded):
    federation = Federation(
        algorithm=FedSGD(),
        attack=IPM(scale=100.0),
        byzantine=2,
        privacy=MessagePrivacy(clip=0.5, noise_multiplier=0.0, clip_byzantine=clips),
        noise_order=order,
    )
    exchange = simulation(federation).messages()
    norms, byzantine = np.linalg.norm(exchange.sent, axis=1), np.asarray(exchange.byzantine)
    assert (norms[byzantine].max() <= 0.5 * 1.001) == bounded
    assert norms[~byzantine].max() <= 0.5 * 1.001


@pytest.mark.slow
def test_noise_and_clip_can_be_swept():
    federation = Federation(
        algorithm=FedSGD(batch_size=4), privacy=ExamplePrivacy(clip=1.0, noise_multiplier=1.0)
    )
    swept = [
        federation.replace(privacy=federation.privacy.replace(noise_multiplier=z, clip=c))
        for z, c in ((0.0, 1.0), (0.5, 1.0), (0.5, 0.1))
    ]
    runs = Simulation(swept, ragged(), Softmax(), seeds=(0, 0, 0)).run(3)
    alone = simulation(swept[2]).run(3)
    np.testing.assert_allclose(runs.state.params[2], alone.state.params, rtol=1e-4, atol=1e-5)
    assert not np.allclose(runs.state.params[0], runs.state.params[1])


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x))


@pytest.mark.parametrize(
    ("federation", "model", "message"),
    [
        (Federation(privacy=ExamplePrivacy(clip=1.0)), Normed, "GroupNorm"),
        (
            Federation(privacy=ExamplePrivacy(clip=1.0), algorithm=MimeLite(batch_size=4)),
            None,
            "MimeLite sends more than gradients",
        ),
        (Federation(privacy=MessagePrivacy(clip=1.0, epsilon=1.0)), None, "calibrate"),
    ],
)
def test_what_a_mechanism_cannot_cover_is_refused(federation, model, message):
    with pytest.raises(ValueError, match=message):
        simulation(federation, model=model)


def test_example_privacy_lives_with_attack_defence_and_partial_cohorts():
    federation = Federation(
        algorithm=FedSGD(batch_size=4),
        privacy=ExamplePrivacy(clip=1.0, noise_multiplier=0.5),
        attack=SignFlip(),
        byzantine=1,
        aggregator=Krum(f=1),
    )
    history = simulation(federation).run(3)
    assert np.all(np.isfinite(history.state.params))
    assert list(history.records.participations) == [1, 2, 3]
