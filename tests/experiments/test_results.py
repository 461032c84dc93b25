"""From logged lines to the numbers of a table."""

import copy
import csv
import io

import numpy as np
import pytest
from scipy import stats
from test_folder import TABLE, run

from jaxfl import Simulation
from jaxfl.experiments import schema
from jaxfl.experiments.conclusions import choose, refer
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.from_log import not_run, result_of
from jaxfl.experiments.kept import cell_of
from jaxfl.experiments.over_sets import outcomes
from jaxfl.experiments.results import SHARES, half_interval
from jaxfl.report.compare import comparison
from jaxfl.report.grid import in_percent
from jaxfl.report.tables import entries, latex, markdown, summary

TUNED = {
    **copy.deepcopy(TABLE),
    "rounds": 4,
    "model": "softmax",
    "validation": 0.25,
    "tune": {"optimizer.learning_rate": [1e-6, 0.1, 3e38]},
    "sweep": {
        "seed": [0, 1],
        "attack": ["none", {"name": "ipm", "scale": 0.5}],
        "aggregator": ["mean", {"name": "krum", "f": 2}, {"name": "krum", "f": 4}],
    },
}


pytestmark = pytest.mark.xdist_group("results")  # all share one run


def cell(seeds=(0, 1), candidates=1, attack="none", validation=0.25):
    table = copy.deepcopy(TABLE)
    table["sweep"] = {"seed": list(seeds), "attack": [attack]}
    table["validation"] = validation
    table["rounds"] = 6
    if candidates > 1:
        table["tune"] = {"optimizer.learning_rate": [0.1 * (i + 1) for i in range(candidates)]}
    (only,) = schema.parse("x", table).cells
    return only


def lines(cell, test, validation):
    """Log lines of ``[candidates, seeds, evaluations]`` accuracies after rounds 2, 4, ..."""
    return [
        {
            "cell": 0,
            "candidate": c,
            "seed": seed,
            "round": 2 * (e + 1),
            "honest_selected": None,
            "malicious_selected": 0.5,
            "test_accuracy": test[c][s][e],
            "test_loss": None if test[c][s][e] is None else 1.0,
            "validation_accuracy": validation[c][s][e],
        }
        for c in range(len(cell.federations))
        for s, seed in enumerate(cell.seeds)
        for e in range(len(test[c][s]))
    ]


def test_last_best_and_validation_chosen_accuracy():
    one = cell()
    test = [[[0.5, 0.9, 0.7], [0.6, 0.4, 0.8]]]
    validation = [[[0.6, 0.5, 0.5], [0.1, 0.7, 0.2]]]
    result = result_of(one, lines(one, test, validation), 1.0)
    assert list(result.rounds) == [2, 4, 6]
    assert result.final == pytest.approx(0.75)
    assert result.best == pytest.approx((0.9 + 0.8) / 2)
    assert result.selected == pytest.approx((0.5 + 0.4) / 2)
    assert result.spread == pytest.approx(np.std([0.7, 0.8], ddof=1))
    low, high = stats.t.interval(0.95, 1, 0.75, stats.sem([0.7, 0.8]))
    assert result.interval == pytest.approx((high - low) / 2)
    assert np.isnan(result.honest_selected)
    assert result.malicious_selected == 0.5
    assert result.status == "done"


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_has_no_deviation(seeds):
    experiment = schema.parse("x", table_of(range(seeds)))
    (one,) = experiment.cells
    results = [result_of(one, lines(one, [[[0.5], [0.6]][:seeds]], [[[0.1]] * seeds]), 0.0)]
    (_, entry) = entries(experiment, results)[1]
    (row,) = csv.DictReader(io.StringIO(summary(experiment, results)))
    text = markdown(experiment, results)
    if seeds == 1:
        assert (entry, row["deviation"], row["ci95"]) == ("50.0", "", "")
        assert "±" not in text + latex(experiment, results)
        assert "after the last round; one seed." in text
    else:
        assert entry == f"55.0 ± {100 * np.std([0.5, 0.6], ddof=1):.1f}"
        assert "mean ± deviation over 2 seeds, 0 of those that diverged." in text


def test_the_interval_of_one_seed_is_unknown():
    assert np.isnan(half_interval(np.array([0.5])))


def test_a_defence_chooses_one_candidate_for_all_attacks():
    a = cell(candidates=2)
    b = cell(candidates=2, attack={"name": "ipm", "scale": 2.0})
    half = [[[0.5]] * 2] * 2
    first = result_of(a, lines(a, half, [[[0.9]] * 2, [[0.8]] * 2]), 0.0)
    second = result_of(b, lines(b, half, [[[0.1]] * 2, [[0.7]] * 2]), 0.0)
    assert [r.chosen for r in choose([first])] == [0]
    assert [r.chosen for r in choose([first, second])] == [1, 1]
    assert [r.chosen for r in choose([first, not_run(b, "why")])] == [0, 0]


@pytest.mark.parametrize(
    ("axis", "values", "known"),
    [
        ("attack.scale", [0.5, 2.0], False),
        ("attack", [{"name": "ipm", "scale": 0.5}, "sign_flip"], False),
        ("byzantine", [1, 2], False),
        ("byzantine_per_round", [1, 2], False),
        ("noise_order", ["noise_then_attack", "attack_then_noise"], False),
        ("data.partition", ["iid", {"name": "dirichlet", "alpha": 0.1}], True),
        ("aggregator", ["mean", "median"], True),
    ],
)
def test_a_defence_does_not_choose_by_what_it_cannot_know(axis, values, known):
    table = copy.deepcopy(TABLE) | {"validation": 0.25, "attack": {"name": "ipm", "scale": 1.0}}
    table |= {"sweep": {axis: values}, "tune": {"optimizer.learning_rate": [0.1, 0.2]}}
    table |= {"participation": {"name": "uniform", "fraction": 0.5}}
    scores = np.array([[0.9, 0.8], [0.1, 0.7]])  # [cells, candidates]
    results = [
        result_of(one, lines(one, [[[0.5]]] * 2, [[[a]], [[b]]]), 0.0)
        for one, (a, b) in zip(schema.parse("x", table).cells, scores, strict=True)
    ]
    alone, together = scores.argmax(axis=1), [scores.mean(axis=0).argmax()] * 2
    assert [r.chosen for r in choose(results)] == list(alone if known else together)


def test_a_diverged_candidate_is_not_chosen_and_a_diverged_cell_is_named():
    a = cell(candidates=2)
    test = [[[None]] * 2, [[0.4]] * 2]
    validation = [[[0.9]] * 2, [[0.3]] * 2]
    validation[0] = [[None]] * 2
    (result,) = choose([result_of(a, lines(a, test, validation), 0.0)])
    assert result.chosen == 1
    assert result.status == "done"
    lost = result_of(a, lines(a, [[[None]] * 2] * 2, [[[None]] * 2] * 2), 0.0)
    assert lost.status == "diverged"


def test_shares_of_selected_are_those_of_the_chosen_candidate():
    a = cell(candidates=2)
    logged = lines(a, [[[0.5]] * 2] * 2, [[[0.1]] * 2, [[0.9]] * 2])
    for line in logged:
        line |= dict.fromkeys(SHARES, (0.2, 0.6)[line["candidate"]])
    result = result_of(a, logged, 0.0)
    (chosen,) = choose([result])
    for one, share in ((result, 0.2), (chosen, 0.6)):
        assert [getattr(one, name) for name in SHARES] == [share] * 3


def test_a_candidate_without_a_prediction_of_one_held_out_sample_is_not_chosen():
    """Its test accuracy may be a number all the same."""
    a = cell(candidates=2)
    validation = [[[None], [0.2]], [[0.3], [0.4]]]
    (result,) = choose([result_of(a, lines(a, [[[0.5]] * 2] * 2, validation), 0.0)])
    assert result.chosen == 1


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "run"
    experiment = schema.parse("tuned", copy.deepcopy(TUNED))
    return experiment, choose(run(path, experiment=experiment))


@pytest.mark.slow
def test_tuning_is_one_program_that_equals_single_runs(tuned):
    _, results = tuned
    for result in (results[0], results[4]):  # Mean without attack, Krum under IPM
        dataset = result.cell.load()
        for c, federation in enumerate(result.cell.federations[:2]):
            for s, (seed, part) in enumerate(
                zip(result.cell.seeds, result.cell.divide(dataset), strict=True)
            ):
                alone = Simulation(
                    federation, part, result.cell.model, seeds=[seed], evaluate_every=2
                ).run(4)
                np.testing.assert_allclose(result.test[c, s], alone.accuracy, atol=0.07)
                np.testing.assert_allclose(
                    result.validation[c, s], alone.evaluations.validation_accuracy, atol=0.11
                )
        assert np.any(result.test[0] != result.test[1])


def test_tables_of_a_tuned_grid(tuned):
    experiment, results = tuned
    table = entries(experiment, results)
    assert table[0] == ["", "No attack", "IPM (scale 0.5)", "worst", "tuned"]
    assert [line[0] for line in table[1:]] == ["Mean", "Krum (f 2)", "Krum (f 4)"]
    assert table[3][1:] == ["n/a", "n/a", "-", "-"]
    assert {results[0].chosen, results[3].chosen} != {2}, "a rate of 3e38 diverges"
    for line in table[1:]:
        assert f"| {' | '.join(line)} |" in markdown(experiment, results)
    text = latex(experiment, results)
    assert text.count(r"\\") == 4
    assert r"$\pm$" in text
    assert "validation_chosen_accuracy" in summary(experiment, results).splitlines()[0]
    assert len(summary(experiment, results).splitlines()) == 7


def test_tables_say_what_attackers_control_and_know(tuned):
    experiment, results = tuned
    assert "- IPM (scale 0.5): controls its messages, knows all honest updates" in markdown(
        experiment, results
    )
    rows = list(csv.DictReader(io.StringIO(summary(experiment, results))))
    assert {row["attacker_knows"] for row in rows[3:]} == {"all honest updates"}
    assert {row["attacker_controls"] for row in rows[:3]} == {"nothing"}


def test_the_impact_is_against_no_attack_and_no_defence():
    grid = [("none", "mean", 0.9), ("ipm", "mean", 0.2), ("none", "krum", 0.8)]
    grid += [("ipm", "krum", 0.7)]
    results = []
    for attack, aggregator, accuracy in grid:
        table = copy.deepcopy(TABLE)
        table["sweep"] = {"attack": [attack], "aggregator": [aggregator]}
        (one,) = schema.parse("x", table).cells
        results.append(result_of(one, lines(one, [[[accuracy]]], [[[accuracy]]]), 0.0))
    impacts = [result.impact for result in refer(results)]
    np.testing.assert_allclose(impacts, [0, 0.7, 0.1, 0.2])
    assert all(np.isnan(result.impact) for result in refer(results[1:]))
    assert np.isnan(results[0].attack_success)


def test_the_strongest_attack_is_named():
    table = copy.deepcopy(TABLE)
    attacks = ["none", {"name": "ipm", "scale": 3.0}, "sign_flip"]
    table["sweep"] = {"attack": attacks, "aggregator": ["mean", "median"]}
    experiment = schema.parse("x", table)
    ends = [0.9, 0.8, 0.2, 0.7, 0.5, None]
    results = [
        result_of(one, lines(one, [[[end]]], [[[end]]]), 0.0)
        for one, end in zip(experiment.cells, ends, strict=True)
    ]
    worst = [line[-1] for line in entries(experiment, results)]
    assert worst == ["worst", "20.0, IPM (scale 3)", "diverged, SignFlip"]


def test_the_success_of_a_backdoor_is_in_the_log():
    one = cell(seeds=(0, 1))
    written = lines(one, [[[0.5], [0.6]]], [[[0.1]] * 2])
    for line, success in zip(written, (0.25, 0.75), strict=True):
        line["attack_success"] = success
    assert result_of(one, written, 0.0).attack_success == 0.5


def test_how_long_a_backdoor_lasts_is_in_the_tables():
    """Planted with both seeds; with one it lasts until round 10, with the other to the end."""
    table = copy.deepcopy(TABLE) | {"rounds": 12}
    window = {"name": "onset", "start": 0, "end": 4, "attack": "backdoor"}
    table["sweep"] = {"seed": [0, 1], "attack": [window], "aggregator": ["mean"]}
    experiment = schema.parse("x", table)
    (one,) = experiment.cells
    written = lines(one, [[[0.5] * 6] * 2], [[[0.1] * 6] * 2])
    success = {0: [0.1, 0.9, 0.9, 0.9, 0.9, 0.2], 1: [0.1, 0.8, 0.9, 0.6, 0.7, 0.6]}
    for line in written:
        line["attack_success"] = success[line["seed"]][line["round"] // 2 - 1]
    result = result_of(one, written, 0.0)
    assert [d.lifespan for d in result.durabilities] == [6, 8]
    assert (result.planted, result.lifespan, result.outlived) == (1.0, 7.0, 0.5)
    text = markdown(experiment, [result])
    assert "| 40.0; 100.0; > 7 |" in text
    (found,) = csv.DictReader(io.StringIO(summary(experiment, [result])))
    kept = result_of(one, [line | {"attack_success": 0.2} for line in written], 0.0)
    assert "| 20.0; 0.0; 0 |" in markdown(experiment, [kept])
    assert found["outlived"] == "0.5"
    assert found["lifespan"] == "7"


def test_claims_about_backdoors_are_judged():
    """Of one rule it ends at 20 % and lasts 4 rounds, of the other it is there to the end."""
    table = copy.deepcopy(TABLE) | {"rounds": 12}
    window = {"name": "onset", "start": 0, "end": 4, "attack": "backdoor"}
    table["sweep"] = {"attack": [window], "aggregator": ["mean", "median"]}
    labels = {"better": {"aggregator": "Median"}, "than": {"aggregator": "Mean"}}
    table["findings"] = [
        {"claim": "lasts", "metric": "lifespan", "by": 3} | labels,
        {"claim": "lasts long", "metric": "lifespan", "by": 4} | labels,
        {"claim": "is left", "metric": "attack_success"} | labels,
    ]
    experiment, results = schema.parse("x", table), []
    for one, late in zip(experiment.cells, (0.2, 0.9), strict=True):
        written = lines(one, [[[0.5] * 6]], [[[0.1] * 6]])
        for line in written:
            line["attack_success"] = 0.9 if line["round"] <= 8 else late
        results.append(result_of(one, written, 0.0))
    lasts, long, left = map(str, verdicts(experiment, results))
    assert lasts.startswith("lasts: reproduced (lifespan in rounds; ")
    assert lasts.endswith(": 8 against 4).")
    assert long.startswith("lasts long: not reproduced (lifespan in rounds; ")
    assert left.startswith("is left: reproduced (attack_success in %; ")
    assert left.endswith(": 90 against 20).")


def compared(*tables_and_accuracies):
    """The cells of the columns of a comparison of runs a, b, ...; its caption; its notes."""
    runs = []
    for table, accuracies in tables_and_accuracies:
        experiment = schema.parse("x", table)
        results = [
            result_of(one, lines(one, [[[x] for x in values]], [[[0.1]] * len(values)]), 0.0)
            for one, values in zip(experiment.cells, accuracies, strict=True)
        ]
        runs.append((experiment, results))
    table, notes = comparison(["a", "b", "c"][: len(runs)], runs)
    return [list(column.cells) for column in table.columns], table.caption, notes


def table_of(seeds=(0, 1, 2), rules=("mean",), **changes):
    sweep = {"seed": list(seeds), "aggregator": list(rules)}
    return copy.deepcopy(TABLE) | {"sweep": sweep} | changes


def test_comparison_is_paired_by_seed():
    first, second = [0.5, 0.6, 0.7], [0.6, 0.8, 0.8]
    cells, caption, notes = compared((table_of(), [first]), (table_of(), [second]))
    differences = np.array([10.0, 20.0, 10.0])
    half = stats.t.ppf(0.975, 2) * stats.sem(differences)
    assert cells[1:] == [["60.0"], ["73.3"], [f"+{differences.mean():.1f} ± {half:.1f}"]]
    assert "paired by seed" in caption
    assert notes == []
    with pytest.raises(ValueError, match="no cell in common"):
        compared((table_of(), [first]), (table_of(rules=["median"]), [second]))
    with pytest.raises(ValueError, match="no seed in common"):
        compared((table_of(), [first]), (table_of((7, 8, 9)), [second]))


def test_comparison_over_other_data_is_not_paired():
    first, second = [0.5, 0.6, 0.7], [0.6, 0.8, 0.8, 0.9]
    other = table_of((0, 1, 2, 3), data=TABLE["data"] | {"samples": 90})
    cells, caption, notes = compared((table_of(), [first]), (other, [second]))
    low, high = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    mean = 100 * (np.mean(second) - np.mean(first))
    assert cells[3] == [f"{mean:+.1f} ± {50 * (high - low):.1f}"]
    assert "paired by seed" not in caption
    assert "b: not paired, as its data differ" in caption
    assert "Differs: data.samples: 80 in a, 90 in b" in notes


def test_comparison_over_other_rare_samples_is_not_paired():
    """They are taken out of the clients' data."""
    other = table_of(data=TABLE["data"] | {"rare": {"label": 1, "size": 5}})
    values = [0.5, 0.6, 0.7]
    _, caption, _ = compared((table_of(), [values]), (other, [values]))
    assert "b: not paired, as its data differ" in caption


@pytest.mark.parametrize("changes", [{}, {"data": TABLE["data"] | {"samples": 90}}])
def test_comparison_with_a_run_that_diverged_is_no_number(changes):
    second, said = [0.6, None, 0.9], "50.0, 1 of 3 diverged"
    cells, _, _ = compared((table_of(), [[0.5] * 3]), (table_of(**changes), [second]))
    assert cells[1:] == [["50.0"], [said], ["-"]]
    cells, _, _ = compared((table_of(**changes), [second]), (table_of(), [[0.5] * 3]))
    assert cells[1:] == [[said], ["50.0"], ["-"]]


def test_comparison_lists_what_differs_and_what_was_left_out():
    first = table_of((0, 1, 2), ["mean", "median"], rounds=6)
    second = table_of((1, 2, 3), ["mean", "krum"], optimizer={"name": "sgd", "momentum": 0.5})
    cells, _, notes = compared((first, [[0.5] * 3] * 2), (second, [[0.5] * 3] * 2))
    assert cells[0] == ["Mean"]
    assert notes == [
        "Differs: rounds: 6 in a, 5 in b",
        "Differs: optimizer.learning_rate: 0.1 in a, not set in b",
        "Differs: optimizer.momentum: 0.9 in a, 0.5 in b",
        "Differs: sweep.seed: [0, 1, 2] in a, [1, 2, 3] in b",
        "Differs: sweep.aggregator: ['mean', 'median'] in a, ['mean', 'krum'] in b",
        "Left out: Median: not in b",
        "Left out: Krum: not in a",
        "Left out of the difference: seed 0 of a",
        "Left out of the difference: seed 3 of b",
    ]


def test_the_best_of_a_run_that_diverged_is_from_before():
    one = cell()
    result = result_of(one, lines(one, [[[0.9, None], [0.3, None]]], [[[0.5, None]] * 2]), 0.0)
    assert result.best == pytest.approx(0.6)
    assert result.final == 0


def test_one_run_that_diverged_hides_no_other():
    """It counts 0, whether it is its accuracy or its loss that is not finite; the rest is shown."""
    one = cell()
    logged = lines(one, [[[0.5, 0.9], [0.8, None]]], [[[0.5, 0.9]] * 2])
    by_accuracy = result_of(one, logged, 0.0)
    logged[-1] |= {"test_accuracy": 0.7, "test_loss": None}
    for result in (by_accuracy, result_of(one, logged, 0.0)):
        assert result.status == "1 of 2 diverged"
        assert list(result.finals) == [0.9, 0]
        assert result.final == pytest.approx(0.45)
        assert result.best == pytest.approx(0.85)
        assert in_percent(result.status, result.final) == "45.0, 1 of 2 diverged"
        (outcome,) = outcomes([result])
        assert list(outcome.accuracies) == [0.9, 0]
        assert list(outcome.losses) == [1, np.inf]
        kept = cell_of(result)
        assert (kept.status, kept.best) == (result.status, [0.9, 0.8])
        assert list(kept.finals) == [0.9, 0]


def test_shares_of_selected_are_of_the_rounds_until_a_run_diverged():
    """Afterwards every rule leaves out what is not finite: the mean would seem to choose."""
    one = cell()
    logged = lines(one, [[[0.5, 0.9, None], [0.5, 0.9, 0.9]]], [[[0.5] * 3] * 2])
    for line in logged:
        line["loss"] = 1.0
    first = [line for line in logged if line["seed"] == one.seeds[0]]
    first[0]["loss"] = None  # no honest client took part: not the end
    first[-1] |= {"loss": None, "malicious_selected": 0.0}
    result = result_of(one, logged, 0.0)
    assert result.malicious_selected == 0.5
    assert result.rates is not None
    assert np.nanmax(np.abs(result.rates[:, 1] - 0.5)) == 0
