"""The folder of a run: what is in it, and how a killed run goes on from there.

    experiment.toml    what is run, with all overrides applied
    environment.json   versions, devices, git revision, command line
    rounds.jsonl       one line per round, seed and candidate: all that was measured
    summary.csv ...    tables and pictures, made from rounds.jsonl at the end
    progress.json      how far the run is: the commit point
    checkpoint/        the state of the cell that is under way

``progress.json`` is replaced whole, after the lines and the checkpoint that it counts are on disk.
What was written after it belongs to no committed block: a resumed run cuts it off and computes it
again, to the same bits.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import tomli_w

from jaxfl.experiments import checkpoint
from jaxfl.experiments.environment import describe
from jaxfl.experiments.results import Line, Result, conclude, not_run, result_of
from jaxfl.experiments.schema import Experiment, parse, read
from jaxfl.files import write_aside
from jaxfl.types import PyTree

OWN = ("progress.json", "rounds.jsonl", "checkpoint", "experiment.toml", "environment.json")
"""What a run writes on its way, and the next one in the same folder replaces."""


@dataclasses.dataclass
class Progress:
    """How far a run is."""

    cell: int = 0
    """The cell under way; those before it are done."""
    round: int = 0
    """Rounds of that cell that are done."""
    log_bytes: int = 0
    """Length of ``rounds.jsonl`` up to there."""
    checkpoint: str = ""
    """Folder of the state after those rounds; empty at the start of a cell."""
    digest: str = ""
    """SHA-256 of that state."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Time taken by each cell."""


class RunFolder:
    """An open run folder; use as a context manager. Only one process may hold it.

    Args:
      path: the folder, made if need be.
      experiment: what is to run there.
      resume: go on with what is there; otherwise an unfinished run there is an error.

    Raises:
      ValueError: the folder is in use, holds another experiment, an unfinished run without
        ``resume``, or a damaged file.
      OSError: it cannot be written.
    """

    def __init__(self, path: Path, experiment: Experiment, *, resume: bool = False) -> None:
        self.path, self.experiment = path, experiment
        self.progress = Progress()
        self.lines: dict[int, list[Line]] = {}
        """What is logged, by cell."""
        self._resume = resume
        self._made = False
        self._lock = filelock.FileLock(path / ".lock")
        self._log: io.BufferedWriter | None = None

    def __enter__(self) -> "RunFolder":
        self._made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"{self.path} is in use by another run; choose --out") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk: what is left belongs to no commit
                self._log.close()
        if error is not None and self.progress == Progress() and not self.lines:
            self._withdraw()
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether every cell is done."""
        return self.progress.cell >= len(self.experiment.cells)

    def append(self, cell: int, lines: Sequence[Line]) -> None:
        """Adds to the log; on disk for good with the next ``commit``."""
        assert self._log is not None
        self.lines.setdefault(cell, []).extend(lines)
        with self._writing():
            self._log.write(b"".join(_encode(line) for line in lines))
            self._log.flush()

    def commit(self, cell: int, rounds: int, state: PyTree = None) -> None:
        """Makes all that was appended permanent, with the state to go on from."""
        assert self._log is not None
        old = self.progress
        name = digest = ""
        with self._writing():
            os.fsync(self._log.fileno())
            if state is not None:
                name = f"cell-{cell}-round-{rounds}"
                digest = checkpoint.save(self._checkpoints / name, state)
            self.progress = dataclasses.replace(
                old,
                cell=cell,
                round=rounds,
                log_bytes=self._log.tell(),
                checkpoint=name,
                digest=digest,
            )
            self._write_progress()
        if old.checkpoint and old.checkpoint != name:
            shutil.rmtree(self._checkpoints / old.checkpoint, ignore_errors=True)

    def restore(self, like: PyTree) -> PyTree:
        """The state of the cell under way, in the structure of ``like``, as NumPy arrays.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        path = self._checkpoints / self.progress.checkpoint
        return checkpoint.restore(path, like, self.progress.digest)

    def _withdraw(self) -> None:
        """Leaves no trace of a run that failed before its first block."""
        for name in OWN:
            _delete(self.path / name)
        if self._made:
            _delete(self.path / ".lock")
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the folder where the operating system names nothing."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot write to {self.path}: {reason}; --resume goes on") from error

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoint"

    def _tidy(self) -> None:
        """Deletes what a killed run left beside the committed checkpoint."""
        if self._checkpoints.is_dir():
            for left in self._checkpoints.iterdir():
                if left.name != self.progress.checkpoint:
                    shutil.rmtree(left, ignore_errors=True)

    def _open(self) -> None:
        path = self.path / "progress.json"
        known = _read_progress(path) if path.is_file() else None
        if known is not None:
            self._compare(known)
        if known is not None and self._resume:
            self.progress = known
            self._tidy()
            self._cut_log()
        else:
            for name in OWN:
                _delete(self.path / name)
            table = tomli_w.dumps(self.experiment.table).encode()
            write_aside(self.path / "experiment.toml", table)
            facts = json.dumps(describe(), indent=1).encode()
            write_aside(self.path / "environment.json", facts)
            self._write_progress()
        self._log = open(self.path / "rounds.jsonl", "ab")  # noqa: SIM115

    def _compare(self, known: Progress) -> None:
        """Refuses to lose or to mix runs."""
        finished = known.cell >= len(self.experiment.cells)
        try:
            there = read(self.path / "experiment.toml")
        except (ValueError, OSError):
            raise ValueError(f"{self.path / 'experiment.toml'} is missing or damaged") from None
        difference = _difference(there, self.experiment.table)
        if self._resume and difference:
            raise ValueError(f"{self.path} holds another experiment: {difference}; choose --out")
        if not self._resume and not finished and (known.cell or known.round):
            raise ValueError(
                f"{self.path} holds an unfinished run (cell {known.cell + 1} of "
                f"{len(self.experiment.cells)}, round {known.round}); --resume goes on with it, "
                "--out chooses another folder"
            )

    def _cut_log(self) -> None:
        path = self.path / "rounds.jsonl"
        self.lines = _read_log(path, self.progress.log_bytes)
        if path.is_file():
            os.truncate(path, self.progress.log_bytes)

    def _write_progress(self) -> None:
        text = json.dumps(dataclasses.asdict(self.progress), indent=1)
        write_aside(self.path / "progress.json", text.encode())


def read_results(path: Path) -> tuple[Experiment, list[Result]]:
    """The experiment and the results in the folder of a finished run.

    Raises:
      ValueError: it holds no finished run, or is damaged.
    """
    if not (path / "progress.json").is_file():
        raise ValueError(f"{path} holds no run")
    experiment = parse(path.name, read(path / "experiment.toml"))
    progress = _read_progress(path / "progress.json")
    if progress.cell < len(experiment.cells):
        raise ValueError(f"{path} holds an unfinished run; finish it with --resume")
    lines = _read_log(path / "rounds.jsonl", progress.log_bytes)
    results = [
        result_of(cell, lines[i], progress.seconds.get(str(i), 0.0))
        if i in lines
        else not_run(cell, "not applicable")
        for i, cell in enumerate(experiment.cells)
    ]
    return experiment, conclude(results)


def _read_progress(path: Path) -> Progress:
    try:
        return Progress(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_log(path: Path, length: int) -> dict[int, list[Line]]:
    """The first so many bytes of a log, by cell."""
    raw = path.read_bytes() if path.is_file() else b""
    if len(raw) < length:
        raise ValueError(f"{path} is damaged: it is shorter than progress.json says")
    lines: dict[int, list[Line]] = {}
    try:
        for text in raw[:length].splitlines():
            line = json.loads(text)
            lines.setdefault(line["cell"], []).append(line)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return lines


def _encode(line: Line) -> bytes:
    """JSON has no NaN and no infinity: they become null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return (json.dumps(plain) + "\n").encode()


def _difference(there: Any, here: Any, where: str = "") -> str:
    """The first place where two tables differ, in words; empty where they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            path = f"{where}.{key}" if where else key
            if (key in there) != (key in here):
                return f"{path} is {'set' if key in there else 'not set'} there"
            found = _difference(there[key], here[key], path)
            if found:
                return found
        return ""
    return "" if there == here else f"{where} is {there!r} there, {here!r} here"


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
