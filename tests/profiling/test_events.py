"""How time is divided among instructions that run at once, and what a trace shows of it."""

import itertools
from types import SimpleNamespace as Plain

import numpy as np
import pytest

from jaxfl.profiling.costs import Cost
from jaxfl.profiling.events import Executions, executions
from jaxfl.profiling.trace import spans


def runs(*intervals, names=("a", "b")):
    index, start, end = zip(*intervals, strict=True)
    return Executions(names, np.array(index), np.array(start, float), np.array(end, float))


def profile(*lines):
    """What ``ProfileData`` looks like; events are (name, start and length in nanoseconds)."""

    def event(name, start, length):
        return Plain(name=name, start_ns=start, duration_ns=length)

    found = [Plain(events=[event(*e) for e in line]) for line in lines]
    return Plain(planes=[Plain(lines=found)])


def test_time_is_divided_among_what_runs_at_once():
    found = runs((0, 0, 4), (1, 2, 6)).shares()
    assert found == {"a": 3.0, "b": 3.0}  # 2 alone, then half of 2; half of 2, then 2 alone


def test_idle_time_belongs_to_what_starts_next():
    found = runs((0, 0, 1), (1, 3, 4), (0, 4, 5)).shares()
    assert found == {"a": 2.0, "b": 3.0}


def test_the_sum_is_the_time_from_the_first_start_to_the_last_end():
    random = np.random.default_rng(0)
    start = np.sort(random.uniform(0, 10, 50))
    end = start + random.exponential(0.3, 50)
    names = tuple("abcdefg")
    found = Executions(names, random.integers(0, 7, 50), start, end)
    np.testing.assert_allclose(sum(found.shares().values()), end.max() - start[0])
    assert sum(found.counts().values()) == 50
    assert set(found.shares()) == set(names)


def test_a_run_of_no_length_costs_nothing_but_its_start():
    assert runs((0, 0, 1), (1, 2, 2)).shares() == {"a": 1.0, "b": 1.0}


def test_events_of_other_names_are_left_out_and_lengths_are_their_own():
    found = executions(profile([("a", 10, 5), ("else", 0, 99)], [("b", 20, 1)]), ["a", "b", "c"])
    assert found.counts() == {"a": 1, "b": 1, "c": 0}
    np.testing.assert_allclose(found.end - found.start, [5e-9, 1e-9])


def test_an_instruction_that_others_work_on_ends_where_its_mark_says():
    first = [("a", 10, 2), ("a", 50, 2), ("b", 30, 5), ("end: b", 36, 0)]
    found = executions(profile(first, [("end: a", 28, 0), ("end: a", 60, 0)]), ["a", "b"])
    assert found.index.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.start * 1e9, [10, 30, 50])
    np.testing.assert_allclose(found.end * 1e9, [28, 36, 60])


def test_no_events_are_no_runs():
    found = executions(profile([]), ["a"])
    assert found.shares() == {"a": 0.0}
    assert found.start.size == 0


def test_a_trace_shows_stretches_of_one_phase():
    costs = {
        name: Cost(phase, 0, 0, False, False)
        for name, phase in (("a", "local work"), ("b", "local work"), ("c", "attack"))
    }
    found = spans(runs((0, 0, 1), (1, 1, 2), (2, 3, 5), (0, 4, 6), names=tuple("abc")), costs)
    shown = [(x["name"], x["ts"], x["dur"]) for x in found if x["ph"] == "X"]
    assert shown == [("local work", 0, 3e6), ("attack", 3e6, 1e6), ("local work", 4e6, 2e6)]
    # One after another on one row: a viewer nests what overlaps.
    assert all(a[1] + a[2] <= b[1] for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize("length", [1, 3])
def test_the_last_stretch_ends_with_the_last_run(length):
    costs = {"a": Cost("attack", 0, 0, False, False), "b": Cost("record", 0, 0, False, False)}
    found = spans(runs((0, 0, 9), (1, 1, 1 + length)), costs)
    assert [x["dur"] for x in found if x["ph"] == "X"] == [1e6, 8e6]
