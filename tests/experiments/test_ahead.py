"""Cells made ready ahead of their turn: the same results, errors in their turn, no thread left."""

import threading

import pytest

from jaxfl import seeds
from jaxfl.experiments.ahead import AHEAD, Ahead
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.experiments.schema import parse
from jaxfl.programs import keep_in


def test_the_next_cells_are_begun_in_order_and_no_more():
    begun, may_go = [], threading.Event()

    def prepare(index):
        begun.append(index)
        assert may_go.wait(30)
        return f"cell {index}"

    with Ahead((1, 3, 5, 7, 9), prepare) as ahead:
        assert ahead.take(1) is None
        may_go.set()
        assert ahead.take(3) == "cell 3"
        assert ahead.take(4) is None  # not among them
        assert ahead.take(5) == "cell 5"
    assert sorted(begun[:2]) == [3, 5]
    assert set(begun) <= {3, 5, 7, 9}
    assert len(begun) <= 2 + AHEAD


def test_of_a_program_the_first_cell_is_begun():
    begun = []
    with Ahead(range(9), lambda cell: begun.append(cell) or cell, lambda cell: cell // 3) as ahead:
        assert [ahead.take(cell) for cell in range(9)] == [None] * 3 + [
            3,
            None,
            None,
            6,
            None,
            None,
        ]
    assert begun == [3, 6]


def test_an_error_is_raised_in_its_turn_and_no_thread_is_left():
    def prepare(index):
        if index == 1:
            raise ValueError("cell 1 is wrong")
        return index

    before = threading.active_count()
    with Ahead((0, 1, 2), prepare) as ahead:
        ahead.take(0)
        with pytest.raises(ValueError, match="cell 1 is wrong"):
            ahead.take(1)
        assert ahead.take(2) == 2
    assert threading.active_count() == before


@pytest.mark.slow
def test_a_grid_made_ready_ahead_writes_the_same_bytes(tmp_path):
    table = {
        "rounds": 2,
        "evaluate_every": 1,
        "byzantine": 1,
        "model": "softmax",
        "optimizer": "sgd",
        "data": {
            "name": "synthetic",
            "clients": 5,
            "samples": 40,
            "features": 4,
            "classes": 2,
        },
        "attack": "sign_flip",
        "sweep": {"checkpoint_every": [1, 2, 3, 4]},
    }
    logs = []
    for name, kept in (("plain", None), ("cold", tmp_path / "kept"), ("warm", tmp_path / "kept")):
        seeds.over_seeds.cache_clear()
        keep_in(kept)
        told = []
        try:
            with RunFolder(tmp_path / name, parse("grid", table)) as folder:
                watch = lambda _, at, done: lambda *_: told.append(at)  # noqa: E731, B023
                results = list(run_experiment(folder, watch))
        finally:
            keep_in(None)
            seeds.over_seeds.cache_clear()
        assert [result.status for result in results] == ["done"] * 4
        assert told == [0, 0, 1, 1, 2, 2, 3, 3]
        logs.append((tmp_path / name / "rounds.jsonl").read_bytes())
    assert logs[0] == logs[1] == logs[2]
    # The rounds, the evaluation: learning rates share a program.
    assert len(list((tmp_path / "kept").glob("*.program"))) == 2
