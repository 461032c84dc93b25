"""The folder of a run: what is in it, and how a killed run goes on from there.

    experiment.toml    what is run, with all overrides applied
    environment.json   versions, devices, git revision, command line; later ones in `resumed`
    rounds.jsonl       one line per round, seed and candidate: all that was measured
    summary.csv ...    tables and pictures, made from rounds.jsonl at the end
    progress.json      how far the run is: the commit point
    checkpoint/        the state of the cell that is under way

``progress.json`` is replaced whole, after the lines and the checkpoint that it counts are on disk.
What was written after it belongs to no committed block: a resumed run cuts it off and computes it
again, to the same bits. It holds the SHA-256 of the log's lines and of the checkpoint.

Nothing is written, and nothing of an older run deleted, before the first block is done.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import filelock

from jaxfl.experiments import checkpoint
from jaxfl.experiments.commit import Progress
from jaxfl.experiments.earlier import OWN, RESULTS, WAYS_OUT, progress_of, table_of, told_anew
from jaxfl.experiments.environment import describe, note_resumed
from jaxfl.experiments.log import Line, Log, digest_of, encode, read_log
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.types import PyTree


class RunFolder:
    """An open run folder; use as a context manager. Only one process may hold it.

    Args:
      path: the folder, made if need be.
      experiment: what is to run there.
      resume: go on with what is there; otherwise an unfinished run there is an error.
      force: run anew whatever is there.
      elsewhere: numbers of the cells that a new run leaves out, since another one did them.

    Raises:
      ValueError: the folder is a file, is in use, holds another experiment, an unfinished run
        without ``resume``, what is left of a run, or a damaged file; both options.
      OSError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        *,
        resume: bool = False,
        force: bool = False,
        elsewhere: Collection[int] = (),
    ) -> None:
        if resume and force:
            raise ValueError("--resume goes on with a run, --force deletes it: give one of them")
        self.path, self.experiment = path, experiment
        self.progress = Progress(elsewhere=sorted(elsewhere))
        self.lines = Log(path / "rounds.jsonl")
        """What is logged, by cell."""
        self._resume, self._force = resume, force
        self._made = False
        self._lock = filelock.FileLock(path / ".lock")
        self._log: io.BufferedWriter | None = None
        self._sum = hashlib.sha256()

    def __enter__(self) -> "RunFolder":
        self._made = not self.path.exists()
        if not self._made and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file, not a folder; choose --out")
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

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk: what is left belongs to no commit
                self._log.close()
        if self._made and self._log is None:
            self._withdraw()
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether every cell is done."""
        return self.progress.cell >= len(self.experiment.cells)

    def took(self, cells: Sequence[int], seconds: float, running: float) -> None:
        """Adds the time that cells took which run together, and the part in which rounds ran."""
        done = self.progress
        for known, more in ((done.seconds, seconds), (done.running, running)):
            known |= {str(c): known.get(str(c), 0.0) + more / len(cells) for c in cells}

    def arrange(self, groups: list[list[int]]) -> list[list[int]]:
        """Keeps which cells run together; gives what is kept where the run goes on."""
        if not self.progress.groups:
            begun = self.progress.cell or self.progress.round
            alone = [[index] for index in range(len(self.experiment.cells))]
            self.progress.groups = alone if begun else groups
        return self.progress.groups

    def append(self, cell: int, lines: Sequence[Line]) -> None:
        """Adds to the log; on disk for good with the next ``commit``."""
        with self._writing() as log:
            content = b"".join(encode(line) for line in lines)
            begin = log.tell()
            log.write(content)
            log.flush()
            self.lines.add(cell, begin, log.tell())
            self._sum.update(content)

    def commit(self, ended: Sequence[int], rounds: int, state: PyTree = None) -> None:
        """Makes all that was appended permanent, with the state to go on from.

        Args:
          ended: cells that are done now.
          rounds: how many rounds are done of those that are not.
          state: after these.
        """
        old = self.progress
        cell = old.cell + len(ended)
        name = digest = ""
        with self._writing() as log:
            os.fsync(log.fileno())
            if state is not None:
                name = f"cell-{cell}-round-{rounds}"
                digest = checkpoint.save(self._checkpoints / name, state)
            self.progress = dataclasses.replace(
                old,
                cell=cell,
                round=rounds,
                log_bytes=log.tell(),
                log_digest=self._sum.hexdigest(),
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

    def redo(self, cells: Sequence[int]) -> None:
        """Forgets what is done of the group under way: its checkpoint is damaged."""
        length, old = self.lines.cut(cells, self.progress.log_bytes), self.progress
        digest = digest_of(self.path / "rounds.jsonl", length)
        with self._writing() as log:
            log.close()
            for cell in cells:
                old.seconds.pop(str(cell), None)
                old.running.pop(str(cell), None)
            self.progress = dataclasses.replace(
                old, round=0, log_bytes=length, log_digest=digest, checkpoint="", digest=""
            )
            self._write_progress()
            self._open_log(length)
            self._tidy()

    def _withdraw(self) -> None:
        """Leaves no trace of a run that failed before its first block."""
        _delete(self.path / ".lock")
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[io.BufferedWriter]:
        """The log; names the folder where the operating system names nothing."""
        try:
            if self._log is None:
                self._begin()
            assert self._log is not None
            yield self._log
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
        """Refuses to lose or to mix runs; goes on where that is asked for."""
        known = (
            None if self._force else progress_of(self.path, self.experiment, resume=self._resume)
        )
        if known is None:
            return
        finished = known.cell >= len(self.experiment.cells)
        if self._resume:
            wanted = set(known.elsewhere).difference(self.progress.elsewhere)
            if wanted:
                raise ValueError(
                    f"{self.path} left out {len(wanted)} of the cells that are wanted now, as "
                    f"another run had done them; {WAYS_OUT}"
                )
            self.progress = known
            self._tidy()
            if not finished:
                write_aside(self.path / "experiment.toml", told_anew(self.path, self.experiment))
            log = self.path / "rounds.jsonl"
            self.lines = read_log(log, known.log_bytes, known.log_digest)
            self._open_log(known.log_bytes)
            if not finished and (differing := note_resumed(self.path)):
                warnings.warn(
                    f"{self.path} goes on in another environment: {differing}", stacklevel=2
                )
        elif not finished:
            raise ValueError(
                f"{self.path} holds an unfinished run (cell {known.cell + 1} of "
                f"{len(self.experiment.cells)}, round {known.round}); --resume goes on with it, "
                f"{WAYS_OUT}"
            )

    def _begin(self) -> None:
        """Makes room for a new run: what an older one left is deleted now, not before."""
        for name in (*OWN, *(RESULTS if (self.path / "progress.json").exists() else ())):
            _delete(self.path / name)
        write_aside(self.path / "experiment.toml", table_of(self.experiment))
        facts = describe() | {"modules": list(self.experiment.modules)}
        write_aside(self.path / "environment.json", json.dumps(facts, indent=1).encode())
        self._write_progress()
        self._open_log(0)

    def _open_log(self, length: int) -> None:
        """Opens the log to go on after so many bytes; cuts off the rest."""
        path = self.path / "rounds.jsonl"
        path.touch()
        os.truncate(path, length)
        with path.open("rb") as written:
            self._sum = hashlib.file_digest(written, "sha256")
        self._log = open(path, "ab")  # noqa: SIM115

    def _write_progress(self) -> None:
        text = json.dumps(dataclasses.asdict(self.progress), indent=1)
        write_aside(self.path / "progress.json", text.encode())


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
