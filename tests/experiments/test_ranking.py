"""Defences ranked over attacks: from known accuracies, and as files."""

import csv
import dataclasses
import io
import math
import tomllib
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from jaxfl.experiments import schema
from jaxfl.experiments.from_log import not_run
from jaxfl.experiments.ranking import ranked
from jaxfl.registry import AGGREGATORS, ATTACKS
from jaxfl.report.ranking import as_csv, entries, is_ranked, markdown

TABLE = {
    "rounds": 10,
    "byzantine": 1,
    "model": "softmax",
    "data": {"name": "digits", "clients": 5},
    "sweep": {
        "seed": [0, 1, 2],
        "attack": ["none", "sign_flip", {"name": "agr_tailored", "evaluations": 8}],
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
}


@pytest.fixture
def grid():
    """The grid with these accuracies; Bulyan does not apply."""
    experiment = schema.parse("known", TABLE)
    results = []
    for cell in experiment.cells:
        result = not_run(cell, "not applicable")
        finals = FINALS.get((cell.labels["aggregator"], cell.labels["attack"]))
        if finals is not None:
            test = np.array(finals)[None, :, None]
            result = dataclasses.replace(result, reason=None, test=test, seconds=6.0)
        results.append(result)
    return experiment, results


def half(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return (high - low) / 2


def test_the_best_worst_case_is_first(grid):
    median, mean = ranked(grid[1])
    assert (dict(median.defence), dict(mean.defence)) == (
        {"aggregator": "Median"},
        {"aggregator": "Mean"},
    )
    assert median.worst.attack == mean.worst.attack == "SignFlip"
    assert (median.worst.accuracy, mean.worst.accuracy) == pytest.approx((0.7, 0.2))
    assert median.worst.interval == pytest.approx(half([0.6, 0.7, 0.8]))
    # Over attacks first, then over seeds; a run that diverged counts 0.
    assert mean.mean == pytest.approx(np.mean([0.9] * 3 + [0.1, 0.2, 0.3] + [0.5, 0.5, 0]))
    assert mean.interval == pytest.approx(half([1.5 / 3, 1.6 / 3, 1.2 / 3]))
    assert mean.knowing is not None
    assert mean.knowing.attack == "AGRTailored (evaluations 8)"
    assert mean.knowing.accuracy == pytest.approx(1 / 3)
    assert (median.cost, median.attacks) == (pytest.approx(200.0), 3)


def test_without_such_attacks_nothing_is_said_of_them(grid):
    left = [r for r in grid[1] if r.cell.labels["attack"] == "SignFlip"]
    median, _ = ranked(left)
    assert median.knowing is None
    assert math.isnan(median.cost)
    assert median.attacks == 1


def test_as_files(grid):
    lines = list(csv.DictReader(io.StringIO(as_csv(grid[0], ranked(grid[1])))))
    assert [line["aggregator"] for line in lines] == ["Median", "Mean"]
    assert float(lines[1]["mean_ci95"]) == pytest.approx(
        half([1.5 / 3, 1.6 / 3, 1.2 / 3]), rel=1e-5
    )
    assert "attack" not in lines[0]
    assert entries(grid[0], ranked(grid[1]))[0][:4] == [
        "1",
        "Median",
        f"70.0 ± {100 * half([6, 7, 8]) / 10:.1f}",
        "SignFlip",
    ]
    assert "| 2 | Mean | 20.0" in markdown(grid[0], ranked(grid[1]))


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
