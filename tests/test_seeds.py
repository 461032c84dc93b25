"""Several seeds in one program: each gives what it gives alone, and branches stay branches."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import every_rule, ragged, shapes_context

from jaxfl import (
    IPM,
    Federation,
    Krum,
    MeaMed,
    Mean,
    Onset,
    SignFlip,
    SignGuardSim,
    Simulation,
    TimeVarying,
)
from jaxfl.models import Softmax
from jaxfl.numerics.runs import alongside, in_all_runs
from jaxfl.profiling.costs import costs_of
from jaxfl.profiling.hlo import Module
from jaxfl.types import Segment, Spec

# Two numbers for each client: choosing costs less than deciding together.
SMALL = {"signguard": 1, "signguard_sim": 1, "signguard_dist": 1}
RULES = {n: r for n, r in every_rule(f=2).items() if "+" not in n or n == "arc+nnm+krum"}


def layers(dim: int) -> tuple[Segment, ...]:
    """Two layers of a model of so many parameters, a multiple of 8."""
    first = dim - dim // 4
    return (
        Segment("a.kernel", 0, (first // 2, 2), "kernel"),
        Segment("b.bias", first, (2,), "bias", last=True),
        Segment("b.kernel", first + 2, (dim // 8 - 1, 2), "kernel", last=True),
    )


OF_EACH_KIND = ("krum", "mea_med", "mean", "signguard", "signguard_dist", "arc+nnm+krum")


def equations(jaxpr):
    """All of them, in loops and inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        parameters = list(equation.params.values())
        for parameter in jax.tree.leaves(parameters, is_leaf=lambda p: hasattr(p, "eqns")):
            body = getattr(parameter, "jaxpr", parameter)
            if hasattr(body, "eqns"):
                yield from equations(body)


def branches(jaxpr) -> int:
    """How many ``cond`` are decided as it runs."""
    # Those that choose a platform are decided when the program is compiled.
    counts = {"cond": 1, "platform_index": -1}
    return sum(counts.get(equation.primitive.name, 0) for equation in equations(jaxpr))


def chosen_matrices(jaxpr, rows: int) -> int:
    """How many ``select`` take a run's matrix of all rows with all rows by one answer a run."""
    found = list(equations(jaxpr))
    # JAX repeats an answer for each number that it chooses.
    repeated = {
        e.outvars[0]
        for e in found
        if e.primitive.name == "broadcast_in_dim" and e.invars[0].aval.ndim < 2
    }
    return sum(
        e.outvars[0].aval.shape[1:] == (rows, rows)
        and (e.invars[0] in repeated or e.invars[0].aval.ndim < 2)
        for e in found
        if e.primitive.name == "select_n"
    )


@pytest.mark.parametrize(
    "choose",
    [lambda p, x: jax.lax.cond(p, jnp.sin, jnp.cos, x), lambda p, x: jnp.where(p, x, 1)],
    ids=["cond", "where"],
)
def test_a_branch_that_became_a_choice_is_found(choose):
    matrices = jnp.zeros((3, 7, 7))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda x: choose(jnp.sum(x) > 0, x)))(matrices)
    assert chosen_matrices(jaxpr.jaxpr, 7) > 0
    assert chosen_matrices(jaxpr.jaxpr, 8) == 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OF_EACH_KIND else pytest.mark.slow) for n in sorted(RULES)],
)
def test_every_rule_branches_for_several_seeds_as_for_one(name):
    spec = Spec(population=12, cohort=12, dim=40, segments=layers(40))
    rule = RULES[name]

    def aggregate(updates, state):
        result = rule.aggregate(updates, state, shapes_context(spec))
        return result.update, result.state

    arguments = jnp.zeros((3, 12, 40)), jax.tree.map(lambda x: jnp.stack([x] * 3), rule.init(spec))
    together = jax.make_jaxpr(jax.vmap(aggregate))(*arguments)
    alone = jax.make_jaxpr(aggregate)(*jax.tree.map(lambda x: x[0], arguments))
    assert branches(alone.jaxpr) - branches(together.jaxpr) == SMALL.get(name, 0)
    assert chosen_matrices(together.jaxpr, 12) == 0


def bytes_moved(text):
    """Bytes that a compiled program reads and writes, all steps of its loops counted.

    XLA's own count takes a loop as one step. So does this one where only the data says how many
    there are, alike for one seed and for several; of a branch it counts all sides.
    """
    module, costs = Module(text), costs_of(text)

    def moved(computation):
        return sum(of(x) for x in module.computations[computation].values() if x.name in costs)

    def of(x):
        if not costs[x.name].control:
            return costs[x.name].bytes
        steps = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.text)
        return (int(steps[1]) if steps else 1) * sum(map(moved, x.called))

    return moved(module.entry)


def test_all_steps_of_a_loop_are_counted():
    x = jnp.zeros((5, 40_000))

    def one_by_one(rows):
        return jax.lax.map(lambda row: jax.lax.sort(row), rows)

    text = jax.jit(one_by_one).lower(x).compile().as_text()
    assert 5 * 2 * 160_000 <= bytes_moved(text) <= 4 * 5 * 2 * 160_000  # a copy, a slice


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How instructions become machine code, which changes none of them."""
READ_OFTEN = ("foolsgold", "byzantine_sgd", "fldetector", "centered_clipping", "monna", "dnc")
"""Rules that remember clients' rows, or read the matrix several times."""


@pytest.mark.default_compiler
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in READ_OFTEN else pytest.mark.slow) for n in sorted(RULES)],
)
def test_a_seed_among_three_moves_as_many_bytes_as_one(name):
    n, d = 12, 8192
    spec, rule = Spec(population=n, cohort=n, dim=d, segments=layers(d)), RULES[name]

    def aggregate(updates, state):
        result = rule.aggregate(updates, state, shapes_context(spec))
        return result.update, result.state

    def moved(function, *arguments):
        program = jax.jit(function, donate_argnums=1).lower(*arguments).compile(QUICK)
        return bytes_moved(program.as_text())

    one = jnp.zeros((n, d)), rule.init(spec)
    three = jax.tree.map(lambda x: jnp.stack([x] * 3), one)
    alone = moved(aggregate, *one)
    assert alone >= 4 * n * d  # it reads the matrix
    assert moved(jax.vmap(aggregate), *three) <= 1.15 * 3 * alone


@pytest.mark.parametrize(
    "attack", [Onset(attack=IPM(), start=2), TimeVarying(attacks=(SignFlip(), IPM()))]
)
def test_what_the_round_decides_is_decided_once(attack):
    def program(seeds):
        federation = Federation(attack=attack, byzantine=1, aggregator=Mean())
        simulation = Simulation(federation, ragged(), Softmax(), seeds=seeds)
        return simulation.block(2), (simulation.federation, simulation.data, simulation.state)

    def count(seeds):
        block, arguments = program(seeds)
        return branches(jax.make_jaxpr(block)(*arguments).jaxpr)

    assert count((0, 1)) == count((0,)) >= 2


def test_seeds_together_give_what_each_gives_alone():
    attack = Onset(attack=IPM(scale=2.0), start=2)
    federation = Federation(attack=attack, byzantine=1, aggregator=SignGuardSim(fraction=0.5))
    together = Simulation(federation, ragged(), Softmax(), seeds=(0, 1), evaluate_every=2).run(4)
    for i in range(2):
        alone = Simulation(federation, ragged(), Softmax(), seeds=(i,), evaluate_every=2).run(4)
        np.testing.assert_allclose(together.state.params[i], alone.state.params, atol=1e-6)
        np.testing.assert_array_equal(
            together.records.malicious_selected[i], alone.records.malicious_selected
        )


@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        Krum(f=2),
        MeaMed(f=2),
        pytest.param(SignGuardSim(fraction=0.5), marks=pytest.mark.slow),
    ],
)
def test_one_seed_with_a_row_that_is_not_finite_changes_no_other(rule):
    updates = np.random.default_rng(0).normal(size=(3, 12, 40)).astype("f4")
    updates[1, 4, 7] = np.nan
    together = jax.vmap(rule)(updates)
    for one, alone in zip(together, updates, strict=True):
        np.testing.assert_allclose(one, rule(alone), rtol=1e-5, atol=1e-6)


def test_a_predicate_holds_in_all_runs_or_in_none():
    for values in itertools.product([False, True], repeat=4):
        grid = jnp.array(values).reshape(2, 2)
        assert jax.vmap(in_all_runs)(grid[0]).tolist() == [bool(grid[0].all())] * 2
        nested = jax.vmap(jax.vmap(in_all_runs))(grid)
        assert nested.tolist() == [[bool(grid.all())] * 2] * 2
    assert bool(in_all_runs(jnp.array(True)))


def test_a_vector_alongside_matrices_gets_their_batch():
    vector, matrices = jnp.arange(3.0), jnp.arange(18.0).reshape(2, 3, 3)
    np.testing.assert_array_equal(alongside(vector, matrices[0]), vector)
    product = jax.make_jaxpr(jax.vmap(lambda m: alongside(vector, m) @ m))(matrices)
    (dot,) = [e for e in product.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert dot.params["dimension_numbers"][1] == ((0,), (0,))
