"""Groups of cells on the workers of a Ray cluster: the same bytes, also where one is lost."""

import importlib.util
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from helpers import run_until
from typer.testing import CliRunner

from jaxfl.cli import app
from jaxfl.experiments import schema
from jaxfl.experiments.cluster import Cluster
from jaxfl.experiments.finished import read_results

TABLE = {
    "rounds": 4,
    "evaluate_every": 2,
    "byzantine": 1,
    "model": "softmax",
    "optimizer": "sgd",
    "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
    "sweep": {
        "aggregator": ["mean", {"name": "krum", "f": 3}, "median"],
        "optimizer.learning_rate": [0.1, 0.3],
        "seed": [0, 1],
    },
}
ROOT = Path(__file__).parent.parent.parent
WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


# Ray starts its own programs, at once, by fork and exec, which JAX's warning is not about.
FORKS = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@FORKS
@WITH_RAY
@pytest.mark.slow
def test_a_grid_on_two_workers_writes_the_bytes_of_one_run_here(tmp_path):
    table = tmp_path / "grid.toml"
    table.write_text(tomli_w.dumps(TABLE))
    run_until(tmp_path / "here", schema.load(str(table)))
    words = ["run", str(table), "--out", str(tmp_path / "away"), "--quiet", "--launcher", "ray"]
    away = CliRunner().invoke(app, words)
    assert away.exit_code == 0, away.output
    one, other = (tmp_path / out / "rounds.jsonl" for out in ("here", "away"))
    assert one.read_bytes() == other.read_bytes()
    assert [r.status == "done" for r in read_results(tmp_path / "away")[1]] == [
        *(True, True, False, False, True, True)
    ]


DIES = """
import os, signal
from pathlib import Path
from jaxfl import Median

class Dies(Median):
    \"""A median that takes the first process with it that is not the test's.\"""

    def check(self, clients):
        begun = Path(os.environ["BEGUN"])
        if os.environ["TEST"] != str(os.getpid()) and not begun.exists():
            begun.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().check(clients)
"""


@FORKS
@WITH_RAY
@pytest.mark.slow
def test_a_grid_whose_worker_is_killed_writes_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "dies_once.py").write_text(DIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")  # for the workers
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    monkeypatch.setenv("TEST", str(os.getpid()))
    rules = {"aggregator": ["mean", {"name": "dies_once:Dies"}], "seed": [0, 1]}
    table = tmp_path / "grid.toml"
    table.write_text(tomli_w.dumps(TABLE | {"sweep": rules}))
    run_until(tmp_path / "here", schema.load(str(table)))
    assert not (tmp_path / "begun").exists()
    words = ["run", str(table), "--out", str(tmp_path / "away"), "--quiet", "--launcher", "ray"]
    away = CliRunner().invoke(app, words)
    assert away.exit_code == 0, away.output
    assert (tmp_path / "begun").exists(), "no worker was killed"
    one, other = (tmp_path / out / "rounds.jsonl" for out in ("here", "away"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("more", [[], ["--coordinator", "127.0.0.1:1", "--processes", "2"]])
def test_one_line_for_an_unknown_launcher(more):
    done = CliRunner().invoke(app, ["run", "quickstart", "--launcher", "slrum", *more])
    assert isinstance(done.exception, ValueError)
    assert re.fullmatch("--launcher: .*slrum.*local, ray.*", str(done.exception))


def answer(job):
    """Of a worker: what the job asks for, or its own death the first time that it is run."""
    if job == "bad":
        raise ValueError("rounds must be at least 1; got 0")
    if job == "worse":
        raise KeyError(job)
    if job == "long":
        time.sleep(600)
    begun = Path(job)
    first = not begun.exists()
    with begun.open("a") as file:
        file.write("begun\n")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@FORKS
@WITH_RAY
@pytest.mark.slow
def test_lost_workers_errors_and_the_wish_to_stop(tmp_path, monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")  # for the workers
    path = tmp_path / "job"
    with Cluster(answer, dict(enumerate([str(path), "bad", "worse", "long"]))) as workers:
        assert isinstance(workers.take(0, lambda: False), int)
        assert path.read_text() == "begun\n" * 2
        with pytest.raises(ValueError, match="rounds must be at least 1"):
            workers.take(1, lambda: False)
        with pytest.raises(RuntimeError, match="job 3: KeyError"):
            workers.take(2, lambda: False)
        assert workers.take(3, lambda: True) is None


def test_one_line_where_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"launcher ray is not installed; pip install 'jaxfl\[ray\]'"
    ):
        Cluster(answer, {0: "bad"}).__enter__()


def test_one_line_where_no_cluster_answers(monkeypatch):
    class Nobody:
        @staticmethod
        def init(**_):
            raise ConnectionError("no GCS")

    monkeypatch.setitem(sys.modules, "ray", Nobody)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 10\.0\.0\.1:6379"):
        Cluster(answer, {0: "bad"}).__enter__()
