"""A real run of Flower: its servers and its clients as processes of their own, on the loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flower_app import CLIENTS, write_app

import jaxfl

PATIENCE = 240
"""Seconds for a run of three rounds, in which Flower starts a process for every message."""


def free_port():
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return at.getsockname()[1]


@contextlib.contextmanager
def running(command, log, **given):
    """A process and all that it starts, stopped at the end."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **given
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs the app with a strategy on one server and four clients; what came of it."""
    pytest.importorskip("flwr", reason="Flower is not installed (extra flower)")
    folder = tmp_path_factory.mktemp("flower")
    data = jaxfl.data.digits()
    inputs = np.concatenate([data.inputs, data.test_inputs]).reshape(-1, 64)
    write_app(folder, inputs, np.concatenate([data.labels, data.test_labels]))
    scripts, port = Path(sys.executable).parent, free_port()
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    path = [str(Path(jaxfl.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(":")]
    settings = {
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(path),
    }
    given = {"env": os.environ | settings, "cwd": folder}
    link = [scripts / "flower-superlink", "--insecure", "--port", str(port)]
    link.append("--disable-runtime-dependency-installation")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(link, folder / "link.log", **given))
        for client in range(CLIENTS):
            node = [scripts / "flower-supernode", "--insecure", "--port", str(free_port())]
            node += ["--superlink", f"127.0.0.1:{port}"]
            node += ["--node-config", f"partition-id={client}"]
            stack.enter_context(running(node, folder / f"node{client}.log", **given))

        def run(strategy):
            log, found = folder / f"{strategy}.log", folder / f"{strategy}.json"
            wanted = f'strategy="{strategy}" folder="{folder}"'
            command = [scripts / "flwr", "run", "app", "here", "--stream", "--run-config", wanted]
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                with running(command, log, **given) as process:
                    while not found.exists() and time.monotonic() < until:
                        if process.poll() not in (None, 0):  # the server is not there yet
                            break
                        time.sleep(0.5)
                    time.sleep(0.5)
                if found.exists():
                    return json.loads(found.read_text())
            pytest.fail(log.read_text()[-3000:])

        yield run


@pytest.mark.slow
def test_with_flower_s_own_mean_one_client_ruins_the_model(ask):
    found = ask("fedavg")
    assert found["accuracy"] < 0.5
    assert [metrics["byzantine"] for metrics in found["metrics"]] == [1 / CLIENTS] * 3


@pytest.mark.slow
def test_with_the_strategy_it_learns(ask):
    found = ask("robust")
    assert found["accuracy"] > 0.8
    assert found["names"] == ["weight", "bias", "rounds"]  # as sent, not as clients answer
    assert found["rounds"] == 3  # the median of counters, one of which lies
    for metrics in found["metrics"]:
        assert metrics["clients"] == CLIENTS
        assert metrics["byzantine"] == 0  # the mean over those that were kept
        assert len(metrics["kept"]) + len(metrics["dropped"]) == CLIENTS
        assert metrics["dropped"]
