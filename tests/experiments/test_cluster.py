"""Groups of cells on the workers of a Ray cluster: the same bytes, also where one is lost."""

import functools
import importlib.util
import os
import re
import signal
import sys
import time
import types
from pathlib import Path

import jax
import pytest
import tomli_w
from helpers import run_until
from typer.testing import CliRunner

from jaxfl import machine
from jaxfl.cli import app
from jaxfl.commands.common import reason
from jaxfl.experiments import cluster, schema
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


class FakeRay:
    """Of Ray what a cluster calls, with jobs done here, and errors as told."""

    def __init__(self, starts=None, fails=None):
        self.starts, self.fails, self.asked = starts, fails, {}
        errors = {"RayTaskError": (Exception,), "RayError": (Exception,)}
        kinds = {name: type(name, bases, {}) for name, bases in errors.items()}
        kinds["OutOfMemoryError"] = type("OutOfMemoryError", (kinds["RayError"],), {})
        self.exceptions = types.SimpleNamespace(**kinds)

    def init(self, **_):
        if self.starts is not None:
            raise self.starts

    def cluster_resources(self):
        return {"CPU": 4.0}

    def remote(self, **asked):
        self.asked = asked
        return lambda function: types.SimpleNamespace(remote=functools.partial(self.do, function))

    def do(self, function, *given):
        return functools.partial(function, *given)

    def wait(self, begun, timeout):
        return begun, []

    def get(self, job):
        if self.fails is None:
            return job()
        name, cause = self.fails
        error = getattr(self.exceptions, name)("said")
        error.cause = cause
        raise error

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "b")

    def nodes(self):
        many = {"CPU": 4.0, "memory": 4.0 * 2**30}
        return [{"NodeID": "a", "Resources": {}}, {"NodeID": "b", "Resources": many}]

    def shutdown(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def put(**told):
        ray = FakeRay(**told)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return put


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no GCS"), "no Ray cluster answers at auto"),
        (RuntimeError("Version mismatch:\n  Ray: 2.1"), "Ray at auto: Version mismatch: Ray: 2.1"),
    ],
)
def test_one_line_where_ray_does_not_start(fake, monkeypatch, error, said):
    fake(starts=error)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match=said):
        Cluster(answer, {0: "bad"}).__enter__()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_one_line_where_no_cluster_answers(fake, monkeypatch, scheme):
    fake(starts=AssertionError("Ray was asked, which waits for minutes"))
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 within 0.01 s"):
        Cluster(answer, {0: "bad"}).__enter__()


@pytest.mark.parametrize(
    ("fails", "kind", "line"),
    [
        (("RayError", None), ConnectionError, "job 1 lost its worker 4 times: RayError"),
        (("OutOfMemoryError", None), MemoryError, "out of memory: lower client_chunk"),
        (("RayTaskError", MemoryError()), MemoryError, "out of memory: lower client_chunk"),
        (
            ("RayTaskError", RuntimeError("RESOURCE_EXHAUSTED: Out of memory")),
            MemoryError,
            "out of memory: lower client_chunk",
        ),
        (("RayTaskError", KeyError("x")), RuntimeError, None),
    ],
)
def test_what_befalls_a_job_is_one_line_unless_it_is_a_fault_of_ours(fake, fails, kind, line):
    fake(fails=fails)
    with Cluster(answer, {0: "bad"}) as workers, pytest.raises(kind) as raised:
        workers.take(0, lambda: False)
    said = reason(raised.value)
    assert said is None if line is None else str(said).startswith(line)


def memory_here(_):
    return machine.process_memory()


def test_workers_share_their_node_s_memory_and_get_what_the_command_sets(fake, monkeypatch):
    ray = fake()
    monkeypatch.setattr(machine, "_agreed", None)
    monkeypatch.setattr(cluster, "process_memory", lambda: 2**40)
    monkeypatch.setenv("XLA_FLAGS", "--some")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with Cluster(memory_here, {0: "job"}) as workers:
        assert workers.take(0, lambda: False) == 2**30 - machine.PROGRAM_BYTES
    assert ray.asked["runtime_env"] == {"env_vars": {"XLA_FLAGS": "--some"}}
    assert ray.asked["num_cpus"] == 1


def test_the_process_that_was_started_leaves_accelerators_to_the_workers(
    fake, monkeypatch, tmp_path
):
    fake(starts=ConnectionError())
    update, changed = jax.config.update, {}

    def see(name, value):
        changed[name] = value
        if name != "jax_platforms":
            update(name, value)

    monkeypatch.setattr(jax.config, "update", see)
    table = tmp_path / "grid.toml"
    table.write_text(tomli_w.dumps(TABLE))
    words = ["run", str(table), "--out", str(tmp_path / "run"), "--quiet", "--launcher", "ray"]
    done = CliRunner().invoke(app, words)
    assert "no Ray cluster answers at this machine" in str(done.exception)
    assert changed["jax_platforms"] == "cpu"
