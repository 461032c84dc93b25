"""Fang's attacks against the paper's formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_every_attack import attacked
from test_messages import ATTACKERS, N, draw, known, send

from jaxfl.aggregators import Krum, TrimmedMean
from jaxfl.attacks import FangKrum, FangTrim
from jaxfl.attacks.fang import picks_crafted


def signs(x, knowledge):
    return np.sign((x if knowledge == "full" else x[ATTACKERS]).astype(np.float64).mean(0))


@pytest.mark.parametrize("reach", [2.0, 5.0])
def test_trim_lies_beyond_all_honest_values_on_the_wrong_side(reach):
    x = draw(d=4000)
    x[:, ::3] = np.abs(x[:, ::3])
    x[:, 1::3] = -np.abs(x[:, 1::3])
    honest, sent, sign = known(x, "full"), send(FangTrim(reach=reach), x), signs(x, "full")
    least, most = honest.min(0), honest.max(0)
    low = np.where(least > 0, least / reach, least * reach)
    high = np.where(most > 0, most * reach, most / reach)
    up, down = sign < 0, sign > 0
    for row in sent:
        assert ((row >= low - 1e-6) & (row <= least + 1e-6))[down].all()
        assert ((row >= most - 1e-6) & (row <= high + 1e-6))[up].all()
        share = ((row - low) / (least - low))[down]
        assert abs(share.mean() - 0.5) < 0.05
        assert abs(share.var() - 1 / 12) < 0.02
    assert len({row.tobytes() for row in sent}) == 3


def test_trim_with_partial_knowledge_is_three_to_four_deviations_off():
    x = draw(d=4000)
    own = known(x, "partial")
    sent, sign = send(FangTrim(knowledge="partial"), x), signs(x, "partial")
    away = -(sent - own.mean(0)) * sign / own.std(0, ddof=1)
    assert away.min() >= 3 - 1e-3
    assert away.max() <= 4 + 1e-3
    assert abs(away.mean() - 3.5) < 0.02


def test_trim_sends_nothing_where_there_is_no_sign():
    x = np.zeros_like(draw())
    assert not send(FangTrim(), x).any()


def test_trim_turns_the_trimmed_mean_against_the_signs():
    x = draw()
    rule, sign = TrimmedMean(f=3), signs(x, "full")
    before = np.asarray(rule(x))
    attacked = np.where(ATTACKERS[:, None], 0, x)
    attacked[ATTACKERS] = send(FangTrim(), x)
    change = (np.asarray(rule(attacked.astype(np.float32))) - before) * sign
    assert (change <= 1e-6).all()
    assert (change < -0.01).mean() > 0.5


def krum_winner(rows, f):
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    count = len(rows) - f - 2
    scores = [np.sort(np.delete(d, i))[:count].sum() for i, d in enumerate(distances)]
    return int(np.argmin(scores))


def krum_factor(rows, base, sign, copies):
    """The paper's search: halve from its upper bound until Krum picks a crafted row."""
    d, count = rows.shape[1], len(rows)
    distances = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
    least = min(np.sort(np.delete(r, i))[: count - 2].sum() for i, r in enumerate(distances))
    size = np.abs(sign).sum()
    bound = least / (max(count - copies - 1, 1) * np.sqrt(size))
    bound += np.linalg.norm(rows, axis=1).max() / np.sqrt(size)
    assert d >= size
    for t in range(40):
        factor = bound * 0.5**t
        both = np.concatenate([rows, np.tile(-factor * sign, (copies, 1))])
        if krum_winner(both, copies) >= count:
            return factor, True
    return factor, False


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [1.0, 0.2])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_krum_with_full_knowledge(seed, spread, double):
    x = spread * draw(seed=seed) + np.float32(0.3)
    honest, sign = known(x, "full"), signs(x, "full")
    factor, _ = krum_factor(honest, x, sign, 3)
    sent = send(FangKrum(), x, double=double)
    np.testing.assert_allclose(sent, np.tile(-factor * sign, (3, 1)), rtol=1e-9 if double else 1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_krum_with_partial_knowledge_tries_more_and_more_copies(seed):
    byzantine = np.arange(N) < 5
    x = draw(seed=seed)
    own = x[byzantine].astype(np.float64)
    sign = np.sign(own.mean(0))
    for copies in range(1, 6):
        factor, found = krum_factor(own, x, sign, copies)
        if found:
            break
    sent = send(FangKrum(knowledge="partial"), x, byzantine, double=True)
    np.testing.assert_allclose(sent, np.tile(-factor * sign, (5, 1)), rtol=1e-9)


@pytest.mark.parametrize("attackers", [[2], [2, 5]])
def test_partial_knowledge_does_not_depend_on_places_without_an_attacker(attackers):
    x, byzantine = draw(), np.isin(np.arange(N), attackers)
    attack = FangKrum(knowledge="partial")
    alone = send(attack, x, byzantine)
    rows = np.asarray(attacked(attack, x, byzantine)[0])[byzantine]
    np.testing.assert_allclose(rows, alone, rtol=1e-5)
    assert np.abs(alone).max() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_krum_picks_a_crafted_row_when_the_search_succeeds(seed):
    x = draw(seed=seed)
    _, found = krum_factor(known(x, "full"), x, signs(x, "full"), 3)
    attacked = x.copy()
    attacked[ATTACKERS] = send(FangKrum(), x)
    assert found
    picked = np.asarray(Krum(f=3).inspect(attacked).info.selected)
    assert picked[ATTACKERS].any()


@pytest.mark.parametrize("seed", range(20))
def test_the_game_on_distances_is_krum(seed):
    random = np.random.default_rng(seed)
    h, copies = int(random.integers(4, 9)), int(random.integers(1, 5))
    f = int(random.integers(0, (h + copies - 3) // 2 + 1))
    rows, crafted = random.normal(size=(h, 3)), random.normal(size=3) * random.choice([0.3, 3])
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    expected = krum_winner(np.concatenate([rows, np.tile(crafted, (copies, 1))]), f) >= h
    got = picks_crafted(
        jnp.asarray(np.sort(distances, axis=1), jnp.float32),
        jnp.asarray(((rows - crafted) ** 2).sum(1), jnp.float32),
        jnp.ones(h, bool),
        jnp.int32(copies),
        jnp.int32(f),
    )
    assert bool(got) == expected
