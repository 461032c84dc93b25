"""Attacks on messages against their formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxfl.aggregators import Mean
from jaxfl.attacks import (
    ALIE,
    IPM,
    BitFlip,
    ByzMean,
    Gaussian,
    Infinity,
    MinMax,
    MinSum,
    NaN,
    NoAttack,
    Noise,
    ReverseScaling,
    Scaling,
    SignFlip,
    Zero,
    z_max,
)
from jaxfl.types import Context

N, D = 11, 24
ATTACKERS = np.isin(np.arange(N), [1, 5, 8])
both_types = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
knowledge = pytest.mark.parametrize("knowledge", ["full", "partial"])
of_moments = pytest.mark.parametrize("knowledge", ["full", "partial", "everybody"])


def draw(n=N, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) + np.float32(0.3)


def send(attack, x, byzantine=ATTACKERS, double=False, **given):
    """The attackers' rows."""
    with jax.enable_x64(double):
        rows = attack(jnp.asarray(x, float), byzantine, **given)
        return np.asarray(rows, np.float64)[byzantine]


def known(x, knowledge, byzantine=ATTACKERS):
    rows = {"full": ~byzantine, "partial": byzantine, "everybody": np.ones(len(x), bool)}
    return x[rows[knowledge]].astype(np.float64)


def close(got, expected, double, scale=1.0):
    np.testing.assert_allclose(got, expected, rtol=0, atol=(1e-9 if double else 1e-4) * scale)


def test_no_attack_changes_nothing():
    assert not NoAttack.crafts
    np.testing.assert_array_equal(NoAttack()(draw(), ATTACKERS), draw())


def test_gaussian_moments():
    sent = send(Gaussian(mean=1.0, std=2.0), draw(d=20_000), key=jax.random.key(3))
    for row in sent:
        assert stats.kstest(row, stats.norm(1.0, 2.0).cdf).pvalue > 1e-3


def test_noise_is_added_to_each_attackers_own():
    x = draw(d=20_000)
    added = send(Noise(std=0.5), x, key=jax.random.key(3)) - x[ATTACKERS]
    for row in added:
        assert stats.kstest(row, stats.norm(0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("attack", [Gaussian(), Noise()])
def test_attackers_draw_independently(attack):
    x = np.zeros((4, 20_000), np.float32)
    a, b = send(attack, x, np.array([1, 0, 1, 0], bool))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_draws_follow_the_key():
    once, again, other = (send(Gaussian(), draw(), key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once != other).all()


def test_gaussian_without_spread_is_its_mean():
    np.testing.assert_allclose(send(Gaussian(mean=3.0, std=0.0), draw()), 3)


def test_multiples_of_the_attackers_own():
    x = draw()
    np.testing.assert_array_equal(send(SignFlip(), x), -x[ATTACKERS])
    np.testing.assert_array_equal(send(Scaling(factor=4.0), x), 4 * x[ATTACKERS])
    np.testing.assert_array_equal(send(ReverseScaling(factor=4.0), x), -4 * x[ATTACKERS])


@both_types
def test_the_mean_with_its_sign_flipped(double):
    x = draw()
    expected = np.tile(-known(x, "full").mean(0), (3, 1))
    close(send(SignFlip(of="mean"), x, double=double), expected, double)
    assert SignFlip().knows != SignFlip(of="mean").knows


@pytest.mark.parametrize(("attack", "value"), [(Zero(), 0), (NaN(), np.nan), (Infinity(), np.inf)])
def test_constants(attack, value):
    np.testing.assert_array_equal(send(attack, draw()), np.full((3, D), value))


@pytest.mark.parametrize("bits", [(31,), (21, 29, 30, 31), (0, 7)])
@pytest.mark.parametrize("coordinates", [None, 5, 1000])
def test_bits_are_flipped(bits, coordinates):
    x = draw()
    raw = x[ATTACKERS].view(np.uint32)
    expected = (raw ^ np.uint32(sum(1 << b for b in bits))).view(np.float32).copy()
    expected[:, coordinates or D :] = x[ATTACKERS][:, coordinates or D :]
    np.testing.assert_array_equal(send(BitFlip(bits=bits, coordinates=coordinates), x), expected)


def test_a_number_that_would_become_nan_stays():
    x = np.full((2, 3), 2.0**-64 * 1.5, np.float32)  # exponent bits 00111111
    sent = send(BitFlip(bits=(29, 30), coordinates=None), x, np.array([True, False]))
    flipped = (x[0].view(np.uint32) ^ np.uint32(3 << 29)).view(np.float32)
    assert np.isfinite(sent).all()
    np.testing.assert_array_equal(sent[0], np.where(np.isnan(flipped), x[0], flipped))


@both_types
@of_moments
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("z", [0.3, 1.5, None])
def test_alie(sign, z, knowledge, double):
    x = draw()
    rows = known(x, knowledge)
    factor = z_max(N, 3) if z is None else z
    expected = rows.mean(0) + sign * factor * rows.std(0, ddof=1)
    sent = send(ALIE(z=z, sign=sign, knowledge=knowledge), x, double=double)
    close(sent, np.tile(expected, (3, 1)), double, 1 if z is not None else 1e3)


def test_alie_over_several_blocks_of_columns():
    x = draw(d=20_000)
    rows = known(x, "full")
    expected = rows.mean(0) - rows.std(0, ddof=1)
    close(send(ALIE(z=1.0), x)[0], expected, False)


def test_alie_with_one_honest_row_sends_that_row():
    x, alone = draw(), np.arange(N) != 3
    np.testing.assert_allclose(send(ALIE(z=5.0), x, alone), np.tile(x[3], (N - 1, 1)), rtol=1e-6)


def test_alie_keeps_its_precision_far_from_zero():
    x = 1000 + 0.1 * draw()
    rows = known(x, "full")
    step = send(ALIE(z=1.0), x)[0] - rows.mean(0)
    np.testing.assert_allclose(step, -rows.std(0, ddof=1), rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(("n", "m"), [(50, 10), (50, 24), (20, 4), (25, 6), (11, 5), (10, 4)])
def test_z_max(n, m):
    supporters = n // 2 + 1 - m
    expected = max(0, stats.norm.ppf((n - m - supporters) / (n - m)))
    assert z_max(n, m) == pytest.approx(expected, abs=1e-4)


def test_z_max_of_the_paper_and_of_few_attackers():
    assert z_max(50, 10) == pytest.approx(0.2533, abs=1e-4)
    assert z_max(6, 1) == 0


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, -1), (0, 0)])
def test_z_max_needs_an_honest_client(n, m):
    with pytest.raises(ValueError, match="z_max needs 0 <= m < n"):
        z_max(n, m)


@both_types
@of_moments
@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0])
def test_ipm(scale, knowledge, double):
    x = draw()
    expected = -scale * known(x, knowledge).mean(0)
    sent = send(IPM(scale=scale, knowledge=knowledge), x, double=double)
    close(sent, np.tile(expected, (3, 1)), double, 10)


@pytest.mark.parametrize(("scale", "sign"), [(8 / 3 - 0.1, 1), (8 / 3 + 0.1, -1)])
def test_ipm_turns_the_mean_around_above_h_over_m(scale, sign):
    x = draw()
    honest = known(x, "full").mean(0)
    mean = np.concatenate([known(x, "full"), send(IPM(scale=scale), x)]).mean(0)
    assert np.sign(mean @ honest) == sign


def perturbation(kind, rows):
    mean = rows.mean(0)
    return {
        "std": -rows.std(0, ddof=1),
        "unit": -mean / np.linalg.norm(mean),
        "sign": -np.sign(mean),
    }[kind]


def reach(rows):
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


def largest(holds):
    """The largest gamma at which a condition holds, by bisection."""
    assert holds(0)
    return optimize.bisect(lambda g: 1.0 if holds(g) else -1.0, 0, 1e4, xtol=1e-12, rtol=1e-14)


DIRECTIONS = pytest.mark.parametrize("direction", ["std", "unit", "sign"])


@both_types
@of_moments
@DIRECTIONS
def test_min_max(direction, knowledge, double):
    x = draw()
    rows = known(x, knowledge)
    mean, p, most = rows.mean(0), perturbation(direction, rows), reach(rows).max()

    def holds(gamma):
        return np.linalg.norm(mean + gamma * p - rows, axis=1).max() <= most * (1 + 1e-13)

    expected = mean + largest(holds) * p
    sent = send(MinMax(direction=direction, knowledge=knowledge), x, double=double)
    close(sent, np.tile(expected, (3, 1)), double, 10)


@both_types
@of_moments
@DIRECTIONS
@pytest.mark.parametrize("bound", ["max", "min"])
def test_min_sum(direction, bound, knowledge, double):
    x = draw()
    rows = known(x, knowledge)
    mean, p = rows.mean(0), perturbation(direction, rows)
    sums = (reach(rows) ** 2).sum(1)
    most = sums.max() if bound == "max" else sums.min()

    def holds(gamma):
        return ((mean + gamma * p - rows) ** 2).sum() <= most * (1 + 1e-13)

    expected = mean + largest(holds) * p
    attack = MinSum(direction=direction, bound=bound, knowledge=knowledge)
    close(send(attack, x, double=double), np.tile(expected, (3, 1)), double, 10)


@pytest.mark.parametrize("seed", range(5))
@DIRECTIONS
@pytest.mark.parametrize("cls", [MinMax, MinSum])
def test_the_constraint_is_active(cls, direction, seed):
    """It holds at the gamma sent, up to rounding, and breaks at 1.01 of it."""
    x = draw(seed=seed)
    rows = known(x, "full")
    mean = rows.mean(0)
    step = send(cls(direction=direction), x, double=True)[0] - mean
    if cls is MinMax:
        size = lambda row: np.linalg.norm(row - rows, axis=1).max()  # noqa: E731
        most = reach(rows).max()
    else:
        size = lambda row: ((row - rows) ** 2).sum()  # noqa: E731
        most = (reach(rows) ** 2).sum(1).max()
    assert size(mean + step) == pytest.approx(most, rel=1e-9)
    assert size(mean + 1.01 * step) > most


@pytest.mark.parametrize("cls", [MinMax, MinSum])
def test_without_spread_there_is_no_room(cls):
    x = np.tile(draw(1), (N, 1))
    np.testing.assert_allclose(send(cls(), x), x[:3], rtol=1e-5)


@pytest.mark.parametrize("m", [1, 2, 3, 7])
@pytest.mark.parametrize("inner", [ALIE(z=0.3), IPM(scale=2.0), SignFlip(), MinMax()])
@both_types
def test_byzmean_makes_the_mean_its_target(inner, m, double):
    x, byzantine = draw(), np.arange(N) < m
    target = send(inner, x, byzantine, double=double)[0]
    sent = send(ByzMean(attack=inner), x, byzantine, double=double)
    mean = np.concatenate([x[~byzantine], sent]).mean(0)
    close(mean, target, double, 5)
    np.testing.assert_allclose(sent[: m // 2], np.tile(target, (m // 2, 1)), rtol=1e-5)
    assert (np.ptp(sent[m // 2 :], axis=0) == 0).all()


@pytest.mark.parametrize("defence", [Mean(), Mean(weighted=False)], ids=repr)
def test_byzmean_weighs_clients_as_the_defence_does(defence):
    x, weights = draw(), np.arange(1, N + 1) / (N * (N + 1) / 2)
    context = Context.of(N, weights=jnp.asarray(weights, jnp.float32))
    attack = ByzMean(attack=SignFlip())
    rows = attack(jnp.asarray(x, jnp.float32), ATTACKERS, defence=defence, context=context)
    target = send(SignFlip(), x)[0]
    shares = weights if defence.weighted else np.full(N, 1 / N)
    np.testing.assert_allclose(shares @ np.asarray(rows), target, rtol=0, atol=1e-4)


def test_byzmean_with_partial_knowledge_believes_the_honest_to_be_like_its_own():
    x = draw()
    own, honest = known(x, "partial").mean(0), known(x, "full").mean(0)
    inner = ALIE(z=0.3, knowledge="partial")
    target = send(inner, x, double=True)[0]
    sent = send(ByzMean(attack=inner, knowledge="partial"), x, double=True)
    mean = np.concatenate([x[~ATTACKERS], sent]).mean(0)
    np.testing.assert_allclose(mean, target + 8 / 11 * (honest - own), atol=1e-9)


def test_byzmean_of_everybody_is_that_of_the_papers_code():
    x = draw()
    mean, std = known(x, "everybody").mean(0), known(x, "everybody").std(0, ddof=1)
    target = mean - 0.3 * std
    rest = ((8 - 1) * target - x.astype(np.float64).sum(0)) / 2  # 8 honest; 1 of 3 sends the target
    sent = send(ByzMean(knowledge="everybody"), x, double=True)
    np.testing.assert_allclose(sent, [target, rest, rest], atol=1e-9)
