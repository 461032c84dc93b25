"""Files that are written whole or not at all, and where those that can be made anew lie."""

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """The folder for what is worth keeping between runs, and can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxfl"


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file aside, then renames it over the old one: no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
