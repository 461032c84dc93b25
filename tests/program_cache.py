"""Compiled programs that outlive the suite, without a reader of what is half written.

JAX writes an entry of its compilation cache in place, so processes must not share a folder. Each
has its own, filled with hard links from the store; what it adds is linked back when it ends.
"""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 2**31
DAY = 86_400


class ProgramCache:
    """One process's folder of compiled programs, and the store that it comes from."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.store.mkdir(parents=True, exist_ok=True)
        # What a killed run leaves behind.
        for old in root.glob("process-*"):
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - DAY:
                    shutil.rmtree(old, ignore_errors=True)
        self.home = Path(tempfile.mkdtemp(prefix="process-", dir=root))
        # Where the command line keeps programs, if this is its XDG_CACHE_HOME.
        self.folder = self.home / "jaxfl" / "xla"
        self.folder.mkdir(parents=True)
        _link_all(self.store, self.folder)
        self._known = set(os.listdir(self.folder))
        self._doubtful: list[tuple[float, float]] = []

    def doubt(self, start: float, stop: float) -> None:
        """What was written in this time is not kept: a process may have been killed meanwhile."""
        self._doubtful.append((start, stop))

    def close(self, keep: bool) -> None:
        """Links new programs into the store, which drops what was not used for longest."""
        if keep:
            new = (self.folder / name for name in set(os.listdir(self.folder)) - self._known)
            for path in new:
                written = path.stat().st_mtime
                if not any(start <= written <= stop for start, stop in self._doubtful):
                    _link(path, self.store / path.name)
            _shrink(self.store, MOST_BYTES)
        shutil.rmtree(self.home, ignore_errors=True)


def _link_all(source: Path, target: Path) -> None:
    for entry in os.scandir(source):
        _link(Path(entry.path), target / entry.name)


def _link(source: Path, target: Path) -> None:
    """A link appears whole or not at all; where there can be none, the program is not kept."""
    with suppress(OSError):
        os.link(source, target)


def _shrink(folder: Path, most: int) -> None:
    """Deletes the files read longest ago, until the rest is small enough.

    The time of the last read is what the file system tells, at worst that of writing.
    """
    found = []
    for path in folder.iterdir():
        with suppress(OSError):
            facts = path.stat()
            found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
