"""A user's own parts that answer the wrong thing: one line, before anything runs."""

import traceback

import jax
import jax.numpy as jnp
import jaxtyping
import optax
import pytest
from helpers import ragged

from jaxfl import (
    ALIE,
    NNM,
    QFFL,
    SGD,
    Aggregator,
    Attack,
    FedAvg,
    Federation,
    FedSGD,
    Krum,
    Median,
    Pipeline,
    SignFlip,
    Simulation,
)
from jaxfl.accounting import guarantee
from jaxfl.aggregators import PreAggregator
from jaxfl.attacks import OptimizedIPM
from jaxfl.attacks.base import ALL
from jaxfl.component import capability
from jaxfl.contracts import has_own_code
from jaxfl.experiments.schema import parse
from jaxfl.fairness import Fairness, Weighed
from jaxfl.models import Softmax
from jaxfl.optimizers import Optimizer, Schedule
from jaxfl.participation import Participation
from jaxfl.privacy import Privacy
from jaxfl.types import Aggregated, Info

DATA = ragged(sizes=(6,) * 7)  # the model has 15 parameters


class Crafted(Attack):
    """A user's attack: what it returns is given by a word."""

    kind: str = ""
    crafts = capability(True)
    knows = capability(ALL)

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


class Trained(FedSGD):
    """A user's algorithm: what goes wrong is given by a word."""

    kind: str = ""

    post_processes = capability(True)

    def init(self, spec):
        return {"init": "nothing"}.get(self.kind, ())

    def step(self, objective, broadcast, samples, state, key):
        message, state = super().step(objective, broadcast, samples, state, key)
        return {
            "array": lambda: (message.update, state),
            "message alone": lambda: message,
            "update": lambda: (message.replace(update=message.update[:3]), state),
            "loss": lambda: (message.replace(loss=message.update), state),
            "steps": lambda: (message.replace(steps=None), state),
            "memory": lambda: (message, message.loss),
            "raises": lambda: {}["rate"],
            "numbers": lambda: (message.replace(loss=0.5, steps=1), state),
        }.get(self.kind, lambda: (message, state))()

    def finish(self, server, aggregate, messages, context, share):
        return (aggregate[1:] if self.kind == "finish" else aggregate), server

    def starting_loss(self, objective, broadcast, samples, message):
        return message.update if self.kind == "standing" else message.loss


class Protected(Privacy):
    """A user's mechanism: the hook that answers wrongly is given by a word."""

    kind: str = ""
    protects, trusts = capability("words"), capability("nobody")

    def releases(self, run):
        return {"releases": [2.0], "number": 2.0}.get(self.kind, ())

    def neighbours(self, run):
        return "none"

    def multiplier(self):
        return "1.0" if self.kind == "multiplier" else 1.0

    def threshold(self, state):
        return jnp.ones(2) if self.kind == "threshold" else jnp.ones(())

    def objective(self, objective, count, batch_size):
        return objective.value_and_grad if self.kind == "objective" else objective

    def samples(self, samples):
        return samples.count if self.kind == "samples" else samples

    def message(self, message, key, crafted=False):
        return {"message": lambda: message[None], "raises": lambda: {}["clip"]}.get(
            self.kind, lambda: message
        )()

    def crafted(self, message):
        return message[:2] if self.kind == "crafted" else message

    def bound(self, sent, state):
        if self.kind == "bound alone":
            return sent
        return (sent.T if self.kind == "bound" else sent), ()

    def release(self, aggregate, seen, turn, state, key):
        wrong = {"release": (jnp.mean(aggregate), state), "memory": (aggregate, aggregate)}
        return wrong.get(self.kind, (aggregate, state))


class Mixed(PreAggregator):
    """A user's pre-aggregator, which mixes as it is told."""

    kind: str = ""

    def mix(self, statistics, context):
        m = statistics.usable.shape[0]
        return {"vector": jnp.ones(m), "rows": jnp.ones((1, m)), "none": None}[self.kind]


class Scaled(Mixed):
    """One that says it only rescales rows."""

    diagonal = capability(True)


class Drawn(Participation):
    """A user's participation: what it answers is given by a word."""

    kind: str = ""

    @property
    def separation(self):
        return {"between": 0.5, "too soon": 2}.get(self.kind, 1)

    def cohort(self, population):
        return population / 2 if self.kind == "cohort" else population

    def sample(self, population, key, turn=0):
        ids = jnp.arange(population)
        return {
            "floats": lambda: (ids / 2, None),
            "few": lambda: (ids[1:], None),
            "present": lambda: (ids, jnp.ones(population)),
            "ids alone": lambda: ids,
            "branch": lambda: (ids if turn % 2 else ids[::-1], None),
            "twice": lambda: (jax.random.randint(key, ids.shape, 0, population), None),
            "nobody": lambda: (ids + turn, None),
            "empty": lambda: (ids, ids < 3),
        }.get(self.kind, lambda: (ids, None))()


class Stepped(Optimizer):
    """A user's optimiser: what its transformation does is given by a word."""

    kind: str = ""

    def rule(self):
        def update(updates, state, params=None):
            return {
                "shape": lambda: (updates[:2], state),
                "memory": lambda: (updates, updates),
                "raises": lambda: {}["momentum"],
            }[self.kind]()

        made = optax.GradientTransformation(lambda params: (), update)
        return None if self.kind == "none" else made


class Scheduled(Schedule):
    """A user's schedule, which answers two rates."""

    def rate(self, step):
        return jnp.ones(2)


class Fair(Fairness):
    """A user's weights: what is wrong with them is given by a word."""

    kind: str = ""

    def weigh(self, losses, squared_norms, gradients, state, context):
        factors = losses[None] if self.kind == "factors" else losses
        weighed = Weighed(factors=factors, scale=jnp.ones(()), state=state)
        return losses if self.kind == "array" else weighed


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
ALGORITHMS = {
    "init": "Trained.init raised TypeError",
    "array": r"Trained.step returned .*Tracer; needs a Message and the memory",
    "message alone": "Trained.step raised TypeError: cannot unpack non-iterable Message",
    "update": r"Trained.step returned an update \(3,\); needs \(15,\), width numbers per parameter",
    "loss": r"Trained.step returned a loss \(15,\); needs \(\)",
    "steps": r"Trained.step returned steps NoneType; needs \(\)",
    "memory": r"Trained.step returned the memory float32\[\]; needs, as before, \(\)",
    "raises": "Trained.step raised KeyError: 'rate'",
    "finish": r"Trained.finish returned a direction \(14,\); needs \(15,\), one number per param",
}
MECHANISMS = {
    "objective": "Protected.objective returned method; needs Objective",
    "samples": "Protected.samples returned .*Tracer; needs Samples",
    "message": r"Protected.message returned \(1, 15\); needs \(15,\), as it was given",
    "raises": "Protected.message raised KeyError: 'clip'",
    "crafted": r"Protected.crafted returned \(2,\); needs \(15,\), as it was given",
    "bound": r"Protected.bound returned \(15, 7\); needs \(7, 15\), as it was given",
    "bound alone": "Protected.bound raised ValueError: too many values to unpack",
    "threshold": r"Protected.threshold returned \(2,\); needs \(\), the server's clip",
    "multiplier": "Protected.multiplier returned str; needs a number",
    "release": r"Protected.release returned \(\); needs \(15,\), as it was given",
    "memory": r"Protected.release returned the memory float32\[15\]; needs, as before, \(\)",
}
MIXES = {
    "vector": r"Mixed.mix returned \(7,\); needs \(7, 7\)",
    "rows": r"Mixed.mix returned \(1, 7\); needs \(7, 7\)",
    "none": r"Mixed.mix returned NoneType; needs \(7, 7\)",
}
COHORTS = {
    "cohort": "what Drawn.cohort returns must be an integer, at least 1; got 3.5",
    "between": "Drawn.separation must be an integer, at least 1; got 0.5",
    "floats": r"Drawn.sample returned \(float32\[7\], None\); needs \(int32\[7\], None\) or",
    "few": r"Drawn.sample returned \(int32\[6\], None\); needs \(int32\[7\], None\) or",
    "present": r"Drawn.sample returned \(int32\[7\], float32\[7\]\); needs .* or \(int32\[7\], ",
    "ids alone": r"Drawn.sample returned int32\[7\]; needs \(int32\[7\], None\)",
    "branch": "Drawn.sample raised TracerBoolConversionError",
    "twice": r"Drawn.sample drew \[.*\] in round 0; needs different clients from 0 to 6",
    "empty": r"Drawn.sample drew \[0, .*, 6\] in round 0; needs .*, and 7 in empty slots",
    "too soon": "Drawn.sample drew client 0 in rounds 0 and 1; its separation says 2 rounds at",
    "nobody": r"Drawn.sample drew \[1, .*, 7\] in round 1; needs different clients from 0 to 6",
}
STEPS = {
    "none": "Stepped.rule returned NoneType; needs an optax.GradientTransformation",
    "shape": r"Stepped.rule's update returned float32\[2\]; needs, as before, float32\[15\]",
    "memory": r"Stepped.rule's update returned the memory .*float32\[15\]",
    "raises": "Stepped.rule raised KeyError: 'momentum'",
}
WEIGHTS = {
    "factors": r"Fair.weigh returned factors \(1, 7\); needs \(7,\), one per client",
    "array": "Fair.weigh returned .*Tracer; needs Weighed",
}
PARTS = [
    *((Federation(algorithm=Trained(kind=kind)), text) for kind, text in ALGORITHMS.items()),
    (
        Federation(algorithm=Trained(kind="standing"), fairness=QFFL(q=1.0, lipschitz=1.0)),
        r"Trained.starting_loss returned \(15,\); needs \(\), the mean over samples",
    ),
    *(
        (Federation(privacy=Protected(kind=kind), attack=SignFlip(), byzantine=2), text)
        for kind, text in MECHANISMS.items()
    ),
    (
        # The attack tries the defence, mechanism and all, before the round itself asks it.
        Federation(privacy=Protected(kind="bound"), attack=OptimizedIPM(), byzantine=2),
        MECHANISMS["bound"],
    ),
    *(
        (Federation(aggregator=Pipeline(pre=[Mixed(kind=kind)], rule=Median())), text)
        for kind, text in MIXES.items()
    ),
    (
        Federation(aggregator=Pipeline(pre=[Scaled(kind="rows")], rule=Median())),
        r"Scaled.mix returned \(1, 7\); needs \(7,\), a factor per row",
    ),
    *((Federation(participation=Drawn(kind=kind)), text) for kind, text in COHORTS.items()),
    *((Federation(optimizer=Stepped(kind=kind)), text) for kind, text in STEPS.items()),
    (
        Federation(algorithm=FedAvg(optimizer=Stepped(kind="raises"))),
        STEPS["raises"],
    ),
    (
        Federation(optimizer=SGD(learning_rate=Scheduled())),
        r"Scheduled.rate returned \(2,\); needs \(\), one learning rate",
    ),
    *((Federation(fairness=Fair(kind=kind)), text) for kind, text in WEIGHTS.items()),
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


@pytest.mark.parametrize("kind", ["releases", "number"])
def test_what_an_own_mechanism_releases_is_looked_at(kind):
    with pytest.raises(ValueError, match=r"Protected\.releases returned float; needs Releases"):
        guarantee(Federation(privacy=Protected(kind=kind)), [6] * 7, 3)


@pytest.mark.parametrize(
    ("used", "message"),
    [
        (3, r"Trained.uses returned 3; needs \(steps, passes\)"),
        ((1.5, 1), "steps of Trained.uses must be an integer, at least 1; got 1.5"),
        ((1, 0), "passes of Trained.uses must be an integer, at least 1; got 0"),
    ],
)
def test_how_an_own_algorithm_uses_samples_is_looked_at(used, message, monkeypatch):
    monkeypatch.setattr(Trained, "uses", lambda self, per_pass: used)
    with pytest.raises(ValueError, match=message):
        Trained().checked_uses(4)


def test_an_own_participation_is_named_while_a_file_is_read():
    table = {
        "rounds": 1,
        "model": "softmax",
        "byzantine": 1,
        "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
        "participation": {"name": f"{__name__}:Drawn", "kind": "cohort"},
    }
    with pytest.raises(ValueError, match=COHORTS["cohort"].replace("3.5", "2.5")):
        parse("own", table)


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
        attack=Crafted(kind="right"),
        aggregator=Answered(kind="right"),
        byzantine=2,
        algorithm=Trained(kind="numbers"),
        privacy=Protected(),
        participation=Drawn(),
        fairness=Fair(),
    )
    assert not Simulation(federation, DATA, Softmax()).run(1).diverged
