"""A user's own parts that answer the wrong thing: one line, before anything runs."""

import traceback

import jax.numpy as jnp
import jaxtyping
import pytest
from helpers import ragged

from jaxfl import ALIE, NNM, Aggregator, Attack, Federation, Krum, Median, Pipeline, Simulation
from jaxfl.attacks import OptimizedIPM
from jaxfl.component import capability
from jaxfl.contracts import has_own_code
from jaxfl.models import Softmax
from jaxfl.types import Aggregated, Info

DATA = ragged(sizes=(6,) * 7)  # the model has 15 parameters


class Crafted(Attack):
    """A user's attack: what it returns is given by a word."""

    kind: str = ""
    crafts = capability(True)

    def craft(self, view, state):
        row = view.updates[0]
        return {
            "three": lambda: (jnp.stack([row] * 3), state),
            "vector": lambda: (row, state),
            "rows alone": lambda: jnp.stack([row] * 3),
            "none": lambda: None,
            "memory": lambda: (row[None], jnp.zeros(3)),
            "raises": lambda: {}["strength"],
            "right": lambda: (row[None], state),
        }[self.kind]()


class Poisoned(Attack):
    """A user's attack on data, which leaves out a sample."""

    poisons = capability(True)

    def poison(self, batch, view, key):
        return batch.replace(labels=batch.labels[1:])


class Answered(Aggregator):
    """A user's rule: what it returns is given by a word."""

    kind: str = ""

    def aggregate(self, updates, state, context):
        mean, right = jnp.mean(updates, axis=0), Info()
        return {
            "rows": lambda: Aggregated(update=updates, state=state, info=right),
            "array": lambda: mean,
            "none": lambda: None,
            "integers": lambda: Aggregated(update=mean.astype(int), state=state, info=right),
            "memory": lambda: Aggregated(update=mean, state=mean, info=right),
            "info": lambda: Aggregated(update=mean, state=state, info=Info(scores=mean)),
            "raises": lambda: jnp.dot(updates, updates),
            "right": lambda: Aggregated(update=mean, state=state, info=right),
        }[self.kind]()


ATTACKS = {
    "three": r"Crafted.craft returned \(3, 15\); needs \(1 or 2, 15\)",
    "vector": r"Crafted.craft returned \(15,\); needs \(1 or 2, 15\)",
    "rows alone": "Crafted.craft raised ValueError: too many values to unpack",
    "none": "Crafted.craft raised TypeError: cannot unpack non-iterable NoneType",
    "memory": r"Crafted.craft returned the memory float32\[3\]; needs, as before, \(\)",
    "raises": "Crafted.craft raised KeyError: 'strength'",
}
RULES = {
    "rows": r"Answered.aggregate returned an update \(7, 15\); needs \(15,\), one number per",
    "array": r"Answered.aggregate must return Aggregated\(.*; got .*Tracer",
    "none": r"Answered.aggregate must return Aggregated\(.*; got NoneType",
    "integers": r"Answered.aggregate returned an update int32; needs \(15,\)",
    "memory": r"Answered.aggregate returned the memory float32\[15\]; needs, as before, \(\)",
    "info": r"Answered.aggregate returned Info of scores \(15,\); needs \(7,\), one per row",
    "raises": "Answered.aggregate raised TypeError: dot_general requires",
}
PARTS = [
    *((Federation(attack=Crafted(kind=kind), byzantine=2), text) for kind, text in ATTACKS.items()),
    *((Federation(aggregator=Answered(kind=kind)), text) for kind, text in RULES.items()),
    (
        Federation(aggregator=Pipeline(pre=[NNM(f=2)], rule=Answered(kind="rows"))),
        RULES["rows"],
    ),
    (
        Federation(aggregator=Answered(kind="rows"), attack=OptimizedIPM(), byzantine=2),
        RULES["rows"],
    ),
    (
        Federation(attack=Poisoned(), byzantine=2),
        r"Poisoned.poison returned Batch\(.*labels=int32\[5\].*; needs, as before, Batch\(",
    ),
]


@pytest.mark.parametrize(("federation", "message"), PARTS)
def test_an_own_part_that_answers_the_wrong_thing_is_named(federation, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, RuntimeError), match=message):
        Simulation(federation, DATA, Softmax())


def test_an_own_rule_is_named_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"Answered.aggregate returned an update \(3, 4\)"):
        Answered(kind="rows")(jnp.ones((3, 4)))


def test_the_traceback_of_own_code_stands_above_the_name(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    federation = Federation(attack=Crafted(kind="raises"), byzantine=2)
    with pytest.raises(RuntimeError) as caught:
        Simulation(federation, DATA, Softmax())
    text = "".join(traceback.format_exception(caught.value))
    place, name = text.index("""{}["strength"]"""), text.index("RuntimeError: Crafted.craft raised")
    assert place < name


def test_own_parts_are_found_at_any_depth():
    assert not has_own_code(Federation(attack=ALIE(), aggregator=Krum(f=1)))
    assert has_own_code(Federation(attack=Crafted()))
    assert has_own_code(Pipeline(pre=[NNM(f=1)], rule=Answered()))
    assert not has_own_code(Pipeline(pre=[NNM(f=1)], rule=Median()))


def test_right_own_parts_are_taken():
    federation = Federation(
        attack=Crafted(kind="right"), aggregator=Answered(kind="right"), byzantine=2
    )
    assert not Simulation(federation, DATA, Softmax()).run(1).diverged
