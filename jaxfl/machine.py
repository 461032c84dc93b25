"""What the machine has: how much memory a process may take."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROGRAM_BYTES = 2**29
"""What Python, the packages and compiled programs take besides any arrays."""

_agreed: int | None = None


def agree_on(memory: int) -> None:
    """From now on ``process_memory`` is this."""
    global _agreed
    _agreed = memory


def process_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process's arrays may take in all; None: unknown.

    On Linux what is free for programs and what the process holds already, or less where the other
    processes of its control group (a container, a job of a cluster) leave less; elsewhere all of
    the machine's.

    Args:
      root: where ``proc`` and ``sys`` are.
    """
    if _agreed is not None:
        return _agreed
    free = _number(root / "proc/meminfo", "MemAvailable:")
    held = _number(root / "proc/self/status", "VmRSS:")
    if free is None or held is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    free, held = 1024 * free, 1024 * held
    return max(min(free + held, *_left_by_groups(root, held)) - PROGRAM_BYTES, 0)


def share_of(memory: int, processes: int) -> int:
    """What each of so many processes of one machine may take of what one alone might."""
    return max((memory + PROGRAM_BYTES) // processes - PROGRAM_BYTES, 0)


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _number(path: Path, name: str | None = None) -> int | None:
    """The number in a file, or that after a name in one of its lines; None without it."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    texts = [
        words[0] if name is None else words[1]
        for words in lines
        if words and name in (None, words[0])
    ]
    return int(texts[0]) if texts and texts[0].isdigit() else None


def _left_by_groups(root: Path, held: int) -> Iterator[int]:
    """What the control groups of a process (version 2 or 1), and those above them, leave it.

    That is the limit without what the group's other processes hold. Cached files do not count: the
    kernel drops them where a program wants memory.
    """
    yield 2**63
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, limit, used, all_below = root / "sys/fs/cgroup", "max", "current", ""
        if controllers:
            folder, limit, used = folder / "memory", "limit_in_bytes", "usage_in_bytes"
            all_below = "total_"
        inner = PurePosixPath(own.lstrip("/"))
        for group in (inner, *inner.parents):
            at = folder / group
            most = _number(at / f"memory.{limit}")
            if most is None:  # none is set, or the group has another name outside of a container
                continue
            names = (f"{all_below}{kind}_file" for kind in ("active", "inactive"))
            cached = sum(_number(at / "memory.stat", name) or 0 for name in names)
            yield most - max((_number(at / f"memory.{used}") or 0) - cached - held, 0)
