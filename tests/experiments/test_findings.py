"""What papers state, beside what came out; reduced versions; pictures of sweeps."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from rich.console import Console

from jaxfl.accounting import Meter
from jaxfl.commands.run import print_results
from jaxfl.experiments.conclusions import conclude
from jaxfl.experiments.findings import findings, pairs, verdicts
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.from_log import not_run, result_of
from jaxfl.experiments.lines import add_guarantee, add_privacy
from jaxfl.experiments.runner import run_experiment
from jaxfl.experiments.schema import load, packaged, parse
from jaxfl.report import plots
from jaxfl.report.plots import sweep_plot
from jaxfl.report.tables import entries, markdown, summary

TABLE = {
    "rounds": 4,
    "data": {"name": "digits", "clients": 5},
    "model": "softmax",
    "privacy": {"name": "message", "clip": 1.0, "noise_multiplier": 1.0},
    "fairness": {"name": "qffl", "q": 1.0, "lipschitz": 5.0},
    "sweep": {
        "aggregator": ["median", "trimmed_mean"],
        "privacy.noise_multiplier": [0.0, 1.0, 2.0],
    },
    "findings": [
        {
            "claim": "noise costs accuracy",
            "better": {"privacy.noise_multiplier": "0.0"},
            "than": {"privacy.noise_multiplier": "2.0"},
            "why": "Chance.",
        },
        {
            "claim": "noise evens out",
            "metric": "client_variance",
            "better": {"privacy.noise_multiplier": "0.0"},
            "than": {"privacy.noise_multiplier": "2.0"},
            "where": {"aggregator": "Median"},
            "by": 5.0,
        },
        {"claim": "no such cell", "better": {"aggregator": "Krum"}, "than": {"aggregator": "Mean"}},
    ],
}


def experiment(**changes):
    table = {key: value for key, value in (TABLE | changes).items() if value is not None}
    return parse("made", table)


def line(cell, accuracy, **more):
    return {
        "cell": 0,
        "candidate": 0,
        "seed": 0,
        "round": 4,
        "honest_selected": None,
        "malicious_selected": None,
        "test_loss": 1.0,
        "test_accuracy": accuracy,
        **more,
    }


def results(of):
    """Each cell's accuracy and variance by its place in the grid."""
    return [
        result_of(
            cell,
            [
                line(
                    cell,
                    accuracy,
                    test_loss=math.nan if math.isnan(accuracy) else 1.0,
                    guaranteed_epsilon=None if i % 3 == 0 else 7.0 / i,
                    **{f"client_{n}": variance for n in NAMES},
                )
            ],
            0.0,
        )
        for i, (cell, (accuracy, variance)) in enumerate(zip(experiment().cells, of, strict=True))
    ]


LARGE = ("arena", "expected")
"""Packaged experiments that take long to read."""
NAMES = ("mean", "variance", "worst_tenth", "best_tenth", "entropy", "gini", "jain")
OUTCOME = [(0.9, 0.04), (0.8, 0.02), (0.7, 0.01), (0.6, 0.03), (0.7, 0.02), (0.65, 0.01)]


def test_claims_are_compared_cell_by_cell():
    found = results(OUTCOME)
    costs, evens, none = (verdict.markdown for verdict in verdicts(experiment(), found))
    assert pairs(findings(experiment())[0], found, "accuracy") == [
        ("Median", 0.9, 0.7),
        ("TrimmedMean", 0.6, 0.65),
    ]
    assert costs.startswith("noise costs accuracy: **reproduced in 1 of 2 settings**")
    assert "(accuracy in %; Median: 90 against 70; TrimmedMean: 60 against 65)" in costs
    assert costs.endswith("Chance.")
    assert evens.startswith("noise evens out: **reproduced** (client_variance in squared %; ")
    assert evens.endswith("; Median: 400 against 100).")
    assert none.endswith("not compared, no such cells have run.")


def test_one_cell_may_be_the_measure_of_many():
    claim = {
        "claim": "all are near the median without noise",
        "better": {},
        "than": {"privacy.noise_multiplier": "0.0", "aggregator": "Median"},
        "metric": "best_accuracy",
        "by": -15.0,
    }
    asked = experiment(findings=[claim])
    compared = pairs(findings(asked)[0], results(OUTCOME), "best_accuracy")
    assert len(compared) == len(OUTCOME)
    assert {less for *_, less in compared} == {0.9}
    assert sorted(more for _, more, _ in compared) == sorted(a for a, _ in OUTCOME)
    (verdict,) = verdicts(asked, results(OUTCOME))
    assert verdict.word == "reproduced in 2 of 6 settings"


def test_a_claim_may_leave_out_one_label_of_an_axis():
    claim = TABLE["findings"][0] | {"where": {"aggregator": {"not": "TrimmedMean"}}}
    (verdict,) = verdicts(experiment(findings=[claim]), results(OUTCOME))
    assert str(verdict).startswith("noise costs accuracy: reproduced (accuracy in %; Median: 90 a")
    # The label that ``than`` gives of the same axis comes before.
    where = {"privacy.noise_multiplier": {"not": "0.0"}}
    claim = {"claim": "x", "better": {}, "than": TABLE["findings"][0]["better"], "where": where}
    compared = pairs(findings(experiment(findings=[claim]))[0], results(OUTCOME), "accuracy")
    assert [numbers for _, *numbers in compared] == [
        *([0.8, 0.9], [0.7, 0.9], [0.7, 0.6], [0.65, 0.6]),
    ]


def test_cells_are_compared_with_a_number():
    """Also by the clients that were selected."""
    rates = {"honest_selected": 0.96, "malicious_selected": 0.02}
    grid = experiment()
    found = [result_of(cell, [line(cell, 0.5) | rates], 0.0) for cell in grid.cells]
    keeps = {"claim": "keeps", "metric": "honest_selected", "better": {}, "than": 95.0}
    takes = {"claim": "takes none", "metric": "malicious_selected", "better": 1, "than": {}}
    where = {"aggregator": "Median", "privacy.noise_multiplier": "0.0"}
    claims = [claim | {"where": where} for claim in (keeps, takes)]
    first, second = map(str, verdicts(experiment(findings=claims), found))
    assert first == "keeps: reproduced (honest_selected in %; Median, 0.0: 96 against 95)."
    assert second == (
        "takes none: not reproduced (malicious_selected in %; Median, 0.0: 1 against 2)."
    )


def test_a_cell_that_diverged_counts_nothing_in_a_claim_and_no_spread_at_all():
    """Its accuracy is 0; its variance, which is best at 0, is not compared."""
    lost = [(0.9, 0.04), (0.8, 0.02), (math.nan, math.nan), *OUTCOME[3:]]
    found = results(lost)
    assert [r.status for r in found][:3] == ["done", "done", "diverged"]
    assert pairs(findings(experiment())[0], found, "accuracy")[0] == ("Median", 0.9, 0.0)
    costs, evens, _ = (verdict.markdown for verdict in verdicts(experiment(), found))
    assert "(accuracy in %; Median: 90 against 0; TrimmedMean: 60 against 65)" in costs
    left = "1 of 1 left out, which did not run, diverged or have no number"
    assert evens.endswith(f"noise evens out: not compared, {left}.")


def test_a_verdict_says_how_many_settings_it_leaves_out():
    claim = TABLE["findings"][0] | {"metric": "client_variance"}
    lost = [(0.9, 0.04), (0.8, 0.02), (math.nan, math.nan), *OUTCOME[3:]]
    (verdict,) = verdicts(experiment(findings=[claim]), results(lost))
    left = "; 1 of 2 left out, which did not run, diverged or have no number)."
    assert left in verdict.numbers
    assert verdict.numbers.count(" against ") == 1


def test_the_command_line_shows_no_markdown_and_no_markup(tmp_path, capsys):
    claims = [TABLE["findings"][0] | {"claim": "[/b] costs"}, TABLE["findings"][1]]
    console = Console(width=120)
    print_results(console, tmp_path, experiment(findings=claims), results(OUTCOME), [], swept=False)
    shown = capsys.readouterr().out
    assert "Stated: [/b] costs: reproduced in 1 of 2 settings (accuracy in %; Median" in shown
    assert "Stated: noise evens out: reproduced (client_variance in squared %; Median" in shown
    assert "**" not in shown


def test_a_claim_that_does_not_come_out_says_so():
    worse = [(0.1, 0.0)] * 3 + [(0.2, 0.0)] * 3
    costs, evens, _ = (verdict.markdown for verdict in verdicts(experiment(), results(worse)))
    assert costs.startswith("noise costs accuracy: **not reproduced**")
    assert "**not reproduced**" in evens


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"claim": "x", "better": {}}, r"findings\[0\].than is missing"),
        ({"claim": "x", "better": {}, "then": {}}, r"findings\[0\].then: .*did you mean 'than'"),
        (
            {"claim": "x", "better": {"attack": "IPM"}, "than": {"aggregator": "Mean"}},
            r"findings\[0\].than must name attack, as better does",
        ),
        ({"claim": "x", "better": "y", "than": {}}, r"findings\[0\].better must be a table"),
        ({"claim": "x", "better": {"a": 1}, "than": {}}, r"better must be a table .*got {'a': 1}"),
        ({"claim": "x", "better": 1, "than": 2}, r"findings\[0\].than must be a table of labels"),
        ({"claim": 1, "better": {}, "than": {}}, r"findings\[0\].claim must be a string"),
        ({"claim": "x", "better": {}, "than": {}, "where": 3}, r"where must be a table of labels"),
        (
            {"claim": "x", "better": {}, "than": {}, "where": {"a": {"no": "b"}}},
            r"findings\[0\].where.a must be a label, .*got {'no': 'b'}",
        ),
        ({"claim": "x", "better": {}, "than": {}, "by": "5"}, r"findings\[0\].by must be a number"),
        (
            {"claim": "x", "better": {}, "than": {}, "metric": "acuracy"},
            r"findings\[0\].metric: .*did you mean 'accuracy'",
        ),
    ],
)
def test_a_claim_written_wrongly_is_one_clear_error(claim, message):
    with pytest.raises(ValueError, match=message):
        findings(experiment(findings=[claim]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n.startswith(LARGE) else ()) for n in packaged()],
)
def test_every_claim_of_a_packaged_experiment_names_cells(name):
    whole = load(name)
    for finding in findings(whole):
        made = [result_of(cell, [line(cell, 0.5)], 0.0) for cell in whole.cells]
        assert pairs(finding, made, "accuracy"), finding.claim
        for axis, label in finding.where.items():
            left_out = label["not"] if isinstance(label, dict) else label
            assert left_out in {cell.labels[axis] for cell in whole.cells}, finding.claim


def test_a_reduced_version_is_smaller_and_others_have_none():
    whole, small = load("tnbs"), load("tnbs", reduced=True)
    assert small.cells[0].rounds < whole.cells[0].rounds
    assert len(small.cells[0].seeds) == 1
    assert len(small.cells) < len(whole.cells)
    assert load("tnbs", ["rounds=7"], reduced=True).cells[0].rounds == 7
    with pytest.raises(ValueError, match="quickstart has no reduced version"):
        load("quickstart", reduced=True)


def test_a_sweep_of_numbers_is_drawn_and_one_of_words_is_not(tmp_path):
    picture = tmp_path / "sweep.png"
    assert sweep_plot(picture, experiment(), results(OUTCOME))
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = picture.with_suffix(".svg").read_bytes()
    assert b">test accuracy (%)<" in drawn, "words stay words"
    sweep_plot(picture, experiment(), results(OUTCOME))
    assert picture.with_suffix(".svg").read_bytes() == drawn
    assert not sweep_plot(tmp_path / "no.png", load("quickstart"), [])


@pytest.mark.parametrize(("lines", "panels"), [(11, 2), (14, 13)])
def test_pictures_of_large_grids_say_what_they_leave_out(tmp_path, monkeypatch, lines, panels):
    """Lines have styles beyond ten colours; one that the first panel lacks is in the legend."""
    drawn = []
    monkeypatch.setattr(plots, "write_figure", lambda _, figure: drawn.append(figure))
    (cell, *_), made = experiment().cells, []
    for row, column in itertools.product(range(lines), range(panels)):
        labels = {"attack": f"Attack {column}", "aggregator": f"Rule {row}"}
        own = dataclasses.replace(cell, labels=labels)
        # The worst rules are the first, the worst attacks the last.
        accuracy = 0.9 - 0.01 * column - 0.02 * (lines - row)
        made.append(result_of(own, [line(own, accuracy)], 0.0))
    made = made[1:]
    cells = tuple(result.cell for result in made)
    grid = dataclasses.replace(experiment(sweep={"attack": ["none"]}), cells=cells)
    plots.accuracy_plot(tmp_path / "a.png", grid, made)
    (figure,) = drawn
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    styles = {(each.get_color(), each.get_linestyle()) for each in legend.get_lines()}
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    title = figure.get_suptitle()
    if lines == 11:
        assert sorted(names) == sorted(f"Rule {i}" for i in range(11))
        assert len(titles) == 2
        assert title == "made"
    else:
        assert names == [f"Rule {i}" for i in (*range(4), *range(6, 14))]
        assert titles == [f"Attack {i}" for i in range(1, 13)]
        assert "of 14 lines the 8 best and 4 worst by the worst panel that all are in" in title
        assert "of 13 panels the 12 of lowest mean accuracy" in title
    assert len(styles) == len(names)


def test_lines_are_told_apart_by_the_panels_that_all_are_in():
    """The best does badly where it is alone; of one line nothing ran."""
    (cell, *_), cells = experiment().cells, {}
    for row in range(14):
        for column in ("Shared", "Alone")[: 1 + (row == 13)]:
            accuracy = 0.01 if column == "Alone" else 0.05 * (row + 1)
            cells[f"Rule {row}", column] = result_of(cell, [line(cell, accuracy)], 0.0)
    cells["Rule X", "Shared"] = not_run(cell, "why")
    rows = [f"Rule {row}" for row in (*range(14), "X")]
    drawn, columns, (said,) = plots._told_apart(rows, ["Shared", "Alone"], cells)
    assert drawn == [f"Rule {row}" for row in (*range(4), *range(6, 14))]
    assert columns == ["Shared", "Alone"]
    assert said.startswith("of 14 lines")


def test_tables_have_privacy_and_fairness():
    text = markdown(experiment(), results(OUTCOME))
    assert "Privacy:\n\n- MessagePrivacy protects a client's whole message" in text
    assert "Not guaranteed: clients also send their losses" in text
    assert "What was stated, and what came out:\n\n- noise costs accuracy" in text
    assert "| Median / noise_multiplier 2.0 |" in text
    header, first, second, *_ = (
        row.split(",") for row in summary(experiment(), results(OUTCOME)).split("\n")
    )
    # "inf": no epsilon exists without noise.
    assert first[header.index("epsilon")] == "inf"
    assert float(second[header.index("epsilon")]) == 7.0
    assert float(second[header.index("client_variance")]) == 0.02


def test_the_epsilon_shown_is_the_chosen_candidates():
    tuned = experiment(
        validation=0.1, tune={"privacy.clip": [1.0, 2.0]}, sweep={"aggregator": ["median"]}
    )
    (cell,) = tuned.cells
    lines = [
        line(cell, 0.5, validation_accuracy=0.1, guaranteed_epsilon=3.0) | {"candidate": 0},
        line(cell, 0.6, validation_accuracy=0.9, guaranteed_epsilon=5.0) | {"candidate": 1},
    ]
    (found,) = conclude([result_of(cell, lines, 0.0)])
    assert found.chosen == 1
    assert found.epsilon == 5.0
    assert entries(tuned, [found])[0][-1] == "epsilon"
    # Clients also send their losses: the number does not cover all.
    assert entries(tuned, [found])[1][-1] == "5*"


def test_a_target_that_no_noise_reaches_is_not_applicable(tmp_path):
    grid = experiment(
        privacy={"name": "central", "epsilon": 3.0},
        sweep={"aggregator": [{"name": "mean", "weighted": False}, "median"]},
        fairness=None,
        findings=[],
        rounds=1,
    )
    with RunFolder(tmp_path / "run", grid) as folder:
        good, bad = run_experiment(folder, lambda *_: lambda *_: None)
    assert good.status == "done"
    assert good.epsilon <= 3.0
    assert "cannot be reached: Median" in bad.status


def test_lines_carry_epsilon_by_round_and_the_guarantee_at_the_end():
    cell = experiment().cells[1]
    federation, sizes = cell.federation, np.array([100, 200])
    lines = [{"round": r, "participations": r} for r in (1, 2)] * 2
    lines = [dict(each) for each in lines]
    add_privacy(lines, [Meter(federation, sizes, 2)] * 2)
    add_guarantee(lines, [federation] * 2, [sizes] * 2)
    first, last, *_ = lines
    assert 0 < first["epsilon"] < last["epsilon"]
    assert last["guaranteed_epsilon"] == pytest.approx(last["epsilon"])
    assert last["noise_multiplier"] == 1.0
    assert "guaranteed_epsilon" not in first
    json.dumps(lines)
