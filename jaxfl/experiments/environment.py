"""What a run depended on besides its experiment."""

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from jaxfl.experiments.difference import differences
from jaxfl.files import write_aside
from jaxfl.machine import processor

PACKAGES = ("jaxfl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

DECISIVE = ("packages", "git", "x64")
"""What of an environment changes a run's numbers by more than the order of its sums."""


def describe() -> dict[str, Any]:
    """Versions, devices, git revision, command line and time."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": revision(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "x64": bool(jax.config.read("jax_enable_x64")),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def environments(folder: Path) -> list[dict[str, Any]]:
    """What is recorded of a run, or of each of those of which results are kept.

    Nothing where that is damaged, as no result depends on it.
    """
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return []
    several = found if isinstance(found, list) else [found]
    return [facts for facts in several if isinstance(facts, dict)]


def recorded(folder: Path) -> dict[str, Any]:
    """What is recorded of a run; nothing where that is damaged."""
    return next(iter(environments(folder)), {})


def note_resumed(folder: Path) -> str:
    """Records where a run goes on, if its numbers may be others there; says what differs.

    The first environment stays as it is, the later ones are listed in its ``resumed``.
    """
    begun = recorded(folder)
    listed = begun.get("resumed")
    later = listed if isinstance(listed, list) else []
    last = later[-1] if later and isinstance(later[-1], dict) else begun
    now = describe()
    compared = [name for name in DECISIVE if name in last]
    before, here = ({name: facts[name] for name in compared} for facts in (last, now))
    told = [f"{where} {was} before, {new} now" for where, was, new in differences(before, here)]
    if told:
        text = json.dumps(begun | {"resumed": [*later, now]}, indent=1)
        write_aside(folder / "environment.json", text.encode())
    return ", ".join(told)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def revision(file: Path = Path(__file__)) -> str:
    """Of the git repository that tracks the file, with a + if files are changed; else "unknown"."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # else the repository only lies around it
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
