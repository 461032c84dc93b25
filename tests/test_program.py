"""What is compiled: once, for all rounds, with nothing in it that leaves the device."""

import re

import jax
import pytest
from helpers import ragged

from jaxfl import (
    ALIE,
    CenteredClipping,
    FedAvg,
    Federation,
    FedSGD,
    MessagePrivacy,
    Poisson,
    Simulation,
)
from jaxfl.attacks.base import ALL
from jaxfl.blocks import run_block
from jaxfl.component import capability
from jaxfl.models import MLP, Softmax

EVERYTHING = Federation(
    algorithm=FedSGD(batch_size=4, momentum=0.9),
    attack=ALIE(z=1.0),
    aggregator=CenteredClipping(tau=1.0),
    participation=Poisson(rate=0.8),
    privacy=MessagePrivacy(clip=1.0, noise_multiplier=0.1),
    byzantine=1,
)


def primitives(jaxpr) -> set[str]:
    """The names of all operations, also those inside loops and inner functions."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        )
        for parameter in inner:
            body = getattr(parameter, "jaxpr", parameter)
            names |= primitives(body) if hasattr(body, "eqns") else set()
    return names


def block(federation, model):
    simulation = Simulation(federation, ragged(), model)

    def function(federation, data, state):
        return run_block(federation, simulation.plan, data, state, 2)

    return function, (simulation.federation, simulation.data, simulation.state)


@pytest.mark.parametrize("algorithm", [FedSGD(batch_size=4, momentum=0.9), FedAvg(epochs=2)])
def test_no_operation_leaves_the_device(algorithm):
    function, arguments = block(EVERYTHING.replace(algorithm=algorithm), MLP(dropout=0.5))
    names = primitives(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert {"scan", "dot_general", "cond"} <= names  # the walk does look inside
    assert not [n for n in names if re.search("callback|infeed|outfeed|host|print", n)]


@pytest.mark.default_compiler
def test_nothing_compiled_calls_the_host():
    function, arguments = block(EVERYTHING, Softmax())
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert " while(" in text
    assert not re.findall(r" (?:infeed|outfeed|send|recv|send-done|recv-done)\(", text)
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    assert not [t for t in targets if "callback" in t.lower()]


@pytest.mark.default_compiler
def test_the_walk_and_the_patterns_find_a_callback():
    def function(x):
        return jax.lax.fori_loop(
            0, 3, lambda _, x: jax.pure_callback(abs, jax.ShapeDtypeStruct((), x.dtype), x), x
        )

    assert "pure_callback" in primitives(jax.make_jaxpr(function)(1.0).jaxpr)
    text = jax.jit(function).lower(1.0).compile().as_text()
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    assert [t for t in targets if "callback" in t.lower()]


class Counting(ALIE):
    """Counts how often it is traced."""

    knows = capability(ALL)

    def craft(self, view, state):
        traces.append(1)
        return super().craft(view, state)


traces: list[int] = []


def test_rounds_compile_once_whatever_the_numbers_and_donate_their_state():
    traces.clear()
    federation = Federation(attack=Counting(z=1.0), byzantine=1)
    simulation = Simulation(federation, ragged(), Softmax(), evaluate_every=1)
    before = simulation.state
    simulation.run(10)
    assert len(traces) == 1
    assert before.params.is_deleted()
    assert not simulation.state.params.is_deleted()
    simulation.federation = federation.replace(attack=Counting(z=3.0))
    simulation.run(2)
    assert len(traces) == 1
    assert int(simulation.state.round) == 12

    # With its arguments on the device, a block moves nothing to or from it.
    arguments = jax.device_put((simulation.federation, simulation.data, simulation.state))
    with jax.transfer_guard("disallow"):
        simulation.block(1)(*arguments)
    assert len(traces) == 1


def test_a_history_outlives_the_next_block():
    simulation = Simulation(Federation(), ragged(), Softmax(), evaluate_every=1)
    first = simulation.run(1)
    kept = first.state.params + 0
    simulation.run(1)
    assert (first.state.params == kept).all()
