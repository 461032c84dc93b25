"""A run's log for experiment trackers: TensorBoard, Weights & Biases, MLflow.

They read what ``rounds.jsonl`` holds; none of them has a part in a run.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxfl.experiments.commit import read_progress
from jaxfl.experiments.log import read_log

OWNER = ("cell", "candidate", "seed", "set")
"""Keys of a line that say whose it is; ``set`` only over honest sets."""
PLACE = (*OWNER, "round")
"""Keys of a line that say where it belongs, and are no metrics."""


@dataclasses.dataclass(frozen=True)
class Track:
    """What was measured of one seed of one cell, or of one of its honest sets."""

    name: str
    labels: dict[str, str | int]
    """The cell's, with its candidate, seed and honest set."""
    steps: list[tuple[int, dict[str, float]]]
    """Round and its numbers, in order; what was not finite is left out."""


def tracks(folder: Path) -> list[Track]:
    """The tracks of a run, finished or not, in the order of its log.

    Raises:
      ValueError: the folder holds no run, or is damaged.
    """
    if not (folder / "progress.json").is_file():
        raise ValueError(f"{folder} holds no run")
    done = read_progress(folder / "progress.json")
    log = read_log(folder / "rounds.jsonl", done.log_bytes, done.log_digest)
    found: dict[tuple[int, ...], Track] = {}
    for line in (line for cell in log for line in log.pop(cell)):
        numbers = {
            k: float(v) for k, v in line.items() if isinstance(v, int | float) and k not in PLACE
        }
        owner = {key: line[key] for key in OWNER if key in line}
        place = tuple(owner.values())
        if place not in found:
            keys = list(line)
            texts = {key: line[key] for key in keys[1 : keys.index("candidate")]}
            words = [*texts.values(), f"seed {line['seed']}"]
            words += [f"set {line['set']}"] if "set" in line else []
            words += [f"candidate {line['candidate']}"] if line["candidate"] else []
            found[place] = Track(" ".join(words), {**texts, **owner}, [])
        found[place].steps.append((line["round"], numbers))
    return list(found.values())


def to_tensorboard(found: Sequence[Track], out: Path, project: str) -> None:
    """An event file for each track, in folders below ``out / project``."""
    events = _library("tensorboard.compat.proto.event_pb2", "tensorboard")
    summaries = _library("tensorboard.compat.proto.summary_pb2", "tensorboard")
    files = _library("tensorboard.summary.writer.event_file_writer", "tensorboard")
    for track in found:
        folder = out / project / track.name.replace(os.sep, "_")
        writer = files.EventFileWriter(str(folder))
        for step, numbers in track.steps:
            values = [
                summaries.Summary.Value(tag=tag, simple_value=value)
                for tag, value in numbers.items()
            ]
            # Not the time of day: the same log makes the same events.
            event = events.Event(step=step, wall_time=step, summary=summaries.Summary(value=values))
            writer.add_event(event)
        writer.close()


def to_wandb(found: Sequence[Track], out: Path, project: str) -> None:
    """A run of Weights & Biases for each track, offline unless ``WANDB_MODE`` says otherwise."""
    wandb = _library("wandb", "wandb")
    out.mkdir(parents=True, exist_ok=True)
    for track in found:
        run = wandb.init(
            project=project,
            name=track.name,
            config=track.labels,
            dir=str(out),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        for step, numbers in track.steps:
            run.log(numbers, step=step)
        run.finish()


def to_mlflow(found: Sequence[Track], out: Path, project: str) -> None:
    """A run of MLflow for each track, where ``MLFLOW_TRACKING_URI`` says or else below ``out``."""
    mlflow = _library("mlflow", "mlflow")
    out.mkdir(parents=True, exist_ok=True)
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{out.resolve() / 'mlflow.db'}")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(project)
    for track in found:
        with mlflow.start_run(run_name=track.name):
            mlflow.log_params(track.labels)
            for step, numbers in track.steps:
                mlflow.log_metrics(numbers, step=step)


Writer = Callable[[Sequence[Track], Path, str], None]
WRITERS: dict[str, Writer] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
}
"""Tracker to what writes for it: the tracks, the folder, the project's name."""


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{extra} is not installed: pip install 'jaxfl[{extra}]' ({error})"
        ) from error
