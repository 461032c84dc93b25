"""A mechanism of somebody else's: refused where it would promise too much, applied and counted."""

import json

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import pld
from helpers import ragged

import jaxfl
from jaxfl import Federation, FedSGD, Mean, Simulation
from jaxfl.accounting import Meter, calibrate, guarantee
from jaxfl.cli import main
from jaxfl.component import Scalar, capability, field
from jaxfl.models import Softmax
from jaxfl.privacy import (
    BandedNoise,
    CentralPrivacy,
    MessagePrivacy,
    NoPrivacy,
    Privacy,
    QuantileClip,
    Release,
)
from jaxfl.privacy.deployment import CLIENT, MESSAGE

EQUAL = np.full(20, 1_000)


class Silent(Privacy):
    """Accepted by name, and adds no noise."""

    protects = capability(MESSAGE)
    trusts = capability("trusts nobody")

    def privatise(self, message, key):
        return message + self.noise_multiplier * jax.random.normal(key, message.shape)

    def releases(self, run):
        return (Release(float(self.multiplier()), run.taken),)

    def neighbours(self, run):
        return "the message replaced by nothing"


class Undeclared(MessagePrivacy):
    """Changes the noise and leaves the promise as it was."""

    def message(self, message, key, crafted=False):
        return message


class Wordless(Silent):
    """Adds noise and does not say whom it protects."""

    protects = capability("")

    def message(self, message, key, crafted=False):
        return self.privatise(message, key)

    def releases(self, run):
        return super().releases(run)


class Renamed(jaxfl.ExamplePrivacy):
    """Counts for an example, and says it of the client."""

    protects = capability(CLIENT)


class Unasked(Silent):
    """As silent, and would not let itself be asked."""

    def check(self, algorithm, noise_order, expected):
        pass


class Carefree(MessagePrivacy):
    """Leaves out what does not hold."""

    def caveats(self, run):
        return ()


class Unlooked(jaxfl.ExamplePrivacy):
    """Takes any model, also one whose examples see each other."""

    def check_model(self, objective):
        pass


class Shorter(MessagePrivacy):
    """Clips by another norm than its noise is counted for."""

    norm = capability(2)


class Longer(MessagePrivacy):
    """Lets through three times what it says."""

    def _clipped(self, message):
        return 3 * super()._clipped(message)


class OwnQuantile(QuantileClip):
    """May count clients with less noise than it says."""


class Quieter(BandedNoise):
    """Less noise than the mechanism counts."""

    def sensitivity(self, separation):
        return 0.01


class Nothing(NoPrivacy):
    """Promises what the class above it does not."""

    protects = capability(MESSAGE)

    def releases(self, run):
        return (Release(9.0, run.taken),)


class Bounded(Privacy):
    """Every number of a message cut to [-clip, clip], then Gaussian noise on it."""

    clip: Scalar = field(default=0.1, above=0)

    protects = capability(MESSAGE)
    trusts = capability("trusts nobody: the server sees noised messages only")

    def message(self, message, key, crafted=False):
        scale = jnp.asarray(self.clip * self.multiplier(), message.dtype)
        cut = jnp.clip(message, -self.clip, self.clip).astype(message.dtype)
        return cut + scale * jax.random.normal(key, message.shape, message.dtype)

    def releases(self, run):
        # The largest message has the norm clip * sqrt(d), d = 15 in these tests.
        return (Release(float(np.min(self.multiplier())) / 15**0.5, run.taken),)

    def neighbours(self, run):
        return "the message replaced by nothing"


class Discrete(Bounded):
    """Accounted by an event of dp-accounting's own."""

    def releases(self, run):
        return (Release(0.0, run.taken, event=dp_accounting.LaplaceDpEvent(2.0)),)


def federation(privacy):
    return Federation(algorithm=FedSGD(batch_size=4), aggregator=Mean(), privacy=privacy)


def run(privacy, rounds=3):
    simulation = Simulation(federation(privacy), ragged(), Softmax())
    assert simulation.plan.spec.dim == 15
    simulation.run(rounds)
    return np.asarray(simulation.state.params)


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (Unasked(noise_multiplier=100.0), "Unasked overrides none of objective, message, release"),
        (
            Carefree(clip=1.0, noise_multiplier=1.0),
            "Carefree changes caveats and does not declare what it releases",
        ),
        (
            Shorter(clip=1.0, noise_multiplier=1.0, mechanism="laplace"),
            "Shorter changes norm and does not declare what it releases",
        ),
        (
            Longer(clip=1.0, noise_multiplier=1.0),
            "Longer changes _clipped and does not declare what it releases",
        ),
        (
            Unlooked(clip=1.0, noise_multiplier=1.0),
            "Unlooked changes check_model and does not declare what it releases",
        ),
        (
            CentralPrivacy(clip=1.0, noise_multiplier=1.0, correlated=Quieter(rounds=3, bands=1)),
            "CentralPrivacy counts the noise of BandedNoise, which Quieter may change",
        ),
        (
            CentralPrivacy(clip=OwnQuantile(initial=0.5, noise=2.0), noise_multiplier=1.0),
            "CentralPrivacy counts the noise of QuantileClip, which OwnQuantile may change",
        ),
        (Silent(noise_multiplier=100.0), "Silent overrides none of objective, message, release"),
        (
            Undeclared(clip=1.0, noise_multiplier=100.0),
            "Undeclared changes message and does not declare what it releases",
        ),
        (Wordless(noise_multiplier=100.0), "Wordless does not declare protects"),
        (
            Renamed(clip=1.0, noise_multiplier=1.0),
            "Renamed changes protects and does not declare what it releases",
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Privacy) else "",
)
def test_who_does_not_declare_what_it_does_is_refused_before_anything_runs(privacy, message):
    with pytest.raises(ValueError, match=message):
        Simulation(federation(privacy), ragged(), Softmax())
    with pytest.raises(ValueError, match=message):
        jaxfl.simulate(model=Softmax(), data=ragged(), rounds=1, privacy=privacy)
    with pytest.raises(ValueError, match=message):
        guarantee(federation(privacy), EQUAL, 10)
    with pytest.raises(ValueError, match=message):
        calibrate(federation(privacy.replace(noise_multiplier=None, epsilon=1.0)), EQUAL, 10)


class Half(Mean):
    """Twice as sensitive to one client as the mean of all is."""

    def weigh(self, statistics, state, context):
        weights, info = super().weigh(statistics, state, context)
        return weights.at[0].mul(2), info


class Chosen(jaxfl.Poisson):
    """Draws the first clients, always."""

    def sample(self, population, key, turn=0):
        ids = jnp.arange(self.cohort(population), dtype=jnp.int32)
        return jnp.minimum(ids, population), ids < self.expected(population)


class First(jaxfl.Uniform):
    """The first clients, always."""

    def sample(self, population, key, turn=0):
        return jnp.arange(self.cohort(population), dtype=jnp.int32), None


class Eager(jaxfl.Cyclic):
    """The first group, always."""

    def sample(self, population, key, turn=0):
        return super().sample(population, key, 0)


def central(**parts):
    mean = {"aggregator": Mean(weighted=False), **parts}
    return Federation(privacy=CentralPrivacy(clip=1.0, noise_multiplier=2.0), **mean)


def test_a_rule_that_inherits_from_the_mean_has_not_its_sensitivity():
    assert guarantee(central(), EQUAL, 10).holds
    own = guarantee(central(aggregator=Half(weighted=False)), EQUAL, 10)
    assert own.epsilon == np.inf
    assert "Half(weighted=False) has no sensitivity of clip / cohort" in str(own)
    assert "Mean(weighted=True) has no sensitivity" in str(
        guarantee(central(aggregator=Mean()), EQUAL, 10)
    )


def test_a_promise_covers_no_class_beside_it():
    """Of two bases the first promises the mean anew, the second changes how it weighs."""

    class Again(Mean):
        averages = capability(True)

    class Both(Again, Half):
        pass

    assert guarantee(central(aggregator=Again(weighted=False)), EQUAL, 10).holds
    assert not guarantee(central(aggregator=Both(weighted=False)), EQUAL, 10).holds


class Plain(jaxfl.Aggregator):
    """The mean of all who are present, by a class of its own."""

    accepts_absent = capability(True)
    averages = capability(True)

    def aggregate(self, updates, state, context):
        return Mean(weighted=False).aggregate(updates, state, context)


def test_a_rule_of_ones_own_that_averages_is_released_as_the_mean_is():
    """Over the expected cohort: over those who came, one client would count for more at times."""
    data, found = ragged(sizes=(5,) * 12), []
    for rule in (Mean(weighted=False), Plain()):
        federation = central(aggregator=rule, participation=jaxfl.Poisson(rate=0.4))
        assert guarantee(federation, EQUAL, 3).holds
        found.append(Simulation(federation, data, Softmax()).run(3).state.params)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("own", [Chosen(rate=0.1), First(fraction=0.1)], ids=repr)
def test_a_cohort_drawn_in_ones_own_way_adds_no_privacy(own):
    parts = type(own).__mro__[1](**{name: getattr(own, name) for name in own._hints})
    drawn, chosen = (guarantee(central(participation=p), EQUAL, 10) for p in (parts, own))
    all_take_part = guarantee(central(), EQUAL, 10)
    assert drawn.epsilon < 0.5 * chosen.epsilon
    assert chosen.epsilon == pytest.approx(all_take_part.epsilon)


def test_turns_that_are_taken_otherwise_are_declared_anew():
    message = "Eager changes sample and does not declare its separation"
    with pytest.raises(ValueError, match=message):
        central(participation=Eager(groups=5)).check(20)

    class Slower(Eager):
        separation = capability(1)

    central(participation=Slower(groups=5)).check(20)


def test_an_algorithm_that_changes_how_it_works_is_private_no_more():
    class Leaky(FedSGD):
        def step(self, objective, broadcast, samples, state, key):
            return super().step(objective, broadcast, samples, state, key)

    class Nosy(FedSGD):
        def finish(self, server, aggregate, messages, context, share):
            return messages.update[0], server

    class Same(FedSGD):
        """Another name for it."""

    def given(algorithm, privacy):
        parts = {"privacy": privacy, "aggregator": Mean(weighted=False)}
        return Federation(algorithm=algorithm(batch_size=4), **parts)

    examples, clients = jaxfl.ExamplePrivacy(noise_multiplier=1.0), central().privacy
    with pytest.raises(ValueError, match="Leaky sends more than gradients of samples"):
        given(Leaky, examples).check(20)
    with pytest.raises(ValueError, match="Nosy: its server's half may know clients"):
        given(Nosy, clients).check(20)
    for privacy in (examples, clients):
        given(Same, privacy).check(20)


@pytest.mark.parametrize("order", ["noise_then_attack", "attack_then_noise"])
def test_the_servers_half_sees_messages_as_they_were_sent_and_no_losses(order):
    class First(FedSGD):
        """Steps along one client's message."""

        def finish(self, server, aggregate, messages, context, share):
            return messages.update[0], server

    class Lost(FedSGD):
        def finish(self, server, aggregate, messages, context, share):
            return aggregate * 0 + messages.loss[0], server

    def moved(algorithm, privacy):
        parts = {"algorithm": algorithm(batch_size=4), "privacy": privacy, "noise_order": order}
        simulation = Simulation(Federation(**parts), ragged(), Softmax())
        before, sent = np.array(simulation.state.params), simulation.messages().sent[0]
        return (before - np.asarray(simulation.run(1).state.params)) / 0.1, sent

    noised = MessagePrivacy(clip=0.01, noise_multiplier=50.0)
    change, sent = moved(First, noised)
    assert np.std(sent) > 0.2
    np.testing.assert_allclose(change, sent, rtol=1e-3, atol=1e-5)
    assert np.isnan(moved(Lost, noised)[0]).all()


def test_steps_are_told_only_where_they_follow_from_numbers_of_samples():
    class Tells(FedSGD):
        def step(self, objective, broadcast, samples, state, key):
            message, state = super().step(objective, broadcast, samples, state, key)
            return message.replace(steps=message.loss), state

        def finish(self, server, aggregate, messages, context, share):
            return aggregate * 0 + messages.steps[0], server

    noised = MessagePrivacy(clip=1.0, noise_multiplier=1.0)
    for privacy, hidden in ((noised, True), (NoPrivacy(), False)):
        federation = Federation(algorithm=Tells(batch_size=4), privacy=privacy)
        params = Simulation(federation, ragged(), Softmax()).run(1).state.params
        assert np.isnan(params).all() == hidden
    nova = Federation(algorithm=jaxfl.FedNova(batch_size=4), privacy=noised)
    assert not Simulation(nova, ragged(), Softmax()).run(1).diverged


def test_the_servers_half_sees_nothing_of_the_absent():
    class Sees(FedSGD):
        def init_server(self, spec):
            return jnp.zeros((spec.cohort, spec.dim))

        def finish(self, server, aggregate, messages, context, share):
            return aggregate, messages.update

    parts = {"algorithm": Sees(batch_size=4), "participation": jaxfl.Poisson(rate=0.4)}
    run = Simulation(Federation(**parts), ragged(sizes=(5,) * 6), Softmax())
    for _ in range(3):
        before = np.array(run.state.participations)
        state = run.run(1).state
        came = np.sum(np.asarray(state.participations) - before)
        assert np.sum(np.any(np.asarray(state.server) != 0, axis=1)) == came
    assert 0 < np.sum(before) < 12


class Distributed(MessagePrivacy):
    """Each client adds a share of the noise, a sum that hides the rest is all the server has."""

    protects = capability(CLIENT)
    trusts = capability("trusts a secure sum")
    hides_cohort = capability(True)

    def releases(self, run):
        return (Release(float(self.multiplier()), run.rounds),)


class ClippedAtHome(Privacy):
    """Clients clip, the server noises."""

    protects = capability(CLIENT)
    trusts = capability("trusts the server")
    hides_cohort = capability(True)

    def message(self, message, key, crafted=False):
        return message / jnp.maximum(1, jnp.linalg.norm(message))

    def release(self, aggregate, seen, turn, state, key):
        return aggregate + jax.random.normal(key, aggregate.shape) / turn.expected, state

    def releases(self, run):
        return (Release(1.0, run.rounds),)

    def neighbours(self, run):
        return "one client replaced by nothing"


def test_what_covers_the_aggregate_alone_does_not_cover_messages():
    """Neither the server's half of an algorithm that reads them, nor attackers who do."""
    nova = {"algorithm": jaxfl.FedNova(), "aggregator": Mean(weighted=False)}
    for privacy in (Distributed(clip=1.0, noise_multiplier=1.0), ClippedAtHome()):
        with pytest.raises(ValueError, match=f"all that {type(privacy).__name__} covers"):
            Federation(privacy=privacy, **nova).check(20)
    with pytest.raises(ValueError, match="all that CentralPrivacy covers"):
        guarantee(central(**nova), EQUAL, 10)  # which says nothing that check would refuse
    told = {"attack": jaxfl.ALIE(), "byzantine": 2}
    assert "other clients' clean updates" in str(
        guarantee(Federation(privacy=ClippedAtHome(), **told), EQUAL, 10)
    )
    calm = Federation(privacy=MessagePrivacy(clip=1.0, noise_multiplier=1.0), **told)
    assert guarantee(calm, EQUAL, 10).holds  # what they see is noised

    class Milder(NoPrivacy):
        def release(self, aggregate, seen, turn, state, key):
            return aggregate * 0.9, state

    Federation(privacy=Milder(), **nova).check(20)


def test_batches_larger_than_epsilon_counts_are_refused():
    class Larger(FedSGD):
        private = capability(True)
        post_processes = capability(True)

        def step(self, objective, broadcast, samples, state, key):
            batch = samples.batch(0, samples.capacity, key, key)
            given = broadcast.params, broadcast.model_state, batch, key
            (loss, model_state), gradient = objective.value_and_grad(*given)
            update = jax.flatten_util.ravel_pytree(gradient)[0]
            return jaxfl.clients.Message(update, loss, model_state, jnp.float32(1)), state

    for sampling in ("fixed", "poisson"):
        privacy = jaxfl.ExamplePrivacy(noise_multiplier=1.0, sampling=sampling)
        data, parts = ragged(sizes=(90,) * 4), {"privacy": privacy}
        assert (
            not Simulation(Federation(algorithm=Larger(), **parts), data, Softmax()).run(1).diverged
        )
        small = Federation(algorithm=Larger(batch_size=1), **parts)
        with pytest.raises(ValueError, match="a gradient of 90 samples; epsilon is counted"):
            Simulation(small, data, Softmax()).run(1)


def test_no_privacy_promises_nothing_below_it_either():
    message = "Nothing overrides none of objective, message, release: it would add no noise"
    with pytest.raises(ValueError, match=message):
        Simulation(federation(Nothing()), ragged(), Softmax())
    with pytest.raises(ValueError, match=message):
        guarantee(federation(Nothing()), EQUAL, 10)


def test_a_class_that_leaves_a_declaration_out_cannot_be_made():
    class Nothing(Privacy):
        def message(self, message, key, crafted=False):
            return message

    with pytest.raises(TypeError, match=r"Nothing.*neighbours.*releases"):
        Nothing(noise_multiplier=1.0)
    with pytest.raises(TypeError, match="Privacy"):
        Privacy()


def test_no_privacy_takes_no_noise():
    with pytest.raises(ValueError, match="NoPrivacy adds no noise; got noise_multiplier = 100"):
        NoPrivacy(noise_multiplier=100.0)
    with pytest.raises(ValueError, match="NoPrivacy adds no noise; got epsilon = 1"):
        NoPrivacy(epsilon=1.0)
    assert guarantee(federation(NoPrivacy()), EQUAL, 10) is None


def test_the_noise_of_a_foreign_mechanism_is_in_the_parameters():
    plain, cut = run(NoPrivacy()), run(Bounded())
    a, b = run(Bounded(noise_multiplier=5.0)), run(Bounded(noise_multiplier=10.0))
    assert np.abs(plain - cut).max() > 1e-3
    # The same draws at twice the scale; gradients of models so near differ by less.
    np.testing.assert_allclose((b - cut) / 2, a - cut, atol=0.2 * np.abs(a - cut).max())
    # Three rounds of five clients' noise of 5 * 0.1, averaged by shares, at a rate of 0.1.
    shares = np.asarray([3, 9, 5, 12, 7]) / 36
    expected = 0.1 * 5 * 0.1 * np.sqrt(3 * np.sum(shares**2))
    assert 0.5 * expected < np.std(a - cut) < 2 * expected


def test_a_foreign_mechanism_is_accounted_for_metered_and_calibrated():
    private = federation(Bounded(noise_multiplier=40.0))
    found = guarantee(private, EQUAL, 10)
    event = dp_accounting.GaussianDpEvent(40.0 / 15**0.5)
    expected = pld.PLDAccountant().compose(event, 10).get_epsilon(1e-5)
    assert found.epsilon == pytest.approx(expected, rel=1e-2)
    assert found.holds
    assert "a client's whole message" in str(found)
    assert Meter(private, EQUAL, 10)(10, 10) == pytest.approx(found.epsilon)
    asked = federation(Bounded(epsilon=1.0))
    noisy = calibrate(asked, EQUAL, 10)
    assert 0.99 < guarantee(noisy, EQUAL, 10).epsilon <= 1.0


def test_an_event_of_ones_own_counts():
    found = guarantee(federation(Discrete(noise_multiplier=1.0)), EQUAL, 10)
    event = dp_accounting.LaplaceDpEvent(2.0)
    expected = pld.PLDAccountant().compose(event, 10).get_epsilon(1e-5)
    assert found.epsilon == pytest.approx(expected, rel=1e-6)


FILE = """
rounds = 2
evaluate_every = 1
data = {{ name = "synthetic", samples = 60, features = 4, classes = 3, clients = 5 }}
model = "softmax"
algorithm = {{ name = "fedsgd", batch_size = 4 }}
privacy = {{ name = "test_foreign:{name}", noise_multiplier = 40.0 }}
aggregator = "mean"
"""


def jaxfl_run(tmp_path, monkeypatch, name):
    path = tmp_path / "own.toml"
    path.write_text(FILE.format(name=name))
    monkeypatch.setattr("sys.argv", ["jaxfl", "run", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_its_epsilon_is_in_the_log(tmp_path, monkeypatch, capsys):
    assert jaxfl_run(tmp_path, monkeypatch, "Bounded") == 0
    assert "Bounded protects a client's whole message" in capsys.readouterr().out
    lines = [json.loads(s) for s in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    private = federation(Bounded(noise_multiplier=40.0))
    for line in lines:
        expected = guarantee(private, EQUAL[:5], line["round"]).epsilon
        assert line["epsilon"] == pytest.approx(expected, rel=1e-4)
    assert lines[-1]["guaranteed_epsilon"] == pytest.approx(lines[-1]["epsilon"], rel=1e-4)


def test_a_file_that_names_one_that_is_not_declared_ends_with_one_line(
    tmp_path, monkeypatch, capsys
):
    assert jaxfl_run(tmp_path, monkeypatch, "Silent") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Silent overrides none of" in error
    assert not (tmp_path / "out" / "rounds.jsonl").exists()
