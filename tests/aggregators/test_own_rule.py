"""A rule of somebody's own meets the contract by the same checks, with no edit in any test."""

import jax.numpy as jnp
import numpy as np
import pytest
import test_contract as contract

from jaxfl.aggregators import WeightingRule
from jaxfl.aggregators.base import needs_more_than
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.order import smallest
from jaxfl.types import Info


class MiddleNorms(WeightingRule):
    """The mean of the n - f updates whose norms are nearest to ``factor`` times the median."""

    f: int = field(at_least=0)
    factor: Scalar = field(default=1.0, above=0)
    needs = capability(frozenset({"norms"}))
    translation_equivariant = capability(False)

    def check(self, n):
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def weigh(self, statistics, state, context):
        middle = self.factor * jnp.median(statistics.norms)
        distance = jnp.where(statistics.usable, jnp.abs(statistics.norms - middle), jnp.inf)
        kept = smallest(distance[:, None], distance.shape[0] - self.f)[:, 0] & statistics.usable
        weights = kept / jnp.maximum(jnp.sum(kept), 1)
        return weights.astype(middle.dtype), Info(selected=kept, weights=weights)


class Liar(MiddleNorms):
    """Claims what it does not do, and lets a row that is not finite through."""

    translation_equivariant = capability(True)
    accepts_absent = capability(True)

    def weigh(self, statistics, state, context):
        norms = statistics.norms
        weights = norms / jnp.sum(norms)
        return weights, Info(weights=weights)


CHECKS = [
    (contract.test_calls_compile_once_whatever_the_values, ()),
    (contract.test_compiled_equals_eager, ()),
    (contract.test_inspect_equals_aggregate, ()),
    (contract.test_types_and_state_survive_a_scan, ("bfloat16",)),
    (contract.test_types_and_state_survive_a_scan, ("float64",)),
    (contract.test_double_precision_is_not_lost, ()),
    (contract.test_order_of_clients_does_not_matter, ()),
    *((contract.test_no_bad_row_reaches_the_output, (bad,)) for bad in (np.nan, np.inf, "mixed")),
    (contract.test_finite_outliers_stay_bounded, ("equal",)),
    (contract.test_equal_rows_give_that_row, ()),
    (contract.test_scale_equivariance, (1e6,)),
    (contract.test_scale_equivariance_with_memory, ()),
    (contract.test_a_pytree_comes_back_in_its_structure, ()),
    (contract.test_sweeping_scalars_equals_a_loop, ()),
    (contract.test_absent_clients_are_as_if_removed, (1.0,)),
]


@pytest.mark.parametrize(("check", "more"), CHECKS, ids=lambda x: getattr(x, "__name__", None))
def test_it_meets_the_contract(check, more, monkeypatch):
    monkeypatch.setitem(contract.RULES, "own", MiddleNorms.example())
    check("own", *more)


def test_its_largest_f_is_checked():
    contract.test_f_must_suit_n(MiddleNorms, 11)
    contract.test_f_must_be_a_count(MiddleNorms, -1)


@pytest.mark.parametrize(
    ("check", "more"),
    [
        (contract.test_translation_equivariance, ()),
        (contract.test_no_bad_row_reaches_the_output, (np.nan,)),
        (contract.test_finite_outliers_stay_bounded, ("spread",)),
        (contract.test_absent_clients_are_as_if_removed, (1.0,)),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_the_contract_finds_a_liar_out(check, more, monkeypatch):
    monkeypatch.setitem(contract.RULES, "own", Liar.example())
    with pytest.raises(AssertionError):
        check("own", *more)
