"""Published data sets on disk: where they lie, and whether they are what was published."""

import dataclasses
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

DATA_DIR = "JAXFL_DATA_DIR"
"""Environment variable naming the folder that holds ``mnist/``, ``cifar10/``, ..."""

_OPEN = {"": open, ".gz": gzip.open, ".xz": lzma.open}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published data set: its raw files, known by their sums, and its other sources."""

    name: str
    """Also the folder of the raw files below the data folder."""
    forms: tuple[Mapping[str, str], ...]
    """Raw file names to the sum of their unpacked content, sha256 or ``md5:...``; the most
    complete form is read."""
    origin: str
    """Where the publisher gives the files out."""
    train: int
    test: int
    tfds: str | None = None
    """Its name in tensorflow-datasets."""
    online: str | None = None
    """A source that needs a network and is used only on request."""

    def locate(self, source: str | None, data_dir: str | Path | None) -> "Place":
        """Where the data lies; raw files come first unless ``source`` says otherwise.

        Raises:
          ValueError: an unknown source, no data folder, or nothing there to read.
        """
        self.check_source(source)
        root = data_root(self.name, data_dir)
        raw, prepared = self.find_raw(root), self.find_prepared(root)
        if source == "raw" or (source is None and raw.files):
            return raw if raw.files else Place(root / self.name, self.forms[0])
        if prepared is not None:
            return Place(prepared)
        where = f"{root / self.name} holds no prepared tensorflow-datasets folder"
        if source is None:
            where = f"{root / self.name} holds neither raw files nor a prepared folder"
        raise ValueError(f"{self.name} is missing: {where}; {self.how(root)}")

    def check_source(self, source: str | None) -> None:
        """Refuses a source that this data set does not have."""
        others = (("tfds",) if self.tfds else ()) + ((self.online,) if self.online else ())
        if source not in (None, "raw", *others):
            known = ", ".join(("raw", *others))
            raise ValueError(f"{self.name}: source must be one of {known}; got {source!r}")

    def find_raw(self, root: Path) -> "Place":
        """The raw form of which most files are there; no files where none is."""
        folder = root / self.name

        def present(files: Mapping[str, str]) -> int:
            return sum(find_file(folder / file) is not None for file in files)

        best = max(self.forms, key=present)
        return Place(folder, best if present(best) else {})

    def find_prepared(self, root: Path) -> Path | None:
        """The folder of the newest version that tensorflow-datasets prepared."""
        if self.tfds is None:
            return None
        versions = [path.parent for path in (root / self.tfds).glob("*.*.*/dataset_info.json")]
        numbered = [path for path in versions if path.name.replace(".", "").isdigit()]
        return max(numbered, key=lambda p: tuple(map(int, p.name.split("."))), default=None)

    def how(self, root: Path | None) -> str:
        """How to get it, in one line."""
        folder = f"${DATA_DIR}/{self.name}" if root is None else root / self.name
        files = ", ".join(self.forms[0])
        ways = [f"put {files} (as they are, .gz or .xz) from {self.origin} into {folder}"]
        if self.tfds:
            ways.append(f"{self.how_to_prepare(root)} (needs pip install 'jaxfl[tfds]')")
        if self.online:
            ways.append(f"ask for source={self.online!r} where there is a network")
        return "; or ".join(ways)

    def how_to_prepare(self, root: Path | None) -> str:
        """The call that makes tensorflow-datasets prepare it."""
        where = "" if root is None else f", {str(root)!r}"
        return f"run jaxfl.data.prepare({self.name!r}{where})"


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder of raw files, or (no files) a prepared folder."""

    folder: Path
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, file: str) -> bytes:
        """The unpacked, checked content of a raw file."""
        return read_file(self.folder / file, self.files[file])


def data_root(name: str, data_dir: str | Path | None) -> Path:
    """The data folder: the argument, or what the environment says."""
    root = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    if not root:
        raise ValueError(f"{name}: no data folder; set {DATA_DIR} to the folder that holds {name}/")
    return Path(root).expanduser()


def find_file(path: Path) -> Path | None:
    """The file itself or packed by gzip or xz, whichever is there."""
    packed = (path.with_name(path.name + suffix) for suffix in _OPEN)
    return next((p for p in packed if os.path.isfile(p)), None)  # False where it may not look


def read_file(path: Path, digest: str) -> bytes:
    """The content of a file, unpacked where it is packed, once its sum is found right.

    Raises:
      ValueError: the file is missing, cannot be unpacked, or is not the published one.
    """
    found = find_file(path)
    if found is None:
        raise ValueError(
            f"{path} is missing (as it is, .gz or .xz); its content has the sum {digest}"
        )
    try:
        with _OPEN[found.name.removeprefix(path.name)](found, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{found} cannot be read, damaged or truncated: {error}") from error
    kind, _, wanted = digest.rpartition(":")
    actual = hashlib.new(kind or "sha256", content, usedforsecurity=False).hexdigest()
    if actual != wanted:
        raise ValueError(
            f"{found} is damaged or not the published file: "
            f"its content has the {kind or 'sha256'} {actual}, the published one {wanted}"
        )
    return content
