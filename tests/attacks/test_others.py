"""Mimicry, free riders, poisoned data and attacks made of attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_every_attack import attacked, draw, mask

from jaxfl.aggregators import Mean
from jaxfl.attacks import (
    ALIE,
    DBA,
    IPM,
    Attack,
    Backdoor,
    ClientView,
    Combined,
    FreeRider,
    LabelFlip,
    Mimic,
    Mixed,
    NaN,
    NoAttack,
    Onset,
    Scaling,
    SignFlip,
    TimeVarying,
)
from jaxfl.attacks.base import NOTHING
from jaxfl.component import capability
from jaxfl.types import Batch, Spec

N, D = 8, 20


@pytest.mark.parametrize(("target", "expected"), [(0, 0), (2, 3), (5, 7), (40, 7)])
def test_mimic_copies_one_honest_client(target, expected):
    x, byzantine = draw(), mask(1, 5)
    rows, _ = attacked(Mimic(target=target), x, byzantine)
    np.testing.assert_array_equal(rows[byzantine], np.tile(x[expected], (2, 1)))


def test_mimic_that_learns_follows_the_power_method():
    rounds, warmup, byzantine = 5, 3, mask(2, 6)
    xs = np.stack([draw() + 3 * np.outer(np.arange(N) == 4, np.ones(D)) for _ in range(rounds)])
    xs += 0.1 * np.random.default_rng(1).normal(size=xs.shape)
    xs = xs.astype(np.float32)
    honest = ~byzantine
    state = Mimic(target=None, warmup=warmup).init(Spec(N, N, D, 2, np.float32))
    mean, z = np.zeros(D), None
    for t, x in enumerate(xs):
        rows, state = attacked(Mimic(target=None, warmup=warmup), x, byzantine, state=state, seed=t)
        h = x[honest].astype(np.float64)
        if t < warmup:
            mean = (t * mean + h.mean(0)) / (t + 1)
            if z is None:
                z = np.asarray(jax.random.normal(jax.random.key(t), (D,)), np.float64)
                z /= np.linalg.norm(z)
            change = ((h - mean) @ z) @ (h - mean)
            z = (t * z + change / np.linalg.norm(change)) / (t + 1)
            z /= np.linalg.norm(z)
            expected = np.flatnonzero(honest)[np.argmax(h @ z)]
        np.testing.assert_allclose(state.direction, z, atol=1e-3)
        np.testing.assert_array_equal(rows[2], x[expected])


def test_mimic_replaces_an_absent_client_for_the_round():
    x, byzantine = draw(), mask(2, 6)
    attack = Mimic(target=None, warmup=1)
    _, state = attacked(attack, x, byzantine)
    chosen = int(state.chosen)
    here = np.arange(N) != chosen
    rows, after = attacked(attack, x, byzantine, state=state, present=jnp.asarray(here))
    assert int(after.chosen) == chosen
    sent = {int(i) for i in np.flatnonzero((x == np.asarray(rows)[2]).all(1))}
    assert sent
    assert chosen not in sent


def test_a_free_rider_repeats_the_servers_last_step():
    x, byzantine = draw(), mask(1, 4)
    attack, rates = FreeRider(scale=3.0), (jnp.float32(0.1), jnp.float32(0.7))
    known = {"params": jnp.full(D, 2.0), "learning_rate": rates[0]}
    first, state = attacked(attack, x, byzantine, **known)
    np.testing.assert_array_equal(first[byzantine], 0)
    # Of the rate of the step that it saw, not of the next one.
    known = {"params": jnp.full(D, 1.5), "learning_rate": rates[1]}
    rows, _ = attacked(attack, x, byzantine, when=1, state=state, **known)
    np.testing.assert_allclose(rows[byzantine], 15.0, rtol=1e-6)


@pytest.mark.parametrize(("when", "decay"), [(0, 1.0), (3, 1.0), (3, 0.5), (3, 0.0)])
def test_a_free_rider_disguises_itself_with_fading_noise(when, decay):
    x, byzantine = draw(d=20_000), mask(1, 4)
    rows, _ = attacked(FreeRider(std=0.5, decay=decay), x, byzantine, when=when)
    a, b = np.asarray(rows)[byzantine]
    assert a.std() == pytest.approx(0.5 * (when + 1) ** -decay, rel=0.03)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


@pytest.mark.parametrize(
    "attack",
    [
        Onset(attack=FreeRider(scale=1.0), start=3),
        TimeVarying(attacks=(FreeRider(scale=1.0), SignFlip()), seed=1),
        Combined(data=LabelFlip(), message=Onset(attack=FreeRider(scale=1.0), start=2)),
    ],
)
def test_a_free_rider_watches_the_model_while_another_attack_has_its_turn(attack):
    x, byzantine = draw(), mask(1, 4)
    state = attack.init(Spec(N, N, D, 2, np.float32))
    ridden = 0
    for when in range(8):
        params = jnp.full(D, -2.0 * when)
        rows, state = attacked(attack, x, byzantine, when=when, state=state, params=params)
        sent = np.asarray(rows)[1]
        if not (sent == x[1]).all() and not (sent == -x[1]).all():
            np.testing.assert_array_equal(sent, 2.0 if when else 0.0)
            ridden += 1
    assert ridden >= 2


def batch(size=10, classes=10, shape=(6, 6, 2), valid=None):
    random = np.random.default_rng(0)
    return Batch(
        inputs=jnp.asarray(random.normal(size=(size, *shape)), jnp.float32),
        labels=jnp.asarray(np.arange(size) % classes, jnp.int32),
        mask=jnp.arange(size) < (size if valid is None else valid),
    )


def client(when=0, classes=10, rank=0, **known):
    return ClientView(
        id=jnp.int32(0),
        byzantine=jnp.array(True),
        rank=jnp.int32(rank),
        round=jnp.int32(when),
        classes=classes,
        **known,
    )


@pytest.mark.parametrize("classes", [10, 12])
def test_labels_in_the_mirror(classes, key):
    poisoned = LabelFlip().poison(batch(), client(classes=classes), key)
    np.testing.assert_array_equal(poisoned.labels, classes - 1 - np.arange(10))
    np.testing.assert_array_equal(poisoned.inputs, batch().inputs)


def test_random_labels_are_any_other_class(key):
    given = batch(size=9000, classes=4)
    labels = np.asarray(LabelFlip(to="random").poison(given, client(classes=4), key).labels)
    shift = (labels - np.asarray(given.labels)) % 4
    counts = np.bincount(shift, minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] / 3000 - 1).max() < 0.1


def test_the_least_likely_label_is_the_models(key):
    logits = np.random.default_rng(1).normal(size=(10, 10)).astype(np.float32)
    view = client(logits=lambda inputs: jnp.asarray(logits) + 0 * inputs.sum())
    labels = LabelFlip(to="least_likely").poison(batch(), view, key).labels
    np.testing.assert_array_equal(labels, logits.argmin(1))


@pytest.mark.parametrize("corner", ["top_left", "top_right", "bottom_left", "bottom_right"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 2)])
def test_the_trigger_is_a_bright_square_in_a_corner(corner, shape):
    images = batch(shape=shape).inputs
    peak = (5.0, 7.0)[: images.ndim - 2]
    expected = np.array(images)
    rows = slice(0, 3) if "top" in corner else slice(3, 6)
    columns = slice(0, 3) if "left" in corner else slice(4, 7)
    expected[:, rows, columns] = peak if len(shape) == 3 else peak[0]
    got = Backdoor(size=3, corner=corner).stamp(images, peak)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("fraction", "valid", "count"), [(0.5, 10, 5), (0.3, 7, 2), (0, 10, 0), (1, 4, 4)]
)
def test_a_share_of_the_batch_is_poisoned(fraction, valid, count, key):
    given = batch(valid=valid)
    attack = Backdoor(size=2, target=3, fraction=fraction)
    poisoned = attack.poison(given, client(peak=(9.0, 9.0)), key)
    changed = (np.asarray(poisoned.inputs) != np.asarray(given.inputs)).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, np.arange(10) < count)
    labels = np.where(np.arange(10) < count, 3, np.asarray(given.labels))
    np.testing.assert_array_equal(poisoned.labels, labels)
    np.testing.assert_array_equal(poisoned.mask, given.mask)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_attackers_share_a_distributed_trigger(parts, key):
    given, attack = batch(), DBA(size=3, parts=parts, fraction=1.0)
    seen = np.zeros((6, 6), int)
    for rank in range(parts):
        view = client(rank=rank, peak=(9.0, 9.0))
        stamped = np.asarray(attack.poison(given, view, key).inputs)[0] == 9.0
        assert stamped.any()
        seen += stamped[..., 0]
    whole = np.asarray(attack.stamp(given.inputs, (9.0, 9.0)))[0, ..., 0] == 9.0
    np.testing.assert_array_equal(seen, whole.astype(int))
    assert whole.sum() == 9
    again = attack.poison(given, client(rank=parts, peak=(9.0, 9.0)), key)
    first = attack.poison(given, client(rank=0, peak=(9.0, 9.0)), key)
    np.testing.assert_array_equal(again.inputs, first.inputs)


@pytest.mark.parametrize(
    ("attack", "shape", "message"),
    [
        (Backdoor(size=7), (6, 6, 1), "Backdoor: size must be at most that of the image, 6; got 7"),
        (Backdoor(target=10), (6, 6), "Backdoor: target must be a class, 0 to 9; got 10"),
        (DBA(), (57,), r"DBA needs images; got samples of shape \(57,\)"),
        (Onset(attack=Backdoor(size=7), start=3), (6, 6), "Backdoor: size must be at most"),
        (Mixed(attacks=(IPM(), Backdoor(target=11))), (6, 6), "Backdoor: target must be a class"),
    ],
)
def test_triggers_must_fit_the_data(attack, shape, message):
    with pytest.raises(ValueError, match=message):
        attack.check(shape, 10)


def test_combinations_know_their_backdoor():
    inner = Backdoor(size=3)
    assert Combined(data=inner, message=Scaling(factor=2.0)).backdoor == inner
    assert Onset(attack=Mixed(attacks=(IPM(), inner)), start=1).backdoor == inner
    assert TimeVarying(attacks=(IPM(), LabelFlip())).backdoor is None


def test_onset_of_messages():
    x, byzantine = draw(), mask(1, 6)
    attack = Onset(attack=SignFlip(), start=5)
    for when, sign in [(0, 1), (4, 1), (5, -1), (100, -1)]:
        rows, _ = attacked(attack, x, byzantine, when=when)
        np.testing.assert_array_equal(rows, np.where(byzantine[:, None], sign * x, x))


def test_onset_of_data(key):
    attack = Onset(attack=LabelFlip(), start=5)
    assert attack.poisons
    assert not attack.crafts
    for when, expected in [(4, np.arange(10)), (5, np.arange(10)[::-1])]:
        labels = attack.poison(batch(), client(when), key).labels
        np.testing.assert_array_equal(labels, expected)


class Counting(Attack):
    crafts = capability(True)
    knows = capability(NOTHING)

    def init(self, spec):
        return jnp.int32(7)

    def craft(self, view, state):
        return jnp.full((1, view.updates.shape[1]), state, view.updates.dtype), state + 1


def test_onset_starts_the_memory_with_the_attack():
    for when, expected in [(4, 7), (5, 8)]:
        attack = Onset(attack=Counting(), start=5)
        assert attacked(attack, draw(), mask(0), when=when)[1] == expected


def test_data_and_messages_at_once(key):
    attack = Combined(data=LabelFlip(), message=SignFlip())
    np.testing.assert_array_equal(attack.poison(batch(), client(), key).labels, np.arange(10)[::-1])
    x, byzantine = draw(), mask(1, 6)
    np.testing.assert_array_equal(attacked(attack, x, byzantine)[0][byzantine], -x[byzantine])


def test_time_varying_draws_uniformly_and_holds_for_some_rounds(key):
    attacks = (SignFlip(), NoAttack(), IPM(scale=0.5), LabelFlip())
    attack = TimeVarying(attacks=attacks, every=3, seed=2)
    turns = np.asarray(jax.vmap(attack.turn)(jnp.arange(3000)))
    np.testing.assert_array_equal(turns[0::3], turns[1::3])
    np.testing.assert_array_equal(turns[0::3], turns[2::3])
    counts = np.bincount(turns[::3], minlength=4)
    assert np.abs(counts - 250).max() < 60
    other = np.asarray(jax.vmap(attack.replace(seed=3).turn)(jnp.arange(3000)))
    assert (other != turns).any()
    x, byzantine = draw(), mask(1, 6)
    for turn in range(4):
        when = int(np.argmax(turns == turn))
        rows, _ = attacked(attack, x, byzantine, when=when)
        np.testing.assert_allclose(rows, attacked(attacks[turn], x, byzantine)[0], rtol=1e-6)
        labels = attack.poison(batch(), client(when), key).labels
        expected = np.arange(10)[::-1] if turn == 3 else np.arange(10)
        np.testing.assert_array_equal(labels, expected)


def test_time_varying_keeps_every_attacks_own_memory():
    attack = TimeVarying(attacks=(Counting(), SignFlip(), Counting()), seed=0)
    state = attack.init(Spec(N, N, D, 2, np.float32))
    counts = [7, 7]
    for when in range(12):
        turn = int(attack.turn(when))
        _, state = attacked(attack, draw(), mask(0), when=when, state=state)
        if turn != 1:
            counts[turn // 2] += 1
        assert [int(state[0]), int(state[2])] == counts


def test_mixed_attackers_run_their_own_attack(key):
    x, byzantine = draw(), mask(1, 3, 6, 7)
    attack = Mixed(attacks=(SignFlip(), LabelFlip(), NaN()))
    rows = np.asarray(attacked(attack, x, byzantine)[0])
    np.testing.assert_array_equal(rows[1], -x[1])
    np.testing.assert_array_equal(rows[3], x[3])
    assert np.isnan(rows[6]).all()
    np.testing.assert_array_equal(rows[7], -x[7])
    for rank, flipped in [(0, False), (1, True), (2, False), (4, True)]:
        labels = np.asarray(attack.poison(batch(), client(rank=rank), key).labels)
        assert (labels[0] == 9) == flipped


def test_attacks_nest():
    x, byzantine = draw(), mask(1, 6)
    nested = Onset(
        attack=TimeVarying(attacks=(Combined(data=LabelFlip(), message=ALIE(z=1.0)),)), start=0
    )
    alone = ALIE(z=1.0)(x, byzantine, defence=Mean())
    np.testing.assert_allclose(attacked(nested, x, byzantine)[0], alone, rtol=1e-5)
