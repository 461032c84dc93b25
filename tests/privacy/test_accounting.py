"""Epsilon, against dp-accounting called directly, known values, and plain composition."""

import math
import re

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from helpers import ragged
from scipy.special import logsumexp
from scipy.stats import norm

import jaxfl
from jaxfl import (
    IPM,
    FedAvg,
    Federation,
    FedSGD,
    Gaussian,
    Krum,
    LabelFlip,
    Mean,
    MessagePrivacy,
    Poisson,
    Uniform,
)
from jaxfl.accounting import Meter, calibrate, gaussian_epsilon, guarantee
from jaxfl.clients import SCAFFOLD
from jaxfl.component import capability
from jaxfl.experiments import schema
from jaxfl.fairness import QFFL
from jaxfl.participation import Cyclic
from jaxfl.privacy import BandedNoise, CentralPrivacy, ExamplePrivacy, QuantileClip

DELTA = 1e-5
EQUAL = np.full(20, 1_000)


def renyi(event, count, delta=DELTA):
    return rdp.RdpAccountant().compose(event, count).get_epsilon(delta)


def tight(event, count, delta=DELTA):
    return pld.PLDAccountant().compose(event, count).get_epsilon(delta)


def sampled(rate, sigma):
    return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))


def example(batch, sigma, algorithm=FedSGD, **settings):
    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=sigma, **settings)
    return Federation(algorithm=algorithm(batch_size=batch), privacy=privacy)


def epsilon(federation, sizes, rounds, accountant="pld", **more):
    return guarantee(federation, sizes, rounds, accountant=accountant, **more).epsilon


@pytest.mark.parametrize(
    ("sigma", "batch", "size", "rounds", "expected"),
    [
        (1.1, 256, 60_000, 14_063, 2.597),
        (1.0, 10, 1_000, 1_000, 2.101),
        (4.0, 10, 1_000, 10_000, 1.035),
        (1.0, 1_000, 1_000, 100, 96.1),
        (5.0, 1_000, 1_000, 50, 7.08),
    ],
)
def test_renyi_epsilon_has_the_known_values(sigma, batch, size, rounds, expected):
    federation = example(batch, sigma, overflow=1e-18)
    found = epsilon(federation, [size] * 3, rounds, "rdp")
    digits = 1 if expected > 50 else 2 if expected > 5 else 3
    if batch < size:
        assert found == pytest.approx(expected, abs=1e-3)
        assert found == pytest.approx(renyi(sampled(batch / size, sigma), rounds), rel=1e-6)
    else:
        # Full batches are Gaussian releases; the tables say so many digits of them, of an
        # accountant with fewer orders: ours may only be lower.
        assert found == pytest.approx(renyi(dp_accounting.GaussianDpEvent(sigma), rounds))
        assert found <= expected + 10.0**-digits


@pytest.mark.parametrize(
    ("sigma", "batch", "size", "rounds", "expected"),
    [
        (1.1, 256, 60_000, 14_063, 2.391),
        (1.0, 10, 1_000, 1_000, 1.828),
        (4.0, 10, 1_000, 10_000, 0.960),
    ],
)
def test_tight_epsilon_of_sampled_noise(sigma, batch, size, rounds, expected):
    """The known values are of loss distributions in steps of 1e-3; ours are of 1e-4, and lower."""
    event = sampled(batch / size, sigma)
    coarse = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event, rounds)
    assert coarse.get_epsilon(DELTA) == pytest.approx(expected, abs=1e-3)
    found = epsilon(example(batch, sigma, overflow=1e-18), [size] * 3, rounds)
    assert found == pytest.approx(tight(event, rounds), abs=1e-3)
    assert found <= expected + 1e-3


@pytest.mark.parametrize(("sigma", "rounds", "expected"), [(1.0, 100, 91.8), (5.0, 50, 6.57)])
def test_tight_epsilon_of_full_batches(sigma, rounds, expected):
    found = epsilon(example(1_000, sigma), [1_000] * 3, rounds)
    assert found == pytest.approx(expected, abs=0.02 if expected > 10 else 0.004)


def test_unsampled_gaussian_noise_is_exact():
    """So many releases are one of less noise; its delta as a function of epsilon is known."""
    from scipy.stats import norm

    found = epsilon(Federation(privacy=MessagePrivacy(clip=2.0, noise_multiplier=5.0)), EQUAL, 50)
    mu = math.sqrt(50) / 5
    delta = norm.cdf(mu / 2 - found / mu) - math.exp(found) * norm.cdf(-mu / 2 - found / mu)
    assert delta == pytest.approx(DELTA, rel=1e-4)


def test_the_client_with_fewest_samples_counts():
    sizes, rounds = [500, 4_000, 50, 900], 100
    found = epsilon(example(25, 2.0, overflow=1e-30), sizes, rounds, "rdp")
    assert found == pytest.approx(renyi(sampled(0.5, 2.0), rounds), rel=1e-6)


def test_local_passes_count_every_step_and_the_worst_size_is_not_always_the_smallest():
    federation = example(50, 3.0, FedAvg, overflow=1e-30)
    # 51 samples take two steps at rate 50 / 51, 50 take one of rate 1.
    expected = renyi(sampled(50 / 51, 3.0), 2 * 40)
    assert epsilon(federation, [50, 51, 500], 40, "rdp") == pytest.approx(expected, rel=1e-6)
    assert expected > renyi(dp_accounting.GaussianDpEvent(3.0), 40)


def test_batches_of_one_size_protect_a_replaced_example_at_half_the_noise():
    fixed = example(50, 2.0, sampling="fixed")
    found = guarantee(fixed, EQUAL, 100, accountant="rdp")
    assert found.epsilon == pytest.approx(renyi(sampled(0.05, 1.0), 100))
    assert found.neighbours.startswith("one example replaced by another")
    assert found.caveats == (
        "samples of a fixed size are accounted as Poisson samples at half the noise",
    )
    # Also where the batch is all that the client has.
    assert epsilon(fixed, [50] * 3, 10, "rdp") == pytest.approx(
        renyi(dp_accounting.GaussianDpEvent(1.0), 10)
    )
    # A pass has every example once, in one batch: no sampling to gain from.
    passes = example(50, 2.0, FedAvg, sampling="fixed")
    assert epsilon(passes, EQUAL, 30, "rdp") == pytest.approx(
        renyi(dp_accounting.GaussianDpEvent(1.0), 30)
    )
    steps = Federation(algorithm=SCAFFOLD(steps=30, batch_size=50), privacy=fixed.privacy)
    assert epsilon(steps, EQUAL, 10, "rdp") == pytest.approx(
        renyi(dp_accounting.GaussianDpEvent(1.0), 20)
    )


def test_gradients_of_ones_own_that_a_round_takes_are_all_counted():
    class Thrice(FedSGD):
        """Sends the sum of three gradients, each of a batch of its own."""

        private = capability(True)
        post_processes = capability(True)

        def uses(self, per_pass):
            return 3, 1

    for sampling, sigma in (("poisson", 2.0), ("fixed", 1.0)):
        federation = example(50, 2.0, Thrice, sampling=sampling, overflow=1e-30)
        assert epsilon(federation, EQUAL, 10, "rdp") == pytest.approx(
            renyi(sampled(0.05, sigma), 30), rel=1e-6
        )


def test_laplacian_noise_is_no_worse_than_plain_composition():
    privacy = MessagePrivacy(clip=3.0, noise_multiplier=4.0, mechanism="laplace")
    found = epsilon(Federation(privacy=privacy), EQUAL, 40)
    assert found <= 10.0
    assert found == pytest.approx(tight(dp_accounting.LaplaceDpEvent(4.0), 40), abs=1e-6)
    # At very small delta, the pure guarantee.
    pure = Federation(privacy=privacy.replace(delta=1e-300))
    assert epsilon(pure, EQUAL, 2, "rdp") == pytest.approx(0.5)


def central(**settings):
    rule = settings.pop("aggregator", Mean(weighted=False))
    participation = settings.pop("participation", Federation().participation)
    privacy = CentralPrivacy(**({"clip": 1.0, "noise_multiplier": 2.0} | settings))
    return Federation(privacy=privacy, aggregator=rule, participation=participation)


@pytest.mark.parametrize(
    ("federation", "event", "count", "delta"),
    [
        (central(), dp_accounting.GaussianDpEvent(2.0), 30, DELTA),
        (central(clip=QuantileClip(noise=5.0)), dp_accounting.GaussianDpEvent(2.0), 30, DELTA),
        (
            central(participation=Poisson(rate=0.1)),
            sampled(0.1, 2.0),
            30,
            DELTA,
        ),
        (central(participation=Uniform(fraction=0.1)), sampled(0.1, 1.0), 30, DELTA),
        (central(participation=Cyclic(groups=4)), dp_accounting.GaussianDpEvent(2.0), 8, DELTA),
        (
            central(correlated=BandedNoise(rounds=30), participation=Cyclic(groups=4)),
            dp_accounting.GaussianDpEvent(2.0),
            1,
            DELTA,
        ),
    ],
)
def test_central_noise_is_accounted_by_participation(federation, event, count, delta):
    found = guarantee(federation, EQUAL, 30, accountant="rdp")
    assert found.epsilon == pytest.approx(renyi(event, count, delta), rel=1e-6)
    assert found.holds != isinstance(federation.participation, Uniform)
    assert "trusts the server" in str(found)


@pytest.mark.parametrize(
    ("federation", "caveat"),
    [
        (Federation(privacy=MessagePrivacy(noise_multiplier=0.447)), "without a clip"),
        (central(aggregator=Krum(f=2)), "no sensitivity of clip / cohort"),
        (central(aggregator=Mean()), "no sensitivity of clip / cohort"),
        (central(correlated=BandedNoise(rounds=29)), "over 29 rounds only"),
        (
            central().replace(fairness=QFFL(q=1.0, lipschitz=1.0)),
            "fairness weights depend",
        ),
    ],
)
def test_where_nothing_is_guaranteed_there_is_no_epsilon_and_the_words_say_why(federation, caveat):
    found = guarantee(federation, EQUAL, 30)
    assert math.isinf(found.epsilon)
    assert not found.holds
    assert caveat in str(found)


def test_losses_in_the_clear_are_a_caveat():
    fair = example(50, 2.0).replace(fairness=QFFL(q=1.0, lipschitz=1.0))
    found = guarantee(fair, EQUAL, 10, accountant="rdp")
    assert math.isfinite(found.epsilon)
    assert not found.holds
    assert "losses and norms" in str(found)


@pytest.mark.parametrize(
    ("federation", "overheard"),
    [
        (central(), False),
        (central().replace(attack=IPM(scale=1.0), byzantine=2), True),
        (central().replace(attack=IPM(scale=1.0)), False),
        (central().replace(attack=Gaussian(), byzantine=2), False),
        (central().replace(attack=LabelFlip(), byzantine=2), False),
        (
            Federation(
                privacy=MessagePrivacy(clip=1.0, noise_multiplier=2.0),
                attack=IPM(scale=1.0),
                byzantine=2,
            ),
            False,
        ),
        (
            Federation(
                privacy=MessagePrivacy(clip=1.0, noise_multiplier=2.0),
                attack=IPM(scale=1.0),
                byzantine=2,
                noise_order="attack_then_noise",
            ),
            True,
        ),
    ],
)
def test_attackers_who_see_clean_updates_void_the_guarantee(federation, overheard):
    """The audit refutes it: their messages depend on the client that is to be protected."""
    found = guarantee(federation, EQUAL, 10, accountant="rdp")
    assert ("attackers who see" in str(found)) == overheard
    assert found.holds != overheard


def test_no_noise_is_no_privacy_and_no_round_costs_nothing():
    assert math.isinf(epsilon(example(50, 0.0), EQUAL, 10))
    assert epsilon(example(50, 1.0), EQUAL, 10, participations=0) == 0
    assert guarantee(Federation(), EQUAL, 10) is None
    # Truncated samples have used up delta.
    assert math.isinf(epsilon(example(50, 1.0, overflow=1e-5), EQUAL, 10))


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_delta():
    def of(sigma=2.0, rounds=100, delta=DELTA):
        privacy = ExamplePrivacy(clip=1.0, noise_multiplier=sigma, delta=delta)
        federation = Federation(algorithm=FedSGD(batch_size=50), privacy=privacy)
        return epsilon(federation, EQUAL, rounds, "rdp")

    assert of(rounds=50) < of() < of(rounds=200)
    assert of(sigma=3.0) < of() < of(sigma=1.0)
    assert of(delta=1e-4) < of() < of(delta=1e-6)


def test_truncated_samples_cost_delta_times_e_to_the_epsilon():
    """(epsilon, delta') before truncation is delta' + (1 + e^epsilon) P(truncated) after it."""
    rounds, overflow = 100, 1e-12
    found = epsilon(example(50, 1.0, overflow=overflow), EQUAL, rounds, "rdp")
    left = DELTA - (1 + math.exp(found)) * rounds * overflow
    assert found == pytest.approx(renyi(sampled(0.05, 1.0), rounds, left), rel=1e-6)
    assert found > renyi(sampled(0.05, 1.0), rounds)
    # Where that is more than delta, there is no epsilon.
    spent = guarantee(example(50, 0.5, overflow=1e-9), EQUAL, rounds)
    assert math.isinf(spent.epsilon)
    assert "used up delta" in str(spent)


def test_a_client_takes_part_as_often_as_the_participation_lets_it():
    local = Federation(privacy=MessagePrivacy(clip=1.0, noise_multiplier=5.0))
    groups = local.replace(participation=Cyclic(groups=10))
    assert epsilon(groups, EQUAL, 95) == pytest.approx(epsilon(local, EQUAL, 10))
    partial = local.replace(participation=Uniform(fraction=0.1))
    assert epsilon(partial, EQUAL, 95) == pytest.approx(epsilon(local, EQUAL, 95))
    assert epsilon(partial, EQUAL, 95, participations=7) == pytest.approx(epsilon(local, EQUAL, 7))


def test_a_cohort_of_fixed_size_puts_another_client_in_the_place():
    banded = central(correlated=BandedNoise(rounds=30), participation=Uniform(fraction=0.1))
    expected = renyi(dp_accounting.GaussianDpEvent(1.0), 1)
    assert epsilon(banded, EQUAL, 30, "rdp") == pytest.approx(expected)


def test_an_algorithm_of_ones_own_is_not_taken_for_private():
    class Own(FedSGD):
        private = False

    with pytest.raises(ValueError, match="Own sends more than gradients"):
        example(10, 1.0, Own).check(20)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: CentralPrivacy(clip=QuantileClip(), correlated=BandedNoise(rounds=3)),
            "one release of the whole run",
        ),
        (lambda: MessagePrivacy(clip_byzantine=True), "clip_byzantine needs a clip"),
        (
            lambda: central().replace(noise_order="attack_then_noise").check(20),
            "with CentralPrivacy it must be noise_then_attack",
        ),
    ],
)
def test_settings_that_do_not_go_together(made, message):
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize(
    "privacy",
    [
        pytest.param(ExamplePrivacy(clip=1.0, epsilon=3.0), marks=pytest.mark.slow),
        MessagePrivacy(clip=1.0, epsilon=8.0),
        CentralPrivacy(clip=1.0, epsilon=1.5),
    ],
)
def test_calibrated_noise_reaches_the_target_and_not_much_more(privacy):
    federation = Federation(
        privacy=privacy, algorithm=FedSGD(batch_size=50), aggregator=Mean(weighted=False)
    )
    noisy = calibrate(federation, EQUAL, 60)
    found = epsilon(noisy, EQUAL, 60)
    assert 0.99 * privacy.epsilon < found <= privacy.epsilon
    less = noisy.privacy.replace(noise_multiplier=float(noisy.privacy.noise_multiplier) * 0.99)
    assert epsilon(noisy.replace(privacy=less), EQUAL, 60) > privacy.epsilon
    assert calibrate(noisy, EQUAL, 60) is noisy


def test_noise_is_enough_for_the_client_worst_off():
    """Here not the one with the fewest samples: with more than a batch of them it takes 2 steps."""
    federation = Federation(
        privacy=ExamplePrivacy(clip=1.0, epsilon=3.0), algorithm=FedAvg(batch_size=50)
    )
    few, both = (calibrate(federation, s, 20, accountant="rdp") for s in ([30], [30, 60]))
    assert 2.97 < epsilon(both, [30, 60], 20, "rdp") <= 3.0
    assert few.privacy.noise_multiplier < 0.9 * both.privacy.noise_multiplier


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (MessagePrivacy(epsilon=1.0), "cannot be reached: without a clip"),
        (ExamplePrivacy(clip=1.0, epsilon=1.0, overflow=1e-5), "delta = 1e-05 is too small"),
    ],
)
def test_targets_that_no_noise_reaches(privacy, message):
    federation = Federation(privacy=privacy, algorithm=FedSGD(batch_size=50))
    with pytest.raises(ValueError, match=message):
        calibrate(federation, EQUAL, 60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier must be at least 0; got -1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be finite"),
        ({"clip": 0.0}, "clip must be at least 1e-10"),
        ({"clip": 1e-20}, "clip must be at least 1e-10"),  # its square is 0 in float32
        ({"clip": math.inf}, "clip must be finite"),
        ({"delta": 1.0}, "delta must be above 0 and below 1"),
        ({"discretisation": 0.0}, "discretisation must be above 0 and below 1"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "not both"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    for kind in (MessagePrivacy, ExamplePrivacy, CentralPrivacy):
        with pytest.raises(ValueError, match=message):
            kind(**settings)


@pytest.mark.slow
def test_a_finer_step_of_loss_distributions_is_tighter():
    event = sampled(0.1, 1.0)
    coarse, usual, fine = (
        epsilon(example(100, 1.0, discretisation=step), EQUAL, 20) for step in (1e-2, 1e-4, 1e-5)
    )
    losses = pld.PLDAccountant(value_discretization_interval=1e-2)
    assert coarse == pytest.approx(losses.compose(event, 20).get_epsilon(DELTA), rel=1e-9)
    assert usual == epsilon(example(100, 1.0), EQUAL, 20)
    assert coarse > usual >= fine > 0.99 * usual


@pytest.mark.slow
def test_noise_is_found_by_loss_distributions_of_the_chosen_step():
    privacy = CentralPrivacy(clip=1.0, epsilon=2.0, discretisation=0.5)
    federation = Federation(
        privacy=privacy, participation=Poisson(rate=0.1), aggregator=Mean(weighted=False)
    )
    noisy = calibrate(federation, EQUAL, 10)
    assert 1.98 < epsilon(noisy, EQUAL, 10) <= 2.0
    finer = noisy.replace(privacy=noisy.privacy.replace(discretisation=1e-2))
    assert epsilon(finer, EQUAL, 10) < 1.9
    # Read from a file it is the same field, so that the log's guarantee is of the same step.
    table = {"name": "central", "clip": 1.0, "epsilon": 2.0, "discretisation": 0.5}
    data = {"name": "synthetic", "clients": 4, "samples": 40, "features": 2, "classes": 2}
    file = {"rounds": 10, "model": "softmax", "data": data, "privacy": table}
    assert schema.parse("x", file).cells[0].federation.privacy == privacy
    asked = {"noise_multiplier": 1.0, "rate": 0.1, "steps": 10, "delta": 1e-5}
    assert gaussian_epsilon(**asked, discretisation=0.5) > 1.02 * gaussian_epsilon(**asked)


def test_an_accountant_must_be_known_and_noise_calibrated():
    with pytest.raises(ValueError, match="accountant must be pld or rdp; got 'moments'"):
        guarantee(example(50, 1.0), EQUAL, 10, accountant="moments")
    with pytest.raises(ValueError, match="calibrate first"):
        guarantee(Federation(privacy=MessagePrivacy(clip=1.0, epsilon=1.0)), EQUAL, 10)


def test_the_meter_says_during_the_run_what_the_guarantee_says_then():
    federation = example(50, 2.0, FedAvg).replace(participation=Uniform(fraction=0.5))
    sizes = [90, 400, 2_000]
    meter = Meter(federation, sizes, 40)
    for rounds, taken in ((1, 1), (40, 26)):
        whole = guarantee(federation, sizes, rounds, participations=taken, accountant="rdp")
        assert meter(rounds, taken) == pytest.approx(whole.epsilon)


def test_the_meter_counts_in_early_rounds_who_has_no_guarantee_less_at_the_end():
    """2,000 samples use up delta by truncation; until then 20, which are never sampled, count."""
    federation = example(50, 2.0, overflow=1e-7)
    meter = Meter(federation, [20, 2_000], 200)
    assert meter(200, 200) == math.inf
    few, many = (guarantee(federation, [n], 1, accountant="rdp").epsilon for n in (20, 2_000))
    assert meter(1, 1) == pytest.approx(few, rel=0.1)
    assert many < 0.5 * few


def test_a_run_whose_guarantee_does_not_hold_warns():
    with pytest.warns(UserWarning, match="not guaranteed: without a clip"):
        jaxfl.simulate(
            model=jaxfl.models.Softmax(),
            data=ragged(),
            rounds=1,
            privacy=MessagePrivacy(noise_multiplier=0.1),
        )


def test_epsilon_of_gaussian_noise_needs_no_federation():
    """Against the exact formula without sampling, and Renyi's at whole orders with it."""
    got = gaussian_epsilon(noise_multiplier=4.0, steps=9, delta=1e-5)
    mu = math.sqrt(9) / 4.0
    delta = norm.cdf(mu / 2 - got / mu) - math.exp(got) * norm.cdf(-mu / 2 - got / mu)
    assert delta == pytest.approx(1e-5, rel=1e-3)

    rate, sigma, steps = 0.05, 1.5, 200
    orders = np.arange(2, 65)
    divergence = [
        logsumexp(
            [
                math.log(math.comb(a, k))
                + (a - k) * math.log(1 - rate)
                + k * math.log(rate)
                + k * (k - 1) / (2 * sigma**2)
                for k in range(a + 1)
            ]
        )
        / (a - 1)
        for a in orders
    ]
    bound = steps * np.array(divergence) + np.log1p(-1 / orders)
    renyi = np.min(bound - np.log(1e-5 * orders) / (orders - 1))
    asked = {"noise_multiplier": sigma, "rate": rate, "steps": steps, "delta": 1e-5}
    assert gaussian_epsilon(**asked, accountant="rdp") == pytest.approx(renyi, rel=0.01)
    assert 0.7 * renyi < gaussian_epsilon(**asked) < renyi


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be above 0 and finite; got 0.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be above 0 and finite; got nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be above 0 and finite; got inf"),
        ({"rate": 1.5}, "rate must be above 0 and at most 1; got 1.5"),
        ({"delta": 1.0}, "delta must be above 0 and below 1; got 1.0"),
        ({"steps": 0}, "steps must be an integer, at least 1; got 0"),
        ({"discretisation": 0.0}, "discretisation must be above 0 and below 1; got 0.0"),
        ({"accountant": "zcdp"}, "accountant must be pld or rdp; got 'zcdp'"),
    ],
)
def test_numbers_of_no_mechanism_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gaussian_epsilon(**({"noise_multiplier": 1.0, "steps": 1, "delta": 1e-5} | change))
