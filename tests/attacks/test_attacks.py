import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxfl.aggregators import Mean
from jaxfl.attacks import (
    ALIE,
    IPM,
    Attack,
    ClientView,
    Defence,
    Gaussian,
    LabelFlip,
    NoAttack,
    Onset,
    SignFlip,
    z_max,
)
from jaxfl.attacks.base import attack_rows
from jaxfl.registry import ATTACKS
from jaxfl.types import Batch, Context, Spec

N, D = 8, 20
ALL = {
    "none": NoAttack(),
    "gaussian": Gaussian(mean=1.0, std=2.0),
    "sign_flip": SignFlip(),
    "alie": ALIE(z=1.5),
    "ipm": IPM(scale=0.5),
    "label_flip": LabelFlip(),
    "onset": Onset(attack=IPM(scale=0.5), start=0),
}
EXAMPLES = [pytest.param(attack, id=name) for name, attack in ALL.items()]


def draw(n=N, d=D):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def mask(*attackers, n=N):
    return np.isin(np.arange(n), attackers)


@jax.jit
def at_round(attack, x, byzantine, when, key):
    """The attacked rows as the simulator makes them, and the attack's memory."""
    n, d = x.shape
    context = Context.of(n, round=when)
    spec = Spec(population=n, cohort=n, dim=d, max_byzantine=3)
    defence = Defence(aggregator=Mean(), state=(), context=context)
    return attack_rows(attack, x, byzantine, attack.init(spec), context, key, defence, 3)


def test_every_registered_attack_is_tested():
    assert {name: type(attack) for name, attack in ALL.items()} == ATTACKS


@pytest.mark.parametrize("attack", EXAMPLES)
def test_honest_rows_are_untouched_for_every_number_of_attackers(attack):
    x = draw()
    rng = np.random.default_rng(1)
    for count in range(N + 1):
        byzantine = np.isin(np.arange(N), rng.permutation(N)[:count])
        attacked = np.asarray(attack(x, byzantine))
        assert attacked[~byzantine].tobytes() == x[~byzantine].tobytes()
        assert np.isfinite(attacked).all()
        if attack.crafts and 0 < count < N:
            assert (attacked[byzantine] != x[byzantine]).any(axis=1).all()


@pytest.mark.parametrize("attack", EXAMPLES)
def test_what_attackers_would_have_sent_cannot_spoil_the_honest(attack):
    x, byzantine = draw(), mask(1, 5)
    x[1] = np.nan
    attacked = np.asarray(attack(x, byzantine))
    assert attacked[~byzantine].tobytes() == x[~byzantine].tobytes()
    if type(attack) in (ALIE, IPM, Gaussian):
        assert np.isfinite(attacked).all()


@pytest.mark.parametrize("attack", EXAMPLES)
def test_fewer_attackers_than_places(attack, key):
    x = draw()
    for attackers in [(), (7,), (0, 4), (2, 3, 7)]:
        byzantine = mask(*attackers)
        rows, _ = at_round(attack, x, byzantine, 0, key)
        np.testing.assert_array_equal(rows[~byzantine], x[~byzantine])
        if not isinstance(attack, Gaussian):
            np.testing.assert_allclose(rows, attack(x, byzantine), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attack", EXAMPLES)
def test_type_is_kept(attack):
    for dtype in (jnp.bfloat16, jnp.float32):
        got = jax.eval_shape(attack, jnp.asarray(draw(), dtype), mask(2))
        assert got.dtype == dtype


def test_no_attack_changes_nothing():
    assert not NoAttack.crafts
    assert not NoAttack.poisons
    np.testing.assert_array_equal(NoAttack()(draw(), mask(1, 2)), draw())


def test_the_base_sends_what_is_honest():
    class Polite(Attack):
        pass

    np.testing.assert_array_equal(Polite()(draw(), mask(1, 2, 6)), draw())


def test_gaussian_moments(key):
    attacked = np.asarray(Gaussian(mean=1.0, std=2.0)(draw(4, 20_000), mask(0, 2, n=4), key=key))
    for row in attacked[[0, 2]]:
        assert stats.kstest(row, stats.norm(1.0, 2.0).cdf).pvalue > 1e-3


def test_gaussian_attackers_are_independent(key):
    a, b = np.asarray(Gaussian()(draw(4, 20_000), mask(0, 2, n=4), key=key))[[0, 2]]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_gaussian_follows_its_key():
    once, again, other = (Gaussian()(draw(), mask(0), key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once[0] != other[0]).all()


def test_gaussian_without_spread_is_its_mean():
    np.testing.assert_allclose(Gaussian(mean=3.0, std=0.0)(draw(), mask(0))[0], 3)


def test_sign_flip_negates_each_attackers_own():
    x = draw()
    np.testing.assert_array_equal(SignFlip()(x, mask(1, 5))[np.array([1, 5])], -x[[1, 5]])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("z", [0.3, 1.5])
def test_alie(sign, z):
    x, byzantine = draw(), mask(0, 6)
    honest = x[~byzantine].astype(np.float64)
    expected = honest.mean(0) + sign * z * honest.std(0, ddof=1)
    attacked = ALIE(z=z, sign=sign)(x, byzantine)
    for row in (0, 6):
        np.testing.assert_allclose(attacked[row], expected, rtol=1e-4, atol=1e-5)


def test_alie_over_several_blocks_of_columns():
    x, byzantine = draw(d=20_000), mask(0, 6)
    honest = x[~byzantine].astype(np.float64)
    expected = honest.mean(0) - honest.std(0, ddof=1)
    np.testing.assert_allclose(ALIE()(x, byzantine)[0], expected, rtol=1e-4, atol=1e-5)


def test_alie_with_one_honest_row_sends_that_row():
    x = draw()
    attacked = ALIE(z=5.0)(x, ~mask(3))
    np.testing.assert_allclose(attacked, np.tile(x[3], (N, 1)), rtol=1e-6)


def test_alie_keeps_its_precision_far_from_zero():
    x, byzantine = 1000 + 0.1 * draw(), mask(0)
    honest = x[1:].astype(np.float64)
    step = np.asarray(ALIE(z=1.0)(x, byzantine))[0] - honest.mean(0)
    np.testing.assert_allclose(step, -honest.std(0, ddof=1), rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(("n", "m"), [(50, 10), (50, 24), (20, 4), (25, 6), (11, 5), (10, 4)])
def test_z_max(n, m):
    supporters = n // 2 + 1 - m
    assert z_max(n, m) == pytest.approx(
        max(0, stats.norm.ppf((n - m - supporters) / (n - m))), abs=1e-4
    )


def test_z_max_of_the_paper_and_of_few_attackers():
    assert z_max(50, 10) == pytest.approx(0.2533, abs=1e-4)
    assert z_max(6, 1) == 0


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, -1), (0, 0)])
def test_z_max_needs_an_honest_client(n, m):
    with pytest.raises(ValueError, match="z_max needs 0 <= m < n"):
        z_max(n, m)


@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0])
def test_ipm(scale):
    x, byzantine = draw(), mask(2, 7)
    attacked = IPM(scale=scale)(x, byzantine)
    for row in (2, 7):
        np.testing.assert_allclose(attacked[row], -scale * x[~byzantine].mean(0), rtol=1e-4)


@pytest.mark.parametrize(("scale", "sign"), [(2.9, 1), (3.1, -1)])
def test_ipm_turns_the_mean_around_above_h_over_m(scale, sign):
    x, byzantine = draw(), mask(2, 7)
    honest = x[~byzantine].mean(0)
    attacked = np.asarray(IPM(scale=scale)(x, byzantine)).mean(0)
    assert np.sign(attacked @ honest) == sign


def test_absent_clients_are_not_honest(key):
    x, absent = draw(), mask(4, 5)
    x[4:6] = 1e6
    context = Context.of(N, present=jnp.asarray(~absent))
    defence = Defence(aggregator=Mean(), state=(), context=context)
    rows, _ = attack_rows(
        IPM(scale=1.0), jnp.asarray(x), jnp.asarray(mask(0)), (), context, key, defence, 1
    )
    np.testing.assert_allclose(rows[0], -x[[1, 2, 3, 6, 7]].mean(0), rtol=1e-4)


def test_a_defence_can_be_probed():
    class Probing(Attack):
        def craft(self, updates, state, view, key, defence):
            return -defence.probe(updates)[None], state

    x = draw()
    np.testing.assert_allclose(Probing()(x, mask(1))[1], -x.mean(0), rtol=1e-4, atol=1e-6)


def batch():
    return Batch(
        inputs=jnp.ones((10, 3)), labels=jnp.arange(10, dtype=jnp.int32), mask=jnp.ones(10, bool)
    )


def client(when=0, classes=10):
    return ClientView(
        id=jnp.int32(0), byzantine=jnp.array(True), round=jnp.int32(when), classes=classes
    )


def test_label_flip(key):
    poisoned = LabelFlip().poison(batch(), client(), key)
    np.testing.assert_array_equal(poisoned.labels, np.arange(10)[::-1])
    np.testing.assert_array_equal(poisoned.inputs, batch().inputs)
    assert poisoned.labels.dtype == batch().labels.dtype
    assert LabelFlip.poisons
    assert not LabelFlip.crafts


def test_label_flip_counts_classes(key):
    np.testing.assert_array_equal(
        LabelFlip().poison(batch(), client(classes=12), key).labels, np.arange(2, 12)[::-1]
    )


@pytest.mark.parametrize("attack", EXAMPLES)
def test_only_poisoning_attacks_change_data(attack, key):
    poisoned = attack.poison(batch(), client(), key)
    changed = bool((poisoned.labels != batch().labels).any())
    assert changed == attack.poisons


def test_onset_of_messages(key):
    x, byzantine = draw(), mask(1, 6)
    attack = Onset(attack=SignFlip(), start=5)
    for when, sign in [(0, 1), (4, 1), (5, -1), (100, -1)]:
        rows, _ = at_round(attack, x, byzantine, when, key)
        np.testing.assert_array_equal(rows, np.where(byzantine[:, None], sign * x, x))


def test_onset_of_data(key):
    attack = Onset(attack=LabelFlip(), start=5)
    assert attack.poisons
    assert not attack.crafts
    for when, expected in [(4, np.arange(10)), (5, np.arange(10)[::-1])]:
        labels = attack.poison(batch(), client(when), key).labels
        np.testing.assert_array_equal(labels, expected)


def test_onset_starts_the_memory_with_the_attack(key):
    class Counting(Attack):
        def init(self, spec):
            return jnp.int32(7)

        def craft(self, updates, state, view, key, defence):
            return jnp.zeros((1, updates.shape[1])), state + 1

    for when, expected in [(4, 7), (5, 8)]:
        assert (
            at_round(Onset(attack=Counting(), start=5), draw(), mask(0), when, key)[1] == expected
        )


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Gaussian, {"std": -1}, "Gaussian: std must be at least 0"),
        (ALIE, {"sign": 2}, "ALIE: sign must be one of -1, 1"),
        (ALIE, {"sign": 0}, "ALIE: sign must be one of -1, 1"),
        (ALIE, {"sign": 0.5}, "ALIE: sign must be an integer"),
        (IPM, {"scale": -0.1}, "IPM: scale must be at least 0"),
        (IPM, {"scale": "big"}, "IPM: scale must be a number"),
        (Onset, {"attack": IPM(), "start": -1}, "Onset: start must be at least 0"),
        (Onset, {"attack": Mean(), "start": 1}, "Onset: attack must be Attack"),
    ],
)
def test_bad_values(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_strength_is_swept_by_vmap():
    x, byzantine, scales = draw(), mask(2), np.float32([0.1, 1, 10])
    swept = jax.vmap(lambda scale: IPM(scale=scale)(x, byzantine))(scales)
    for scale, rows in zip(scales, swept, strict=True):
        np.testing.assert_allclose(rows, IPM(scale=scale)(x, byzantine), rtol=1e-5)


@pytest.mark.parametrize("attack", [ALIE(z=1.5), IPM(scale=0.5)])
def test_an_honest_row_that_is_not_finite_does_not_disarm_an_attack(attack):
    x, byzantine = draw(), mask(2)
    broken = x.copy()
    broken[5, 3] = np.nan
    without = np.delete(x, 5, axis=0)
    expected = attack(without, np.delete(byzantine, 5))[2]
    np.testing.assert_allclose(attack(broken, byzantine)[2], expected, rtol=1e-5)
