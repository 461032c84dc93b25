"""Cells that differ in numbers only run as one program, and give what each gives alone."""

import copy
import json

import numpy as np
import pytest

from jaxfl.attacks.branches import Branches
from jaxfl.experiments import groups, schema
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.groups import Group
from jaxfl.experiments.runner import run_experiment
from jaxfl.experiments.running import Interrupted

TABLE = {
    "rounds": 4,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "byzantine": 1,
    "model": "softmax",
    "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
    "attack": "sign_flip",
    "optimizer": "sgd",
    # Krum cannot tell 3 of 5: two cells that do not apply lie between the others.
    "sweep": {
        "optimizer.learning_rate": [0.1, 0.3],
        "aggregator": ["mean", {"name": "krum", "f": 3}, {"name": "trimmed_mean", "f": 1}],
        "seed": [0, 1],
    },
}
TOGETHER = [[0, 3], [1], [2, 5], [4]]


def grid(**changes):
    return schema.parse("grid", copy.deepcopy(TABLE) | changes)


def run(path, experiment, *, resume=False, stop=lambda: False):
    told = []

    def watch(groups, at, rounds):
        told.append((groups[at].indices, rounds))
        return lambda *_: None

    with RunFolder(path, experiment, resume=resume) as folder:
        return list(run_experiment(folder, watch, stop)), told


def logged(path):
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    return {(line["cell"], line["seed"], line["round"]): line for line in lines}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("grouped")
    results, told = run(path, grid())
    return path, results, told


def test_what_runs_together(whole):
    path, results, told = whole
    assert told == [((0, 3), 0), ((2, 5), 0)]
    assert json.loads((path / "progress.json").read_text())["groups"] == TOGETHER
    ran = [result.status == "done" for result in results]
    assert ran == [True, False, True, True, False, True]


def test_each_cell_gives_what_it_gives_alone(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "MOST_BYTES", 0)
    _, told = run(tmp_path, grid())
    assert told == [((i,), 0) for i in (0, 2, 3, 5)]
    together, alone = logged(whole[0]), logged(tmp_path)
    assert together.keys() == alone.keys()
    assert len(alone) == 4 * 2 * 4
    for place, line in alone.items():
        mine = together[place]
        assert mine.keys() == line.keys()
        for name, value in line.items():
            if name != "params_sha256":
                number = isinstance(value, float)
                assert mine[name] == (pytest.approx(value, rel=1e-4, abs=1e-6) if number else value)


SEVERAL = {"byzantine": [0, 1, 2, 3], "aggregator": ["median"], "seed": [0, 1]}


def together_and_alone(path, experiment, monkeypatch):
    """Which groups ran, once all numbers agree with those of each cell alone; no cell's do."""
    _, told = run(path / "together", experiment)
    monkeypatch.setattr(groups, "MOST_BYTES", 0)
    run(path / "alone", experiment)
    together, alone = logged(path / "together"), logged(path / "alone")
    assert together.keys() == alone.keys()
    for place, line in alone.items():
        for name, value in line.items():
            if isinstance(value, float):
                assert together[place][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    cells = range(len(experiment.cells))
    assert len({alone[cell, 0, TABLE["rounds"]]["params_sha256"] for cell in cells}) == len(cells)
    return [indices for indices, _ in told]


@pytest.mark.parametrize(
    "attack",
    [{"name": "gaussian", "std": 0.5}, pytest.param("label_flip", marks=pytest.mark.slow)],
)
def test_numbers_of_attackers_are_one_program(tmp_path, monkeypatch, attack):
    experiment = grid(sweep=SEVERAL, attack=attack, data=TABLE["data"] | {"clients": 7})
    # Without an attacker no row is crafted: another program.
    assert together_and_alone(tmp_path, experiment, monkeypatch) == [(0,), (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        "byz_mean",
        "fang_krum",
        {"name": "optimized_ipm", "evaluations": 4},
        {"name": "mixed", "attacks": ["sign_flip", "label_flip", "ipm"]},
    ],
    ids=str,
)
def test_numbers_of_attackers_are_one_program_for_attacks_that_count_them(
    tmp_path, monkeypatch, attack
):
    changes = {"participation": {"name": "uniform", "fraction": 0.6}, "attack": attack}
    data = TABLE["data"] | {"clients": 10}
    experiment = grid(sweep=SEVERAL | {"byzantine": [1, 2, 4]}, data=data, **changes)
    assert together_and_alone(tmp_path, experiment, monkeypatch) == [(0, 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "values", "parts"),
    [
        ("privacy.noise_multiplier", [0.5, 2.0], {"privacy": {"name": "message", "clip": 1.0}}),
        ("fairness.q", [0.5, 2.0], {"fairness": {"name": "qffl", "lipschitz": 10.0}}),
        ("attack.scale", [0.5, 2.0], {"attack": {"name": "ipm"}}),
    ],
)
def test_noise_fairness_and_strengths_are_one_program(tmp_path, monkeypatch, axis, values, parts):
    experiment = grid(sweep={axis: values, "seed": [0, 1]}, **parts)
    assert together_and_alone(tmp_path, experiment, monkeypatch) == [(0, 1)]


def test_a_number_of_attackers_in_every_round_is_a_program_of_its_own():
    changes = {"byzantine_per_round": 1, "participation": {"name": "uniform", "fraction": 0.6}}
    sweep = {"byzantine": [1, 2], "aggregator": ["median"], "seed": [0]}
    cells = grid(sweep=sweep, **changes).cells
    assert groups.grouped(cells, {0, 1}, lambda cell: cell.load()) == [[0], [1]]


def test_a_group_that_was_stopped_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run(tmp_path, grid(), stop=lambda: True)
    # The groups are those that it was begun with, whatever would be chosen now.
    monkeypatch.setattr(groups, "MOST_BYTES", 0)
    _, told = run(tmp_path, grid(), resume=True)
    assert told == [((0, 3), 2), ((2, 5), 0)]
    assert (tmp_path / "rounds.jsonl").read_bytes() == (whole[0] / "rounds.jsonl").read_bytes()


def test_results_are_read_back_in_the_order_of_the_grid(whole):
    _, results = read_results(whole[0])
    for mine, theirs in zip(results, whole[1], strict=True):
        np.testing.assert_array_equal(mine.test, theirs.test)


def test_a_run_begun_cell_by_cell_goes_on_cell_by_cell(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, grid(), stop=lambda: True)
    path = tmp_path / "progress.json"
    progress = json.loads(path.read_text())
    begun = {**progress, "groups": []}
    path.write_text(json.dumps(begun))
    with RunFolder(tmp_path, grid(), resume=True) as folder:
        assert folder.arrange(TOGETHER) == [[i] for i in range(6)]


@pytest.mark.parametrize("order", [[[0, 3], [1]], [[0, 0]], "all", [[]], [[0.5]]])
def test_groups_that_no_run_writes_are_refused(tmp_path, order):
    with pytest.raises(Interrupted):
        run(tmp_path, grid(), stop=lambda: True)
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "groups": order}))
    with pytest.raises(ValueError, match=r"progress.*damaged"):
        run(tmp_path, grid(), resume=True)


def test_other_data_models_and_parts_are_programs_of_their_own():
    table = {
        "sweep": {
            "model": ["softmax", {"name": "mlp", "hidden": [4]}],
            "attack": ["sign_flip", {"name": "ipm", "scale": 2.0}, {"name": "ipm", "scale": 3.0}],
        }
    }
    experiment = grid(**table)
    together = groups.grouped(experiment.cells, range(6), lambda cell: cell.load())
    assert together == [[0], [1, 2], [3], [4, 5]]


OWN = """
from jaxfl.data import IID
from jaxfl.models import Softmax


class Way(IID):
    pass


class Net(Softmax):
    pass
"""


@pytest.mark.parametrize(("axis", "name"), [("model", "Net"), ("data.partition", "Way")])
def test_classes_of_one_name_in_two_modules_are_two_programs(tmp_path, monkeypatch, axis, name):
    modules = f"one_of_{name}", f"two_of_{name}"
    for module in modules:
        (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = grid(sweep={axis: [f"{module}:{name}" for module in modules]})
    assert groups.grouped(experiment.cells, range(2), lambda cell: cell.load()) == [[0], [1]]


ATTACKS = [
    "none",
    "label_flip",
    {"name": "backdoor", "size": 2},
    {"name": "combined", "data": "label_flip", "message": "sign_flip"},
    {"name": "neurotoxin", "attack": "label_flip"},
    "free_rider",
    "poisoned_fl",
    {"name": "ipm", "scale": 0.5},
    {"name": "ipm", "scale": 10.0},
    "alie",
    "noise",
    {"name": "agr_tailored", "evaluations": 4},
]
FEW = ATTACKS[1], ATTACKS[4], ATTACKS[6], ATTACKS[8]
DIGITS = {"data": {"name": "digits", "clients": 6}, "byzantine": 2, "rounds": 4}


@pytest.mark.parametrize("attacks", [FEW, pytest.param(ATTACKS, marks=pytest.mark.slow)], ids=len)
def test_attacks_that_share_a_program_do_what_each_does_alone(tmp_path, attacks):
    rates = [0.1, 0.3]
    sweep = {"attack": list(attacks), "aggregator": ["trimmed_mean"], "seed": [0, 1]}
    tune = {"tune": {"optimizer.learning_rate": rates}, "validation": 0.1}
    alone = grid(sweep=sweep, **DIGITS, **tune)
    together = grid(sweep=sweep, attacks_share_program=True, **DIGITS, **tune)
    traced = []
    with pytest.MonkeyPatch.context() as patch:
        before = Branches.craft
        patch.setattr(Branches, "craft", lambda *given: (traced.append(given), before(*given))[1])
        _, told = run(tmp_path / "together", together)
    assert len(told) == len(attacks)
    # Traced for the memory and to be compiled: once for all attacks.
    assert 1 <= len(traced) <= 2
    run(tmp_path / "alone", alone)
    mine, each = logged(tmp_path / "together"), logged(tmp_path / "alone")
    assert mine.keys() == each.keys()
    assert len({each[cell, 0, 4]["params_sha256"] for cell in range(len(attacks))}) == len(attacks)
    for place, line in each.items():
        for name, value in line.items():
            if isinstance(value, float):
                assert mine[place][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def shared(attacks, *, sweep=None, **changes):
    """Which attacks the program of each cell has, as names; None: the cell's alone."""
    axes = {"attack": attacks, "aggregator": ["median"], **(sweep or {})}
    cells = grid(sweep=axes, **(DIGITS | changes)).cells
    found = [c.federation.attack for c in groups.sharing(cells, range(len(cells)))]
    return [
        [type(part).__name__ for part in attack.attacks] if isinstance(attack, Branches) else None
        for attack in found
    ]


def test_which_attacks_share_a_program():
    few = ["sign_flip", "label_flip"]
    both = ["SignFlip", "LabelFlip"]
    assert shared(few) == [both] * 2
    # Of attacks that are the same, one; another number of attackers is another program.
    assert shared(few, sweep={"optimizer.learning_rate": [0.1, 0.2]}) == [both] * 4
    assert shared(few, sweep={"byzantine": [1, 2]}) == [both] * 4
    # What learns, or cannot be streamed where others can, is apart.
    rare = {"name": "a3fl", "size": 2}
    assert shared([rare, *few]) == [None, both, both]
    assert shared([*few, "min_max", "fang_trim"])[2:] == [["MinMax", "FangTrim"]] * 2
    assert shared(few, privacy={"name": "message", "clip": 1.0}) == [None] * 2
    assert shared(few[:1]) == [None]


def test_programs_are_counted_by_the_number_of_attackers():
    cells = grid(sweep={"attack": ["sign_flip"], "byzantine": [1, 2]}, **DIGITS).cells
    alone = {Group((i,), (cell,)).program for i, cell in enumerate(cells)}
    assert len(alone) == 2
    assert Group((0, 1), cells).program not in alone
