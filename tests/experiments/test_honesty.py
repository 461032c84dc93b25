"""Honest sets drawn from a law: one program over all of them, and what it tells."""

import copy
import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import jaxfl
from jaxfl import robustness
from jaxfl.cli import app
from jaxfl.experiments import schema
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.kept import keep, read_kept
from jaxfl.experiments.over_sets import Outcome, Standing, outcomes, pairs, standings, summary_of
from jaxfl.experiments.runner import run_experiment
from jaxfl.report.over_sets import tables, write_over_sets
from jaxfl.report.replications import replications_page

LAW = {"name": "independent_honesty", "probabilities": [0.9, 0.5], "label": "halves"}
SETS = 6
TABLE = {
    "rounds": 4,
    "evaluate_every": 2,
    "model": "softmax",
    "algorithm": {"name": "fedsgd", "batch_size": 3, "momentum": 0.9},
    "optimizer": "sgd",
    "data": {"name": "synthetic", "clients": 6, "samples": 90, "features": 4, "classes": 3},
    "honesty": {"sets": SETS},
    "attack": {"name": "gaussian", "std": 2.0},
    "sweep": {"honesty.law": [LAW], "aggregator": ["mean", {"learned": "barrier_clipping"}]},
}


def table(**changes):
    return copy.deepcopy(TABLE) | changes


def of_law(law, aggregator="krum", **others):
    return table(honesty={"law": law, **others}, sweep={}, aggregator=aggregator)


class Counting(jaxfl.Mean):
    """The mean, which counts how often it is traced."""

    traced = []

    def aggregate(self, updates, state, context):
        self.traced.append(updates.shape)
        return super().aggregate(updates, state, context)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets")
    with RunFolder(path, schema.parse("sets", table())) as folder:
        results = list(run_experiment(folder, lambda *_: lambda *_: None))
    return path, results


def simulation(cell, runs, rule):
    """Some runs of a cell, made from its parts by hand."""
    honesty, dataset = cell.honesty, cell.load()
    return jaxfl.Simulation(
        cell.federation.replace(aggregator=rule),
        cell.divide(dataset)[0],
        cell.model,
        seeds=[honesty.run_seed(0, number) for number in runs],
        honest=honesty.masks(0)[runs],
        evaluate_every=2,
    )


@pytest.mark.slow
def test_sets_in_one_program_are_those_one_by_one(ran):
    result = ran[1][0]
    together = simulation(result.cell, list(range(SETS)), Counting())
    Counting.traced.clear()  # it was tried on shapes
    history = together.run(4)
    assert len(Counting.traced) == 1, "all sets and both blocks are one program"
    np.testing.assert_allclose(history.accuracy[:, -1], result.finals, atol=1e-6)
    alone = [simulation(result.cell, [number], jaxfl.Mean()).run(4) for number in (0, SETS - 1)]
    for number, one in zip((0, -1), alone, strict=True):
        np.testing.assert_allclose(one.state.params, history.state.params[number], atol=1e-5)
        np.testing.assert_allclose(one.accuracy, history.accuracy[number], atol=1e-6)


def test_the_attackers_are_the_complement_of_the_set(ran):
    cell = ran[1][0].cell
    masks = cell.honesty.masks(0)
    assert masks.shape == (SETS, 6)
    assert len(np.unique(masks, axis=0)) > 2
    run = simulation(cell, list(range(SETS)), jaxfl.Mean())
    np.testing.assert_array_equal(run.state.byzantine, ~masks)
    sent = run.messages()
    np.testing.assert_array_equal(sent.byzantine, ~masks)
    changed = np.any(np.asarray(sent.own != sent.sent), axis=2)
    np.testing.assert_array_equal(changed, ~masks)


def test_every_rule_meets_the_same_sets(ran):
    path, results = ran
    one, other = (result.cell for result in results)
    np.testing.assert_array_equal(one.honesty.masks(0), other.honesty.masks(0))
    law = robustness.IndependentHonesty(probabilities=[0.9] * 3 + [0.5] * 3)
    assert one.honesty.law == law
    assert other.federation.aggregator == robustness.barrier_clipping(law)
    assert [r.cell.labels for r in results] == [
        {"honesty.law": "halves", "aggregator": "Mean"},
        {"honesty.law": "halves", "aggregator": "learned barrier_clipping"},
    ]
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    numbers = [sorted({line["set"] for line in lines if line["cell"] == c}) for c in (0, 1)]
    assert numbers == [list(range(SETS))] * 2
    # Attackers and batches are the same, so the first round's losses are.
    first = [line for line in lines if line["round"] == 1]
    losses = [[line["loss"] for line in first if line["cell"] == c] for c in (0, 1)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_results_are_read_back_and_written(ran, tmp_path):
    path, results = ran
    experiment, again = read_results(path)
    for mine, theirs in zip(results, again, strict=True):
        np.testing.assert_array_equal(mine.finals, theirs.finals)
        assert mine.finals.shape == mine.losses[0].shape == (SETS,)
    write_over_sets(tmp_path, experiment, again)
    header, *rows = (tmp_path / "honest_sets.csv").read_text().splitlines()
    values = dict(zip(header.split(","), rows[0].split(","), strict=True))
    assert float(values["accuracy_expected_value"]) == pytest.approx(results[0].finals.mean(), 1e-5)
    assert float(values["accuracy_worst"]) == pytest.approx(results[0].finals.min(), 1e-5)
    assert float(values["loss_worst"]) == pytest.approx(results[0].losses.max(), 1e-5)
    (found,) = standings(outcomes(again)).values()
    text = (tmp_path / "honest_sets.md").read_text()
    assert f"| 1 | {found[0].rule} |" in text
    assert len((tmp_path / "honest_pairs.csv").read_text().splitlines()) == 2


def test_summaries_by_numpy():
    values = np.random.default_rng(0).normal(size=60)
    low = summary_of(values, high_is_bad=False)
    interval = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    np.testing.assert_allclose((low.expected.low, low.expected.high), interval)
    ordered = np.sort(values)
    assert low.tail.value == pytest.approx(ordered[:3].mean())
    assert low.quantile.value == ordered[3], "57 of 60 are at least as good"
    assert low.worst == ordered[0]
    assert low.quantile.low <= low.quantile.value <= low.quantile.high
    high = summary_of(-values, high_is_bad=True)
    assert (high.tail.value, high.worst) == (-low.tail.value, -low.worst)
    lost = summary_of(np.array([1.0, np.inf]), high_is_bad=True)
    assert lost.expected.value == lost.worst == np.inf
    # Of 64 losses the 61st is the quantile, whatever the last three are.
    many = np.arange(64.0)
    for infinite, order in ((1, 60.0), (3, 60.0), (4, np.inf)):
        many[-infinite:] = np.inf
        lost = summary_of(many, high_is_bad=True)
        assert lost.quantile.value == order
        assert lost.expected.value == lost.tail.value == lost.worst == np.inf


def test_pairs_by_scipy():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=40)
    values = {"a": shared, "b": shared - 0.2 + 0.1 * rng.normal(size=40), "c": shared - 0.01}
    found = pairs(
        [Standing(rule, Outcome.of({}, x, x), 1, 1, x.min()) for rule, x in values.items()]
    )
    assert [(p.rule, p.than) for p in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    tests = [stats.ttest_rel(values[p.rule], values[p.than]) for p in found]
    for pair, test in zip(found[:1] + found[2:], tests[:1] + tests[2:], strict=True):
        interval = test.confidence_interval()
        np.testing.assert_allclose((pair.difference.low, pair.difference.high), interval)
    p = np.array([test.pvalue for test in tests])
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * [3, 2, 1])
    np.testing.assert_allclose([found[i].p for i in order], np.minimum(adjusted, 1), atol=1e-12)


def test_lists_by_part_and_the_number_that_rules_are_told():
    ising = {"name": "ising", "graph": "ring", "coupling": 0.3, "external": [0.4, 0.9]}
    (cell,) = schema.parse("x", of_law(ising, level=0.9)).cells
    np.testing.assert_array_equal(cell.honesty.law.external, [0.4] * 3 + [0.9] * 3)
    np.testing.assert_array_equal(cell.honesty.law.graph, robustness.ring(6))
    sets, masses = cell.honesty.law.support()
    numbers = (~sets).sum(axis=1)
    assert cell.federation.aggregator.f == cell.honesty.covered
    assert masses[numbers <= cell.honesty.covered].sum() >= 0.9
    assert masses[numbers < cell.honesty.covered].sum() < 0.9
    assert cell.federation.byzantine == 2, "whatever rules are told, as many can occur"
    (cell,) = schema.parse("x", of_law({"name": "uniform_sets", "byzantine": 0.2})).cells
    assert cell.honesty.law == robustness.UniformSets(n=6, byzantine=1)
    assert cell.federation.aggregator.f == 1


UNIFORM = {"name": "uniform_sets", "byzantine": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (of_law(UNIFORM, set=3), "honesty.set: unknown name 'set'; did you mean 'sets'"),
        (of_law(UNIFORM, sets=0), "honesty.sets must be an integer, at least 1"),
        (of_law(UNIFORM, level=0), "honesty.level must be a number above 0 and at most 1"),
        (of_law(UNIFORM | {"n": 5}), "honesty.law is of 5 clients, data.clients = 6"),
        (of_law({"name": "uniform"}), "honesty.law: unknown name 'uniform'"),
        (of_law(UNIFORM | {"byzantine": 3}), "byzantine must be below n / 2"),
        (of_law({"name": "ising", "graph": "star"}), "honesty.law.graph: unknown name 'star'"),
        (table(honesty={"sets": 2}, sweep={}), "honesty.law is missing"),
        (table(honesty=3, sweep={}), "honesty must be a table"),
        (of_law(UNIFORM) | {"byzantine": 1}, "byzantine follows from honesty.law"),
        (of_law(UNIFORM, {"learned": "krum"}), "aggregator.learned: unknown name 'krum'"),
        (of_law(UNIFORM, {"learned": "expected_mean", "f": 1}), "aggregator.f: unknown name"),
        (of_law(UNIFORM, {"learned": "barrier_clipping", "doubt": "a"}), "doubt must be a number"),
        (of_law(UNIFORM, {"learned": "barrier_clipping", "doubt": 2}), "aggregator: doubt must be"),
        (of_law({"name": "ising", "graph": [[0], [0, 1]]}), "honesty.law: Ising: graph must be"),
    ],
)  # fmt: skip
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        schema.parse("x", changes)


def test_what_is_kept_of_a_run_is_compared_as_the_run_is(ran, tmp_path):
    """Numbers are kept to six digits."""
    path, results = ran
    name = "expected-mnist"  # any that comes with jaxfl
    keep(path, tmp_path / "results" / name)
    kept = read_kept(tmp_path / "results" / name)
    for mine, theirs in zip(outcomes(results), kept.outcomes, strict=True):
        assert mine.labels == theirs.labels
        np.testing.assert_allclose(mine.accuracies, theirs.accuracies, atol=1e-6)
        np.testing.assert_allclose(mine.losses, theirs.losses, atol=1e-6)
    page = replications_page(tmp_path / "results")
    for heading, lines in tables(kept.experiment, outcomes(results)):
        assert f"#### {heading}\n" in page
        assert all(f"| {' | '.join(line)} |" in page for line in lines)
    headings = [heading for heading, _ in tables(kept.experiment, kept.outcomes)]
    assert headings == ["halves", "halves: losses"], "both have the same worst set: no tau"
    assert f"4 rounds, {SETS} honest sets" in page
    shown = CliRunner().invoke(app, ["reproduce", name, "--results", str(tmp_path / "results")])
    assert shown.exit_code == 0, shown.output
    assert "behind the first" in shown.output
    assert "expected loss" in shown.output


def test_what_an_older_jaxfl_kept_has_no_losses(ran, tmp_path):
    path, results = ran
    keep(path, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    lines[1]["losses"][2] = None  # diverged
    old = [{k: v for k, v in line.items() if k != "losses"} for line in lines]
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, lost = read_kept(tmp_path).outcomes
    assert lost.loss.worst == np.inf
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, old)))
    kept = read_kept(tmp_path)
    assert [outcome.loss for outcome in kept.outcomes] == [None, None]
    (only,) = tables(kept.experiment, kept.outcomes)
    assert only == tables(kept.experiment, outcomes(results))[0]


def test_a_training_objective_is_learned_of_the_law():
    asked = of_law(LAW) | {"fairness": {"learned": "tail_risk", "alpha": 0.5}}
    (cell,) = schema.parse("x", asked).cells
    (federation,) = cell.federations
    assert federation.fairness == robustness.tail_risk(cell.honesty.law, alpha=0.5)
    assert federation.fairness.sets.shape[1] == cell.clients
    for wrong, message in (
        ({"learned": "expected_mean"}, "fairness.learned: unknown name 'expected_mean'"),
        ({"learned": "tail_risk", "beta": 1}, "fairness.beta: unknown name"),
        (
            {"learned": "tail_risk", "alpha": 1.0},
            "fairness: .*alpha must be at least 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            schema.parse("x", of_law(LAW) | {"fairness": wrong})


def test_nothing_is_learned_without_a_law():
    plain = table(sweep={}, aggregator={"learned": "barrier_clipping"})
    del plain["honesty"]
    with pytest.raises(ValueError, match=r"needs honesty.law"):
        schema.parse("x", plain)


def test_honest_masks_must_fit():
    data = jaxfl.data.synthetic(samples=12, features=2, classes=2).split(jaxfl.data.IID(), 3)
    federation = jaxfl.Federation(byzantine=1)

    def made(honest):
        return jaxfl.Simulation(federation, data, jaxfl.models.Softmax(), honest=honest)

    with pytest.raises(ValueError, match=r"masks \[1, 3\]"):
        made(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"masks \[1, 3\]"):
        made(np.ones((1, 3)))
    with pytest.raises(ValueError, match="byzantine must be at least 2"):
        made(np.array([[True, False, False]]))
