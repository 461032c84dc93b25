"""The coordinatewise rules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxfl.aggregators import MeaMed, Median, Phocas, SignMajority, TrimmedMean
from jaxfl.types import Context

KINDS = ["random", "tied", "skewed", "sparse", "tiny"]
SIZES = [(1, 0), (3, 1), (10, 3), (11, 5), (50, 10), (66, 20), (130, 40)]


def sizes(*usual):
    """All of them; those but the usual ones are slow to compile."""
    return pytest.mark.parametrize(
        ("n", "f"),
        [pytest.param(*s, marks=() if s[0] in usual else pytest.mark.slow) for s in SIZES],
    )


def draw(kind, n, d=12, dtype=np.float64):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d))
    if kind == "tied":
        x = rng.integers(-2, 3, (n, d)).astype(np.float64)
    if kind == "skewed":
        x = np.exp(3 * x)
    if kind == "sparse":
        x *= rng.random((n, d)) < 0.2
    return (1e-30 * x if kind == "tiny" else x).astype(dtype)


def rules(f):
    """Each rule with its reference."""
    return {
        "median": (Median(), references.median),
        "lower median": (Median(lower=True), references.lower_median),
        "trimmed mean": (TrimmedMean(f=f), lambda x: references.trimmed_mean(x, f)),
        "MeaMed": (MeaMed(f=f), lambda x: references.mea_med(x, f)),
        "Phocas": (Phocas(f=f), lambda x: references.phocas(x, f)),
        "majority": (SignMajority(), references.sign_majority),
    }


every_rule = pytest.mark.parametrize("name", rules(0))


@every_rule
@sizes(1, 3, 10, 66)
def test_double_precision(name, n, f):
    rule, reference = rules(f)[name]
    x = np.concatenate([draw(kind, n) for kind in KINDS], axis=1)
    with jax.enable_x64(True):
        got = np.asarray(rule(jnp.asarray(x)))
    np.testing.assert_allclose(got, reference(x), rtol=1e-9, atol=1e-44)


@every_rule
@sizes(11, 66)
def test_single_precision(name, n, f):
    rule, reference = rules(f)[name]
    x = np.concatenate([draw(kind, n, dtype=np.float32) for kind in KINDS], axis=1)
    # The reference decides in float32 too: what is near a tie there, the rule may decide so.
    expected = reference(x).astype(np.float64)
    np.testing.assert_allclose(rule(x), expected, rtol=1e-4, atol=2e-6)


@every_rule
def test_many_columns_are_reduced_in_blocks(name):
    rule, reference = rules(2)[name]
    x = draw("random", 7, 9000, np.float32)
    np.testing.assert_allclose(rule(x), reference(x), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("rule", [TrimmedMean, MeaMed, Phocas])
@pytest.mark.parametrize(
    ("n", "f"),
    [
        (19, 9),
        (70, 3),
        pytest.param(19, 2, marks=pytest.mark.slow),
        pytest.param(70, 2, marks=pytest.mark.slow),
        pytest.param(70, 9, marks=pytest.mark.slow),
    ],
)
def test_huge_values_cost_no_precision(rule, n, f):
    x = draw("random", n, dtype=np.float32)
    ordinary = rule(f=f)(np.concatenate([np.full((f, 12), 50, np.float32), x[f:]]))
    x[:f] = 1e20
    np.testing.assert_allclose(rule(f=f)(x), ordinary, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [8, 70])
def test_ties_across_the_median_go_to_the_first_client(n):
    x, signs = np.zeros((n, 12), np.float32), np.tile(np.float32([1, -1]), 6)
    x[1], x[2], x[3], x[4] = signs, -signs, signs, -signs
    # Room for one of the four values at distance 1: that of client 1.
    expected = signs / (n - 3)
    np.testing.assert_allclose(MeaMed(f=3)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(Phocas(f=3)(x), expected, rtol=1e-6)


@every_rule
def test_few_who_are_present(name):
    """Of at most 2f clients fewer are trimmed; of nobody comes 0. Runs differ in who is there."""
    rule, _ = rules(3)[name]
    x = draw("random", 9, dtype=np.float32)
    x[8] = np.nan
    counts = range(8)
    masks = jnp.arange(9)[None] < jnp.asarray(counts)[:, None]

    def answer(present):
        return rule.aggregate(x, (), Context.of(9).replace(present=present)).update

    found = jax.jit(jax.vmap(answer))(masks)
    np.testing.assert_array_equal(found[0], 0)
    for n in counts[1:]:
        reference = rules(min(3, (n - 1) // 2))[name][1]
        np.testing.assert_allclose(found[n], reference(x[:n]), rtol=1e-5, atol=1e-6)


gradient_of_sum = jax.jit(jax.grad(lambda x, rule: jnp.sum(rule(x))))


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(f=2), MeaMed(f=2), Phocas(f=2)], ids=repr)
@pytest.mark.parametrize("n", [5, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bad", [[np.inf, np.inf], [np.nan, np.inf], [-np.inf, np.inf]])
def test_infinities_never_reach_the_output(rule, n, bad):
    x = draw("random", n, dtype=np.float32)
    x[:2] = np.float32(bad)[:, None]
    assert np.isfinite(rule(x)).all()
    assert np.isfinite(gradient_of_sum(x, rule)).all()


def test_a_distance_that_overflows_is_not_infinite():
    x = np.float32([[np.inf], [-2e38], [2e38]])
    np.testing.assert_array_equal(MeaMed(f=1)(x), [0])


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(f=20)], ids=repr)
def test_a_kernel_reads_the_updates_themselves(rule, monkeypatch):
    """What is done to them before it would be one more pass over the matrix."""

    def on_a_gpu(*arguments, default, cuda=None, **_):
        return (cuda or default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_a_gpu)
    x = jnp.asarray(draw("random", 70, dtype=np.float32))
    program = jax.make_jaxpr(lambda x: rule.aggregate(x, (), Context.of(70)).update)(x)
    matrices = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            inner = [v for v in equation.params.values() if hasattr(v, "jaxpr")]
            if equation.primitive.name == "pallas_call":
                matrices.append("kernel")
            elif inner:
                walk(inner[0].jaxpr)
            elif any(v.aval.shape == x.shape for v in equation.outvars):
                matrices.append(equation.primitive.name)

    walk(program.jaxpr)
    assert matrices == ["kernel"]


def test_majority_counts_only_finite_votes():
    x = np.float32([[3, np.nan, np.inf, 0], [-1, 2, -5, 0], [2, -1, np.nan, -0.0]])
    np.testing.assert_array_equal(SignMajority()(x), [1, 0, -1, 0])


SMALL = hnp.arrays(np.float32, (7, 3), elements=st.integers(-3, 3))


@settings(max_examples=25, deadline=None)
@given(SMALL, st.permutations(range(7)))
def test_properties(x, permutation):
    """Odd and, but for the tie rule of MeaMed, blind to the order; inside the honest range."""
    for name, (rule, _) in rules(2).items():
        got = np.asarray(rule(x))
        if name not in ("MeaMed", "Phocas"):
            np.testing.assert_allclose(rule(x[list(permutation)]), got, rtol=1e-6)
        if name != "lower median":
            np.testing.assert_allclose(rule(-x), -got, rtol=1e-5, atol=1e-6)
        if name != "majority":
            assert (got >= x.min(0) - 1e-6).all()
            assert (got <= x.max(0) + 1e-6).all()


@pytest.mark.parametrize("n", [9, pytest.param(70, marks=pytest.mark.slow)])
def test_several_matrices_at_once(n):
    x = np.stack([draw("tied", n, dtype=np.float32), draw("random", n, dtype=np.float32)])
    for name, (rule, reference) in rules(3).items():
        swept = jax.jit(jax.vmap(rule))(x)
        expected = np.stack([reference(m) for m in x])
        np.testing.assert_allclose(swept, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("n", [9, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [MeaMed(f=3), Phocas(f=3)], ids=repr)
def test_gradient_goes_to_the_averaged_values(rule, n):
    x = draw("random", n, dtype=np.float32)
    gradient = np.asarray(gradient_of_sum(x, rule))
    np.testing.assert_array_equal(np.sum(gradient != 0, axis=0), n - 3)
    np.testing.assert_allclose(gradient[gradient != 0], 1 / (n - 3), rtol=1e-5)
