"""Every rule on updates that hypothesis chooses: ties, zeros, scales, bad rows."""

import jax.numpy as jnp
import numpy as np
import pytest
import test_contract as contract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxfl.aggregators import Mean
from jaxfl.types import Segment

pytestmark = pytest.mark.grouped_by("name")

N, D, F = contract.N, contract.D, contract.F
BAD = (np.nan, np.inf, -np.inf, 1e30, -3e38)

few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def updates(draw):
    """Honest updates of many kinds: spread, clustered, tied, sparse, skewed, flat, of any scale."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["spread", "clusters", "tied", "sparse", "skewed", "flat"]))
    x = random.normal(size=(N, D))
    if kind == "clusters":
        x = 0.1 * x + 3 * random.normal(size=(3, D))[random.integers(0, 3, N)]
    if kind == "tied":
        x = x[random.integers(0, 4, N)]
    if kind == "sparse":
        x *= random.random(size=x.shape) < 0.1
    if kind == "skewed":
        x = np.exp(2 * x)
    if kind == "flat":
        x[:] = x[0]
    scale = 10.0 ** draw(st.integers(-8, 8))
    return (scale * x).astype(np.float32)


@st.composite
def attacked(draw):
    """Honest updates, at most F rows of which are not finite or overflow."""
    x = draw(updates())
    rows = draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=F, unique=True))
    for row in rows:
        columns = draw(st.lists(st.integers(0, D - 1), min_size=1, max_size=3, unique=True))
        x[row, columns] = draw(st.sampled_from(BAD))
    return x, np.isin(np.arange(N), rows)


def bounded_by(name, x):
    """How long an answer can be: as the longest row, or in the rule's own units."""
    longest = np.linalg.norm(x.astype(np.float64), axis=1).max()
    if name == "sign_majority":
        return np.sqrt(D)
    if name == "fltrust":
        return np.linalg.norm(contract.SERVER["root_update"]) * 1.001
    if name == "flame":
        return longest * 1.01  # noise
    return longest * 1.001


@contract.every_rule
@few
@given(x=updates())
def test_an_answer_is_no_longer_than_the_longest_update(name, x):
    result = contract.run(contract.RULES[name], x)
    assert np.isfinite(result.update).all()
    # Coordinatewise rules take each coordinate from another row.
    spread = np.sqrt(D) if result.info.weights is None else 1
    assert np.linalg.norm(np.float64(result.update)) <= spread * bounded_by(name, x) + 1e-30


@contract.every_rule
@few
@given(case=attacked())
def test_rows_that_are_not_finite_never_reach_the_answer(name, case):
    x, bad = case
    result = contract.run(contract.RULES[name], x)
    assert np.isfinite(result.update).all()
    honest = x[~bad]
    limit = np.sqrt(D) * max(bounded_by(name, honest), 1e-30)
    # A rule on columns meets an overflowing element as a finite outlier, which it trims.
    assert np.linalg.norm(np.float64(result.update)) <= limit * 1.01 + 1e-30
    if result.info.weights is not None:
        np.testing.assert_array_equal(np.asarray(result.info.weights)[bad], 0)


@contract.every_rule
def test_zeros_and_ties_in_one_coordinate(name):
    """Every row is a number and zeros, some numbers equal, some zero."""
    rule = contract.RULES[name]
    if rule.needs_root:
        pytest.skip("they follow the server's data, which are no numbers on this line")
    x = np.zeros((N, D), np.float32)
    x[:, 0] = [0, 0, 1, 1, 1, -1, 2, 0, 1, 3, 1]
    update = contract.run(rule, x).update
    assert -1 <= float(update[0]) <= 3
    # FLAME's noise is its factor times a median norm, which is at most 3.
    noise = 3 * float(getattr(rule, "noise_factor", 0))
    np.testing.assert_allclose(update[1:], 0, atol=1e-6 + 6 * noise)
    np.testing.assert_allclose(contract.run(rule, 0 * x).update, 0, atol=1e-6)


@contract.mostly_slow(contract.RULES)
def test_one_coordinate(name):
    """d = 1: no other column is there."""
    rule = contract.RULES[name]
    if rule.needs_root or rule.follows_model:
        pytest.skip("the server's data has more parameters")
    x = np.float32([0, 0, 1, 1, 1, -1, 2, 0, 1, 3, 1])[:, None]
    context = contract.given(segments=(Segment("kernel", 0, (1, 1), "kernel"),))
    result = rule.inspect(x, context=context)
    assert -1 <= float(result.update[0]) <= 3
    zero = rule.inspect(np.zeros((N, 1), np.float32), context=context)
    np.testing.assert_allclose(zero.update, 0, atol=1e-6)


def legal_alone(rule):
    rule = rule.replace(f=0) if "f" in rule._hints else rule
    try:
        rule.check(1)
    except ValueError:
        return None
    return rule


ALONE = {name: legal_alone(rule) for name, rule in contract.NAMED.items() if name != "pipeline"}


OTHERWISE = {
    "sign_majority": [1, -1],
    "fedseca": [0, -4],  # keeps a tenth of the values
    "sequential_centered_clipping": [1.8, -2.4],  # one step of at most tau = 3
}
"""What rules make of the only update, (3, -4), that do not hand it on."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, rule in ALONE.items() if rule))
def test_one_client_decides_alone(name):
    x = np.float32([[3, -4]])
    rule = ALONE[name]
    if rule.needs_root or rule.follows_model or rule.needs_segments:
        pytest.skip("the server's data has more parameters, or a vector no layers")
    context = contract.Context.of(1, byzantine=jnp.zeros(1, bool))
    got = rule(x, context=context)
    # Centred clipping gets there too: three steps of at most tau = 3 cover a distance of 5.
    expected = OTHERWISE.get(name, x[0])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_few_rules_need_more_than_one_client():
    needy = {name for name, rule in ALONE.items() if rule is None}
    assert needy & contract.TODAY == {"krum", "multi_krum", "bulyan"}
    assert isinstance(ALONE["mean"], Mean)
