"""Krum's variants, Multi-Krum's and Bulyan's selections against their formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from inputs import both_types, close, draw, every_kind, inspect, one_column, random

from jaxfl.aggregators import Bulyan, Krum, MultiKrum, Pipeline
from jaxfl.aggregators.bulyan import KrumSelection, bulyan_selection, selection_size
from jaxfl.preaggregators import NNM
from jaxfl.types import Context


def scores_of(distances, neighbours):
    """Of rows whose pairwise powers of distances are given."""
    others = [np.sort(np.delete(row, i)) for i, row in enumerate(distances)]
    return np.array([row[:neighbours].sum() for row in others])


def picked(distances, f, count, neighbours, least=1):
    """Winners of Krum, one after the other."""
    left, winners = list(range(len(distances))), []
    for t in range(count):
        scores = scores_of(distances[np.ix_(left, left)], max(neighbours - t, least))
        # Sums in another order differ by rounding: the first of equal scores wins.
        best = np.flatnonzero(scores <= scores.min() * (1 + 1e-12))[0]
        winners.append(left.pop(best))
    return winners


def bulyan_matrix(x, f, variant):
    """The rows that Bulyan's second stage sees, as a matrix applied to the updates."""
    n, distances = len(x), references.squared_distances(x)
    if variant == "epfl":
        scores = scores_of(np.sqrt(distances), n - f - 2)
        order = np.argsort(np.round(scores / max(scores.max(), 1e-300), 12), kind="stable")
        chosen = [order[t : n - f - 2] for t in range(n - 2 * f - 2)]
    elif variant == "paper":
        chosen = [[i] for i in picked(distances, f, n - 2 * f, n - f - 2)]
    else:
        count = min(n - 2 * f, n - f - 2)
        chosen = [[i] for i in picked(distances, f, count, n - f - 3, least=0)]
    return np.stack([np.isin(np.arange(n), c) / len(c) for c in chosen])


def bulyan(x, f, variant="paper"):
    """Per coordinate, the mean of the theta - 2f selected values nearest their median."""
    selected = bulyan_matrix(x, f, variant) @ x
    theta = len(selected)
    median = np.median(selected, axis=0)
    if variant != "paper":
        median = np.sort(selected, axis=0)[(theta - 1) // 2]
    nearest = np.argsort(np.abs(selected - median), axis=0, kind="stable")[: theta - 2 * f]
    return np.take_along_axis(selected, nearest, axis=0).mean(0)


@both_types
@every_kind
@pytest.mark.parametrize("power", [1, 2, 4])
def test_krum_sums_powers_of_distances(kind, power, double):
    x, f = draw(kind), 2
    distances = np.sqrt(references.squared_distances(x))
    for neighbours in (None, 8, 6):
        scores = scores_of(distances**power, 7 if neighbours is None else neighbours)
        result = inspect(Krum(f=f, neighbours=neighbours, power=power), x, double)
        chosen = scores[np.argmax(result.info.selected)]
        assert chosen <= scores.min() * (1 + (1e-9 if double else 1e-4))
        np.testing.assert_array_equal(result.update, x[np.argmax(result.info.selected)])
        got = result.info.scores
        if power == 4 and got.max() > 0:
            got, scores = got / got.max(), scores / scores.max()
        if np.any(scores):
            close(got, scores, double)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_equal_scores_go_to_the_first(power):
    x = np.array([[9, 9], [0, 0], [1, 0], [0, 1], [1, 1], [5, 5], [-7, 8]], float)
    assert np.argmax(inspect(Krum(f=1, power=power, neighbours=3), x, False).info.selected) == 1


def test_fourth_powers_of_large_and_small_distances():
    for scale in (1e-12, 1e12):
        x = draw(random)
        got = inspect(Krum(f=2, power=4), scale * x, False)
        expected = inspect(Krum(f=2, power=4), x, False)
        np.testing.assert_array_equal(got.info.selected, expected.info.selected)


def mixed_by_nnm(x, f):
    """Sums of each row's n - f nearest, of integers: exact."""
    distances = np.square(x[:, None] - x[None]).sum(-1)
    near = np.argsort(distances, axis=1, kind="stable")[:, : len(x) - f]
    return x[near].sum(1)


@functools.partial(jax.jit, static_argnums=0)
def many(rule, x):
    return jax.vmap(lambda x: rule.aggregate(x, (), Context.of(x.shape[0])).update)(x)


@pytest.mark.parametrize("pre", [(), (NNM(f=2),)], ids=["Krum", "NNM"])
def test_ties_go_to_the_first_client_whatever_rounding_says(pre):
    """Integers have exact scores, many of them equal, and neither thirds nor ninths are exact."""
    x = np.random.default_rng(0).integers(0, 2, size=(300, 11, 3))
    share = 1 if pre else 3
    got = many(Pipeline(pre=pre, rule=Krum(f=2)), jnp.asarray(x, jnp.float32) / share)
    for rows, answer in zip(x, np.asarray(got), strict=True):
        mixed = mixed_by_nnm(rows, 2) if pre else rows
        scores = scores_of(np.square(mixed[:, None] - mixed[None]).sum(-1), 7)
        expected = mixed[np.argmin(scores)] / (9 if pre else 3)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_the_lower_of_two_middle_values_in_the_codes_of_bulyan():
    """n = 12, f = 2: all select an even number of rows."""
    x = np.random.default_rng(3).normal(size=(12, 40)).astype(np.float32)
    for variant in ("paper", "ndss21", "epfl"):
        assert len(bulyan_matrix(x, 2, variant)) in (6, 8)
        got = Bulyan(f=2, variant=variant)(x)
        np.testing.assert_allclose(got, bulyan(x, 2, variant), rtol=1e-4, atol=1e-5)


@both_types
@every_kind
def test_iterative_multi_krum(kind, double):
    x = draw(kind)
    distances = references.squared_distances(x)
    for f, q, neighbours in [(2, None, None), (2, 7, None), (2, None, 6), (0, None, None)]:
        rule = MultiKrum(f=f, q=q, neighbours=neighbours, iterative=True)
        count = 11 - 2 * f - 2 if q is None else q
        expected = picked(distances, f, count, 11 - f - 2 if neighbours is None else neighbours)
        result = inspect(rule, x, double)
        assert result.info.selected.sum() == count
        close(result.update, x[expected].mean(0), double, np.abs(x).max())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Krum(f=2, neighbours=9), "Krum needs neighbours <= n - f - 1; got neighbours = 9, n = 11"),
        (MultiKrum(f=2, neighbours=9), "MultiKrum needs neighbours <= n - f - 1"),
        (MultiKrum(f=2, q=8, iterative=True), "MultiKrum needs q <= n - f - 2; got q = 8, n = 11"),
    ],
)
def test_too_many(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(draw(random))


@both_types
@every_kind
@pytest.mark.parametrize("variant", ["paper", "ndss21", "epfl"])
def test_what_bulyan_selects(kind, variant, double):
    x = draw(kind)
    for f in (0, 1, 2):
        if variant == "epfl" and kind is one_column and not double:
            continue  # On a line several rows have the same sum of distances, up to rounding.
        expected = bulyan_matrix(x, f, variant)
        matrix = inspect(_Selected(f=f, variant=variant), x, double)
        np.testing.assert_allclose(matrix, expected, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class _Selected:
    """The matrix that KrumSelection mixes with, in the shape of a rule."""

    f: int
    variant: str

    @functools.partial(jax.jit, static_argnums=0)
    def inspect(self, x):
        difference = x[:, None] - x[None]
        distances = jnp.sum(difference * difference, axis=-1)
        select = functools.partial(bulyan_selection, f=self.f, variant=self.variant)
        return select(distances, jnp.ones(len(x), bool))


@pytest.mark.parametrize(("n", "f", "expected"), [(7, 1, (5, 4, 3)), (11, 2, (7, 7, 5))])
def test_how_many_rows_bulyan_selects(n, f, expected):
    assert tuple(selection_size(n, f, v) for v in ("paper", "ndss21", "epfl")) == expected
    assert KrumSelection(f=f).rows(n) == expected[0]
    Bulyan(f=f).check(n)
    with pytest.raises(ValueError, match="Bulyan needs n >= 4f"):
        Bulyan(f=f).check(n - 1)


@pytest.mark.parametrize("variant", ["paper", "ndss21", "epfl"])
def test_unusable_rows_are_not_selected(variant):
    x = draw(random).astype(np.float32)
    distances = np.array(references.squared_distances(x), np.float32)
    distances[:2], distances[:, :2] = np.inf, np.inf
    select = jax.jit(bulyan_selection, static_argnums=(2, 3))
    matrix = select(distances, jnp.arange(11) > 1, 2, variant)
    np.testing.assert_array_equal(matrix[:, :2], 0)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "ndss21", "epfl"])
def test_the_reference_of_bulyan_drops_outliers(variant):
    x = draw(random)
    x[:2] = 1e9
    assert np.abs(bulyan(x, 2, variant)).max() < 5
