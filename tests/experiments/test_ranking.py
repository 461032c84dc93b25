"""Defences ranked over attacks: from known accuracies, and as files."""

import csv
import dataclasses
import io
import math
import re
import tomllib
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from jaxfl import (
    NBS,
    NNM,
    ROP,
    TNBS,
    Bulyan,
    ByzMean,
    CenteredClipping,
    FangKrum,
    FangTrim,
    FLTrust,
    FLTrustAdaptive,
    Krum,
    Mean,
    Median,
    NoAttack,
    Onset,
    PerLayer,
    Pipeline,
    SignGuardAware,
    SignGuardSim,
    TNBSStealth,
    TrimmedMean,
)
from jaxfl.experiments import schema
from jaxfl.experiments.from_log import not_run
from jaxfl.experiments.ranking import rankings
from jaxfl.registry import AGGREGATORS, ATTACKS
from jaxfl.report.ranking import as_csv, caption, entries, header, is_ranked, markdown

TABLE = {
    "rounds": 10,
    "byzantine": 1,
    "model": "softmax",
    "data": {"name": "digits", "clients": 5},
    "sweep": {
        "seed": [0, 1, 2],
        "attack": ["none", "sign_flip", {"name": "agr_tailored", "evaluations": 8}, "fang_trim"],
        "aggregator": ["mean", "median", "bulyan"],
    },
}
FINALS = {
    ("Mean", "No attack"): (0.9, 0.9, 0.9),
    ("Mean", "SignFlip"): (0.1, 0.2, 0.3),
    ("Mean", "AGRTailored (evaluations 8)"): (0.5, 0.5, np.nan),
    ("Median", "No attack"): (0.8, 0.8, 0.8),
    ("Median", "SignFlip"): (0.6, 0.7, 0.8),
    ("Median", "AGRTailored (evaluations 8)"): (0.7, 0.7, 0.7),
    ("Median", "FangTrim"): (0.1, 0.1, 0.1),
}


@pytest.fixture
def grid():
    """The grid with these accuracies; Bulyan does not apply, nor one of the attacks to the mean."""
    experiment = schema.parse("known", TABLE)
    return experiment, known_results(experiment)


def known_results(experiment, candidates=1):
    results = []
    for cell in experiment.cells:
        result = not_run(cell, "not applicable")
        finals = FINALS.get((cell.labels["aggregator"], cell.labels["attack"]))
        if finals is not None:
            test = np.tile(np.array(finals)[:, None], (candidates, 1, 1))
            result = dataclasses.replace(result, reason=None, test=test, seconds=9.0, running=6.0)
        results.append(result)
    return results


def half(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return (high - low) / 2


def test_the_best_worst_case_is_first(grid):
    """Over the attacks that all defences have, of which none is not one."""
    (ranking,) = rankings(*grid)
    median, mean = ranking.defences
    assert (median.defence, mean.defence) == ("Median", "Mean")
    assert ranking.attacks == ("SignFlip", "AGRTailored (evaluations 8)")
    assert ranking.left_out == ("FangTrim",)
    assert median.worst.attack == mean.worst.attack == "SignFlip"
    assert (median.worst.accuracy, mean.worst.accuracy) == pytest.approx((0.7, 0.2))
    assert median.worst.interval == pytest.approx(half([0.6, 0.7, 0.8]))
    # Over attacks first, then over seeds; a run that diverged counts 0.
    assert mean.mean == pytest.approx(np.mean([0.1, 0.2, 0.3, 0.5, 0.5, 0]))
    assert mean.interval == pytest.approx(half([0.6 / 2, 0.7 / 2, 0.3 / 2]))
    # Of those that know the defence, also what the others do not meet.
    assert mean.knowing is not None
    assert mean.knowing.attack == "AGRTailored (evaluations 8)"
    assert mean.knowing.accuracy == pytest.approx(1 / 3)
    assert median.knowing is not None
    assert (median.knowing.attack, median.knowing.accuracy) == ("FangTrim", pytest.approx(0.1))
    assert median.cost == pytest.approx(200.0)


def test_without_such_attacks_nothing_is_said_of_them(grid):
    (ranking,) = rankings(*under("SignFlip", grid))
    assert ranking.defences[0].knowing is None
    assert math.isnan(ranking.defences[0].cost)
    assert (ranking.attacks, ranking.left_out) == (("SignFlip",), ())
    assert rankings(*under("No attack", grid)) == []


def under(attack, grid):
    """The grid under one attack alone."""
    left = [r for r in grid[1] if r.cell.labels["attack"] == attack]
    return dataclasses.replace(grid[0], cells=tuple(r.cell for r in left)), left


def test_each_setting_has_a_ranking_of_its_own():
    sweep = {"byzantine": [1, 2], **TABLE["sweep"]}
    experiment = schema.parse("two", TABLE | {"sweep": sweep})
    one, two = rankings(experiment, known_results(experiment))
    assert (one.setting, two.setting) == ((("byzantine", "1"),), (("byzantine", "2"),))
    assert one.defences == two.defences
    assert len(one.defences) == 2
    page = markdown(experiment, [one, two])
    assert re.findall("### .*", page) == ["### two: byzantine 1", "### two: byzantine 2"]
    lines = list(csv.DictReader(io.StringIO(as_csv(experiment, [one, two]))))
    assert [line["byzantine"] for line in lines] == ["1", "1", "2", "2"]


def test_a_defence_that_is_still_to_be_run_is_not_ranked(grid):
    experiment, results = grid
    left = [r for r in results if tuple(r.cell.labels.values()) != ("SignFlip", "Mean")]
    (ranking,) = rankings(experiment, left)
    assert [entry.defence for entry in ranking.defences] == ["Median"]
    assert len(ranking.attacks) == 3
    assert ranking.unfinished == ("Mean",)
    assert caption(experiment, ranking).endswith(
        "Over 3 attacks. Not ranked, as cells are still to be run: Mean."
    )


def test_a_part_of_a_grid_without_one_attack_is_not_ranked(grid):
    """Also where no defence has more of it than another."""
    experiment, results = grid
    assert rankings(experiment, [r for r in results if r.cell.labels["attack"] != "FangTrim"]) == []


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        (SignGuardAware(), SignGuardSim()),
        (FangTrim(), Pipeline(pre=(NNM(f=1),), rule=TrimmedMean(f=1))),
        (FangTrim(), PerLayer(rule=Median())),
        (FangKrum(), Bulyan(f=1)),
        (TNBSStealth(), TNBS.example()),
        (Onset(attack=TNBSStealth(), start=2), NBS.example()),
        (ROP(z=1.0), CenteredClipping.example()),
        (FLTrustAdaptive(), FLTrust()),
        (ByzMean(attack=FangKrum()), Krum(f=1)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_attacks_know_the_defence_that_they_are_made_for(attack, rule):
    """Behind pre-aggregators, around it and in attacks of attacks, too; and no other."""
    assert attack.aims_at(rule)
    assert not attack.aims_at(Mean())
    assert not NoAttack().aims_at(rule)


def test_as_files(grid):
    found = rankings(*grid)
    lines = list(csv.DictReader(io.StringIO(as_csv(grid[0], found))))
    assert [line["aggregator"] for line in lines] == ["Median", "Mean"]
    assert float(lines[1]["mean_ci95"]) == pytest.approx(half([0.6, 0.7, 0.3]) / 2, rel=1e-5)
    assert "attack" not in lines[0]
    assert entries(grid[0], found[0])[0][:4] == [
        "1",
        "Median",
        f"70.0 ± {100 * half([6, 7, 8]) / 10:.1f}",
        "SignFlip",
    ]
    assert "| 2 | Mean | 20.0" in markdown(grid[0], found)
    assert "Over 2 attacks; left out, as not all defences have them: FangTrim." in markdown(
        grid[0], found
    )


def test_what_was_tuned_is_in_the_ranking():
    tune = {"optimizer.learning_rate": [0.1, 0.2]}
    table = TABLE | {"optimizer": "sgd", "validation": 0.1, "tune": tune}
    experiment = schema.parse("tuned", table)
    results = [dataclasses.replace(r, chosen=1) for r in known_results(experiment, 2)]
    (ranking,) = rankings(experiment, results)
    assert header(experiment)[-1] == "tuned"
    assert [line[-1] for line in entries(experiment, ranking)] == [experiment.candidates[1]] * 2
    assert "; tuned on held-out samples. Over 2 attacks" in caption(experiment, ranking)


def test_few_attacks_are_a_table_already(grid):
    assert not is_ranked(grid[0])
    assert not is_ranked(schema.parse("one", TABLE | {"sweep": {}}))
    assert is_ranked(schema.load("signguard-table1-mnist", []))


OTHERS_WITHOUT_A_LAW = {"expected_mean", "gibbs_mean", "log_odds_median", "weighted_trimmed_mean"}
"""The mean, what goes through all sets, the geometric median, the trimmed mean."""


def test_the_arena_has_all_that_is_registered():
    """Every rule but the oracle, and every attack but the one that only waits.

    Nor what is about adapters or texts, of which its model has none, nor the same rule twice.
    """
    attacks = ATTACKS.keys() - {"onset", "gauge", "token_backdoor"}
    for name in ("arena", "arena-mnist"):
        file = resources.files("jaxfl.experiments") / f"{name}.toml"
        sweep = tomllib.loads(file.read_text())["sweep"]
        assert set(map(name_in, sweep["attack"])) == attacks
        if name == "arena":
            rules = AGGREGATORS.keys() - {"oracle", "product_space"} - OTHERS_WITHOUT_A_LAW
            assert set(map(name_in, sweep["aggregator"])) == rules


def test_the_arena_has_every_rule_behind_nnm_where_that_is_defined():
    def takes_any_rows(rule):
        knows = ("by_client", "needs_root", "needs_segments", "follows_model", "makes_inputs")
        return rule.permutation_equivariant and not any(getattr(rule, name) for name in knows)

    file = resources.files("jaxfl.experiments") / "arena.toml"
    rules = tomllib.loads(file.read_text())["sweep"]["aggregator"]
    behind = [entry["rule"] for entry in rules if name_in(entry) == "pipeline"]
    made = {name: cls.example() for name, cls in AGGREGATORS.items()}
    wanted = {name for name, rule in made.items() if takes_any_rows(rule)}
    # MoNNA trusts one row, which is still that client's when it is mixed with its neighbours.
    assert set(map(name_in, behind)) == wanted - OTHERS_WITHOUT_A_LAW - {"anchored", "pipeline"} | {
        "monna"
    }


def name_in(entry):
    """What a part of a file is called."""
    return entry if isinstance(entry, str) else entry["name"]
