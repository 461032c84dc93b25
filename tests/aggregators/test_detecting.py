"""RFLBAT and FLDetector against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.aggregators import RFLBAT, FLDetector
from jaxfl.aggregators.fldetector import hessian_times
from jaxfl.aggregators.rflbat import principal_points
from jaxfl.types import Context, Spec

N, D = 11, 24


def answer(rule, x, state=None, seed=0, **known):
    with jax.enable_x64(True):
        context = Context.of(len(x), key=jax.random.key(seed), **known)
        return jax.tree.map(np.asarray, rule.inspect(jnp.asarray(x), context=context, state=state))


def clusters(seed):
    """Seven honest clients that differ, three whose backdoor is the same, one far outlier."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D))
    x[7:10] = 12 * random.normal(size=D) + 0.5 * random.normal(size=(3, D))
    return x


def central(points, factor):
    total = np.linalg.norm(points[:, None] - points[None], axis=-1).sum(axis=1)
    return total < factor * np.median(total)


def plane(x):
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2]


@pytest.mark.parametrize("seed", range(4))
def test_rflbat(seed):
    x = clusters(seed)
    points = plane(x)
    with jax.enable_x64(True):
        gram = jnp.asarray(x @ x.T)
        got = np.asarray(principal_points(gram, jnp.ones(N, bool)))
    np.testing.assert_allclose(np.abs(got), np.abs(points), atol=1e-8)
    parts = [*range(7), 10], [7, 8, 9]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    alike = [np.median(cosines[np.ix_(p, p)].mean(axis=1)) for p in parts]
    assert alike[0] < alike[1]
    kept = np.array(parts[0])[central(points[parts[0]], 4.0)]
    result = answer(RFLBAT(clusters=2), x, seed=seed)
    assert np.flatnonzero(result.info.selected).tolist() == sorted(kept)
    np.testing.assert_allclose(result.update, x[kept].mean(axis=0), atol=1e-9)


def test_rflbat_drops_what_is_far_from_everybody():
    x = clusters(0)
    x[7:10] = np.random.default_rng(1).normal(size=(3, D))
    x[10] = 400.0
    points = plane(x)
    assert central(points, 2.0).tolist() == [True] * 10 + [False]
    # With one cluster the two filters are all there is.
    strict = answer(RFLBAT(clusters=1, outlier=2.0, inner_outlier=1.05), x)
    kept = np.flatnonzero(central(points, 2.0))
    kept = kept[central(points[kept], 1.05)]
    assert 0 < len(kept) < 10
    assert np.flatnonzero(strict.info.selected).tolist() == kept.tolist()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(D, D)))[0]
    turned = answer(RFLBAT(clusters=1, outlier=2.0, inner_outlier=1.05), x @ rotation)
    np.testing.assert_array_equal(turned.info.selected, strict.info.selected)


def two_parts(points):
    """The best split into two, of all there are."""
    splits = [np.array([(k >> i) & 1 for i in range(N)], bool) for k in range(1, 2 ** (N - 1))]

    def spread(part):
        return sum(((points[p] - points[p].mean(axis=0)) ** 2).sum() for p in (part, ~part))

    best = min(splits, key=spread)
    return min(best.tolist(), (~best).tolist())


@pytest.mark.parametrize("seed", range(4))
def test_rflbat_clusters_the_plane_as_it_is(seed):
    """Two backdoored clients far along one axis; the honest ones of two kinds along the other."""
    random = np.random.default_rng(seed)
    x = 0.1 * random.normal(size=(N, D))
    x[:, 0] += np.where(np.arange(N) < 2, 10, 0)
    x[:, 1] += np.where(np.arange(N) % 2, 2.5, -2.5)
    points = plane(x)
    scaled = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    mine = np.array(two_parts(points))
    assert two_parts(points) != two_parts(scaled)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    alike = [np.median(cosines[np.ix_(p, p)].mean(axis=1)) for p in (mine, ~mine)]
    kept = np.flatnonzero(mine if alike[0] < alike[1] else ~mine)
    kept = kept[central(points[kept], 4.0)]
    assert kept.tolist() == list(range(2, N))
    result = answer(RFLBAT(clusters=2), x, seed=seed)
    assert np.flatnonzero(result.info.selected).tolist() == kept.tolist()


def lbfgs(moves, changes, v):
    """The authors' formula, pairs as columns."""
    s, y = np.array(moves).T, np.array(changes).T
    a = s.T @ y
    lower, diagonal = np.tril(a, -1), np.diag(np.diag(a))
    sigma = (y[:, -1] @ s[:, -1]) / (s[:, -1] @ s[:, -1])
    middle = np.block([[sigma * s.T @ s, lower], [lower.T, -diagonal]])
    right = np.concatenate([sigma * s.T @ v, y.T @ v])
    return sigma * v - np.hstack([sigma * s, y]) @ np.linalg.solve(middle, right)


def test_the_hessian_of_lbfgs():
    random = np.random.default_rng(0)
    root = random.normal(size=(D, D))
    hessian = root @ root.T / D + np.eye(D)
    moves = random.normal(size=(4, D))
    changes, v = moves @ hessian, random.normal(size=D)
    with jax.enable_x64(True):
        got = hessian_times(*map(jnp.asarray, (moves, changes, v)))
        np.testing.assert_allclose(got, lbfgs(moves, changes, v), rtol=1e-8, atol=1e-8)
        last = hessian_times(*map(jnp.asarray, (moves, changes, moves[-1])))
        np.testing.assert_allclose(last, changes[-1], rtol=1e-8)
        # Fewer pairs than there is room for.
        padded = [jnp.asarray(np.vstack([np.zeros((3, D)), m])) for m in (moves, changes)]
        np.testing.assert_allclose(
            hessian_times(*padded, jnp.asarray(v)), got, rtol=1e-7, atol=1e-9
        )
        np.testing.assert_array_equal(hessian_times(*padded, jnp.zeros(D)), 0)
        nothing = jnp.zeros((3, D))
        np.testing.assert_array_equal(hessian_times(nothing, nothing, jnp.asarray(v)), 0)


class Detector:
    """FLDetector's scores, round by round."""

    def __init__(self, window):
        self.window, self.moves, self.changes = window, [], []
        self.params = self.update = None
        self.sent, self.shares = {}, {}

    def scores(self, x, params, ids):
        expected, distances = np.zeros(D), {}
        if self.moves:
            pairs = (p[-self.window :] for p in (self.moves, self.changes))
            expected = lbfgs(*pairs, params - self.params)
        for row, i in zip(x, ids, strict=True):
            if i in self.sent:
                distances[i] = np.linalg.norm(self.sent[i] + expected - row)
        for i, away in distances.items():
            share = away / np.mean(list(distances.values())) / len(ids)
            self.shares[i] = [*self.shares.get(i, []), share][-self.window :]
        return np.array([np.mean(self.shares.get(i, [0])) for i in ids])

    def remember(self, x, params, update, ids):
        if self.params is not None:
            self.moves.append(params - self.params)
            self.changes.append(update - self.update)
        self.params, self.update = params, update
        self.sent |= dict(zip(ids, x, strict=True))


@pytest.mark.parametrize("cohort", [pytest.param(N, marks=pytest.mark.slow), 8])
def test_fldetector(cohort):
    """Clients with quadratic losses; three of them send noise on top, from the first round on."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(N, D, D)) / 5
    hessians = np.eye(D) + np.einsum("nij,nkj->nik", roots, roots) / 20
    centres, attackers = random.normal(size=(N, D)), [1, 4, 8]
    rule, mine = FLDetector(window=3, start=6), Detector(3)
    params, detected, newcomers = 3 * random.normal(size=D), 0, 0
    with jax.enable_x64(True):
        state = rule.init(Spec(population=N, cohort=cohort, dim=D, dtype="float64"))
    for turn in range(14):
        # The last client of a cohort comes first when others are judged.
        late = N if turn >= 8 else N - 1
        ids = np.arange(N) if cohort == N else random.permutation(late)[:cohort]
        if cohort < N and turn == 8:
            ids[0] = N - 1
        x = np.einsum("nij,nj->ni", hessians, params - centres)
        x[attackers] += 3 * random.normal(size=(3, D))
        x, guilty = x[ids], np.isin(ids, attackers)
        known = {"params": params, "client_ids": jnp.asarray(ids, jnp.int32)}
        new = np.array([i not in mine.sent for i in ids])
        result = answer(rule, x, state, seed=turn, **known)
        state = result.state
        np.testing.assert_allclose(result.info.scores, mine.scores(x, params, ids), rtol=1e-6)
        kept = result.info.selected
        np.testing.assert_allclose(result.update, x[kept].mean(axis=0), rtol=1e-7, atol=1e-9)
        assert turn >= 6 or kept.all()
        assert kept[new].all()
        if turn >= 6:
            newcomers += new.sum()
            detected += not kept[guilty].any()
        if turn >= 6 and cohort == N:
            assert kept[~guilty].all()
        mine.remember(x, params, result.update, ids)
        params = params - 0.2 * result.update
    assert detected >= 7 if cohort == N else newcomers == 1


def test_a_constant_lie_has_the_distance_of_the_truth():
    """And updates that are linear in the parameters are predicted exactly."""
    random = np.random.default_rng(0)
    lies, state = np.where(np.arange(N)[:, None] == 2, 50, random.normal(size=(N, D))), None
    for turn in range(4):
        params = random.normal(size=D)
        fresh = np.where(np.arange(N)[:, None] == 5, random.normal(size=D), 0) * (turn > 1)
        result = answer(FLDetector(window=4), 0.7 * params + lies + fresh, state, params=params)
        state = result.state
    shares = state.scores[-1]
    # By then the answer's own change has the liar's noise in it: one client of eleven.
    assert shares.argmax() == 5
    assert shares[2] < 0.5 * shares[5]


def test_a_broken_row_counts_as_the_farthest():
    x = np.random.default_rng(0).normal(size=(N, D))
    x[3, 0] = np.nan
    first = answer(FLDetector(), np.ones((N, D)), params=np.zeros(D))
    np.testing.assert_array_equal(first.info.scores, 0)
    result = answer(FLDetector(), x, first.state, params=np.zeros(D))
    assert result.info.scores[3] == result.info.scores.max() > 0
    assert not result.info.selected[3]
    assert np.isfinite(result.state.sent).all()
    with pytest.raises(ValueError, match=r"FLDetector needs context\.params"):
        FLDetector()(x)
