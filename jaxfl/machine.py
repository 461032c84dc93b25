"""What the machine has: how much memory a process may take."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROGRAM_BYTES = 2**29
"""What Python, the packages and compiled programs take besides any arrays."""

_agreed: int | None = None


def agree_on(memory: int) -> None:
    """From now on ``process_memory`` is this: the least of all processes that run the same."""
    global _agreed
    _agreed = memory


def process_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process's arrays may take in all; None: unknown.

    On Linux what is free for programs and what the process holds already, or less where a control
    group (a container, a job of a cluster) allows less; elsewhere all of the machine's.

    Args:
      root: where ``proc`` and ``sys`` are.
    """
    if _agreed is not None:
        return _agreed
    sizes = _kilobytes(root / "proc/meminfo", "MemAvailable")
    held = _kilobytes(root / "proc/self/status", "VmRSS")
    if sizes is None or held is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    return max(min(sizes + held, *_group_limits(root)) - PROGRAM_BYTES, 0)


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kilobytes(path: Path, name: str) -> int | None:
    """The bytes that a line such as ``MemAvailable:  123 kB`` tells; None without it."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 for words in found), None)


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of this process's control groups (version 2 or 1) and of those above them."""
    yield 2**63
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            folder, name = folder / "memory", "memory.limit_in_bytes"
        inner = PurePosixPath(own.lstrip("/"))
        for group in (inner, *inner.parents):
            try:
                text = (folder / group / name).read_text().strip()
            except OSError:  # the group of a container may have another name outside
                continue
            if text.isdigit():
                yield int(text)
