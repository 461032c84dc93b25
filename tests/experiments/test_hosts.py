"""One run over two processes of this machine, by the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from helpers import run_until
from typer.testing import CliRunner

import jaxfl_launch
from jaxfl.cli import app
from jaxfl.experiments import hosts, schema
from jaxfl.experiments.addresses import check_free
from jaxfl.experiments.running import Interrupted
from jaxfl.machine import PROGRAM_BYTES

TABLE = {
    "rounds": 6,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "byzantine": 2,
    "model": "softmax",
    "optimizer": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9},
    "attack": "alie",
    "data": {"name": "synthetic", "clients": 9, "samples": 120, "features": 4, "classes": 3},
    "sweep": {
        "aggregator": ["multi_krum", {"name": "pipeline", "pre": ["nnm"], "rule": "median"}],
        "seed": [0, 1],
    },
}


ROOT = Path(__file__).parent.parent.parent
DEVICES = "--xla_force_host_platform_device_count="
RIGHT = f"rounds={TABLE['rounds']}"
BEGUN = []
"""Processes of the test that runs."""


def test_the_launcher_knows_what_a_lost_process_says():
    assert jaxfl_launch.LOST == hosts.LOST


@pytest.mark.parametrize("level", ["W", "E", "F"])
def test_what_the_service_says_of_the_lost_is_not_for_users(level):
    """A user reads one line of ours, and all of what XLA says of other things."""
    said = jaxfl_launch.Said()
    lines = {
        "W1129 14:59:39.564849   16282 cpu_compiler.cc:9] Slow compile\n": True,
        "as it is long\n": True,
        f"{level}1129 14:59:39.564849   16282 preemption_sync_manager.cc:147] Failed:\n": False,
        "Additional GRPC error information from the coordination service\n": False,
        f"jaxfl: error: {hosts.LOST}; --resume goes on with the run\n": True,
        "I1129 14:59:39.564849   16282 coordination_service.cc:7] gone\n": False,
        "I1129 14:59:39.564849   16282 cpu_compiler.cc:7] compiled\n": True,
    }
    assert [said.is_for_users(line) for line in lines] == list(lines.values())
    assert said.lost
    assert said.ended == (level == "F")


def start(folder, *words, devices=1):
    (folder / "grid.toml").write_text(tomli_w.dumps(TABLE))
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}{devices}".strip()
    return subprocess.Popen(
        [sys.executable, "-m", "jaxfl_launch", "run", "grid.toml", *words],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    for process in BEGUN:
        process.terminate()  # and with it the one that it watches over
        process.terminate()
        process.communicate(timeout=60)
    BEGUN.clear()


def meeting():
    """The words for two processes that meet at a free port, but for the number of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return ("--coordinator", address, "--processes", "2", "--process-id")


def begin_two(folder, *words, own=(RIGHT, RIGHT)):
    """Two processes of one run, each with a setting of its own."""
    ways = meeting()
    pair = [start(folder, *words, "--set", own[i], *ways, str(i)) for i in range(2)]
    BEGUN.extend(pair)
    return pair


def end(process, seconds=240):
    """Exit code and what was said, but for what Gloo says of itself."""
    output, _ = process.communicate(timeout=seconds)
    said = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    return process.returncode, "\n".join(said)


def logged(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def assert_alike(one, other):
    """The same numbers to rounding, and exactly the same choices."""
    assert len(one) == len(other) == 2 * 2 * TABLE["rounds"]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, float):
                np.testing.assert_allclose(b[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
            elif not key.endswith("sha256"):
                assert b[key] == value, key


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory):
    """Processes that wait for another while other tests run: what they end with, and when.

    One for a first process that nobody started, one as the first for a second that never comes.

    Seconds are without those of an equal process that has nothing to wait for: on a busy machine
    the start alone takes long.
    """
    words = ("--coordinator", "127.0.0.1:1", "--processes", "2", "--process-id")
    folder, begun = tmp_path_factory.mktemp("unanswered"), time.monotonic()
    code, _ = end(start(folder, *words, "2"))  # a number that it cannot have
    assert code == 2
    started = time.monotonic()

    def wait(process):
        return *end(process), time.monotonic() - started - (started - begun)

    alone = [start(folder, *words, "1"), start(tmp_path_factory.mktemp("first"), *meeting(), "0")]
    with ThreadPoolExecutor(2) as pool:
        yield [pool.submit(wait, process) for process in alone]


def run_here(folder, **settings):
    """Runs what the pairs run, in the process of the test."""
    table = folder / "grid.toml"
    table.write_text(tomli_w.dumps(TABLE))
    return run_until(folder / "run", schema.load(str(table)), **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process logs."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder)
    return logged(folder / "run")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The folder that two processes ran in, and how each ended."""
    folder = tmp_path_factory.mktemp("two")
    return folder, [end(process) for process in begin_two(folder, "--out", "run")]


@pytest.mark.slow
@pytest.mark.usefixtures("unanswered")
def test_two_processes_give_what_one_gives(whole, by_two):
    folder, ends = by_two
    assert [code for code, _ in ends] == [0, 0], ends
    assert "MultiKrum" in ends[0][1], "the first process shows the table"
    assert ends[1][1].strip() == "", "the other says nothing"
    assert_alike(whole, logged(folder / "run"))


def wait_for_a_checkpoint(folder, after=0):
    path, until = folder / "progress.json", time.monotonic() + 200
    while time.monotonic() < until:
        if path.exists() and json.loads(path.read_text())["round"] > after:
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")


def children(parent):
    """Of the process, which watches over the one that runs."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_ends_the_other_with_one_line(tmp_path, killed):
    pair = begin_two(tmp_path, "--out", "run", "--quiet", own=["rounds=20000"] * 2)
    wait_for_a_checkpoint(tmp_path / "run")
    for child in children(pair[killed].pid):
        os.kill(child, signal.SIGKILL)
    code, said = end(pair[1 - killed], 60)
    assert code == 2, said
    start = f"jaxfl: error: {hosts.LOST}; --resume goes on with the run"
    assert said.strip().splitlines()[-1].startswith(start)
    assert len(said.strip().splitlines()) == 1, said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_run_goes_on_with_other_processes_than_it_began_with(whole, tmp_path, sent):
    """Stopped on one and on two, by the signal of either, it ends as if it never had been."""
    with pytest.raises(Interrupted):
        run_here(tmp_path, stop_after=1)
    pair = begin_two(tmp_path, "--out", "run", "--quiet", "--resume")
    wait_for_a_checkpoint(tmp_path / "run", after=2)
    if sent == signal.SIGKILL:
        for child in children(pair[1].pid):
            os.kill(child, sent)
    else:
        pair[1].send_signal(sent)
    ends = [end(process) for process in pair]
    stopped = [2, 128 + signal.SIGKILL] if sent == signal.SIGKILL else [130, 130]
    assert [code for code, _ in ends] in (stopped, [0, 0]), ends
    run_here(tmp_path, resume=True)
    assert_alike(whole, logged(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (8, 3)])
def test_a_killed_run_goes_on_with_another_number_of_devices(whole, tmp_path, before, after):
    words = ("--out", "run", "--quiet", "--set", RIGHT, "--devices")
    process = start(tmp_path, *words, str(before), devices=before)
    BEGUN.append(process)
    wait_for_a_checkpoint(tmp_path / "run")
    process.kill()
    assert end(process)[0] in (-signal.SIGKILL, 0)
    process = start(tmp_path, *words, str(after), "--resume", devices=after)
    BEGUN.append(process)
    assert end(process)[0] == 0
    assert_alike(whole, logged(tmp_path / "run"))


@pytest.mark.slow
def test_processes_that_do_not_belong_together(tmp_path):
    pair = begin_two(tmp_path, "--out", "other", "--quiet", own=["rounds=4", "rounds=5"])
    for process in pair:
        code, said = end(process)
        assert code == 2
        assert "processes [1] run another experiment" in said


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Two here, which leave 3 GiB together, and one on a machine with 5 GiB."""
    agreed, gib = [], 2**30
    sizes = {"here": 3 * gib - PROGRAM_BYTES, "there": 5 * gib - PROGRAM_BYTES}

    def gathered(mine):
        assert mine[1] == sizes["here"] >> 20
        return np.stack([mine, np.asarray([mine[0] + 1, sizes["there"] >> 20], np.int32), mine])

    monkeypatch.setattr(hosts, "process_memory", lambda: sizes["here"])
    monkeypatch.setattr(hosts, "agree_on", agreed.append)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gathered)
    hosts._memory_agreed_on()
    assert agreed == [1.5 * gib - PROGRAM_BYTES]


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"--coordinator: port {port} .* is in use"):
            hosts.connect(f"127.0.0.1:{port}", 2, 0)
    check_free(port, "--coordinator")


@pytest.mark.parametrize("grid", ["sweep", "tune"])
def test_axes_in_another_order_are_another_experiment(tmp_path, monkeypatch, grid):
    """Their cells and candidates are numbered otherwise."""
    axes = {"optimizer.learning_rate": [0.1, 0.2], "optimizer.momentum": [0.5, 0.9]}
    told = []

    def compare(digest, _):
        told.append(digest)
        raise ValueError("stop")

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "_check_equal", compare)
    for order in (axes.items(), axes.items(), reversed(axes.items())):
        experiment = schema.parse("order", TABLE | {"validation": 0.2, grid: dict(order)})
        with (
            pytest.raises(ValueError, match="stop"),
            hosts.folder_of(tmp_path, experiment, resume=False, force=False),
        ):
            pass
    assert told[0] == told[1] != told[2]


@pytest.mark.slow
def test_another_experiment_is_not_overwritten(by_two):
    folder, _ = by_two
    before = logged(folder / "run")
    for process in begin_two(folder, "--out", "run", "--quiet", own=["rounds=5"] * 2):
        code, said = end(process)
        assert code == 2
        assert "holds another experiment" in said
    assert logged(folder / "run") == before


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer(unanswered):
    code, said, seconds = unanswered[0].result()
    assert seconds < 55, "a minute, with the five seconds that the start takes"
    assert code == 2
    assert "no process of the run answers at 127.0.0.1:1 within 45 s" in said.splitlines()[-1]


@pytest.mark.slow
def test_others_that_never_come(unanswered):
    code, said, seconds = unanswered[1].result()
    assert seconds < 55
    assert code == 2
    assert "another process of the run is gone, or did not come" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--coordinator", "nowhere"), "--coordinator must be HOST:PORT; got 'nowhere'"),
        (("--coordinator", "h:0", "--processes", "2"), "--coordinator must be HOST:PORT"),
        (("--coordinator", "h:1"), "--processes must be an integer, at least 2; got 1"),
        (
            ("--coordinator", "h:1", "--processes", "2", "--process-id", "2"),
            "--process-id must be an integer, at least 0 and at most 1; got 2",
        ),
        (("--processes", "2"), "--processes and --process-id need --coordinator HOST:PORT"),
    ],
)
def test_wrong_words_are_refused(words, message):
    result = CliRunner().invoke(app, ["run", "quickstart", *words])
    assert message in str(result.exception)
