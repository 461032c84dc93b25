"""``jaxfl track``: a run's log, read back from what trackers were given."""

import dataclasses
import json
import sys
from hashlib import sha256

import pytest
from helpers import ran
from typer.testing import CliRunner

from jaxfl import cli
from jaxfl.experiments.commit import Progress
from jaxfl.report.trackers import tracks

LINES = [
    {
        "cell": c,
        "aggregator": rule,
        "candidate": 0,
        "seed": 3,
        "round": r,
        "loss": r + c / 4,
        **more,
    }
    for c, rule in ((0, "Mean"), (1, "Krum"))
    for r, more in ((1, {"clip": None}), (2, {"test_accuracy": 0.5, "client_histogram": [1, 2]}))
]


@pytest.fixture
def folder(tmp_path):
    log = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    path = tmp_path / "first"
    path.mkdir()
    (path / "rounds.jsonl").write_bytes(log + b"written after the last commit")
    digest = sha256(log).hexdigest()
    progress = Progress(cell=0, round=2, log_bytes=len(log), log_digest=digest, groups=[[0, 1]])
    (path / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))
    return path


def ask(*words):
    return CliRunner().invoke(cli.app, ["track", *map(str, words)])


def test_tensorboard_has_every_number_at_its_round(folder, tmp_path):
    reason = "TensorBoard is not installed (extra tensorboard)"
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module, reason=reason)
    done = ask(folder, "--to", "tensorboard", "--out", tmp_path / "out", "--project", "mine")
    assert done.exit_code == 0, done.output
    assert "Tracked: 2 runs in" in done.stdout
    found = {}
    for path in (tmp_path / "out" / "mine").iterdir():
        events = accumulator.EventAccumulator(str(path)).Reload()
        found[path.name] = {
            tag: [(e.step, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    assert found == {
        "Mean seed 3": {"loss": [(1, 1), (2, 2)], "test_accuracy": [(2, 0.5)]},
        "Krum seed 3": {"loss": [(1, 1.25), (2, 2.25)], "test_accuracy": [(2, 0.5)]},
    }


def records(log):
    """The records of a log in LevelDB's format, after a header of 7 bytes: they lie in blocks of
    32 KiB, each with its sum, length and kind (whole, first, middle or last part) before it."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_has_every_number_offline(folder, monkeypatch):
    reason = "Weights & Biases is not installed (extra wandb)"
    wandb = pytest.importorskip("wandb", reason=reason)
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert ask(folder, "--to", "wandb").exit_code == 0
    wandb.teardown()
    runs = {}
    for path in (folder / "wandb").glob("wandb/offline-run-*/run-*.wandb"):
        name, losses = None, []
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                name = record.run.display_name
            for item in record.history.item:
                key = item.key or ".".join(item.nested_key)
                losses += [json.loads(item.value_json)] if key == "loss" else []
        runs[name] = losses
    assert runs == {"Mean seed 3": [1, 2], "Krum seed 3": [1.25, 2.25]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_number(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra mlflow)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ask(folder, "--to", "mlflow").exit_code == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("first")
    found = {
        run.info.run_name: [
            (m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")
        ]
        for run in client.search_runs([experiment.experiment_id])
    }
    assert found == {"Mean seed 3": [(1, 1), (2, 2)], "Krum seed 3": [(1, 1.25), (2, 2.25)]}


def test_every_honest_set_is_a_run_of_its_own(tmp_path):
    """Of one round, too, whose only line has the sum of the parameters."""
    table = {
        "rounds": 1,
        "model": "softmax",
        "data": {"name": "synthetic", "clients": 5, "samples": 60, "features": 4, "classes": 2},
        "honesty": {"law": {"name": "uniform_sets", "byzantine": 1}, "sets": 2},
    }
    folder, _ = ran(table, tmp_path)
    found = tracks(folder)
    assert [track.name for track in found] == ["seed 0 set 0", "seed 0 set 1"]
    assert [track.labels["set"] for track in found] == [0, 1]
    assert [len(track.steps) for track in found] == [1, 1]
    assert all("set" not in numbers for track in found for _, numbers in track.steps)


def test_what_cannot_be_tracked_is_said(folder, tmp_path, monkeypatch):
    for tracker, module in (("wandb", "wandb"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)
        error = ask(folder, "--to", tracker).exception
        assert f"pip install 'jaxfl[{tracker}]'" in str(error)
    assert "wandb" in str(ask(folder, "--to", "wandbb").exception)
    assert "holds no run" in str(ask(tmp_path, "--to", "wandb").exception)
    (folder / "rounds.jsonl").write_bytes(b"{}")
    assert "is damaged" in str(ask(folder, "--to", "wandb").exception)
