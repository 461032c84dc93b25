"""The command ``jaxfl``: a device per core, and a malloc that suits large arrays.

A round writes hundreds of megabytes of updates. By default glibc hands memory of that size back to
the system as soon as it is freed, and asks for it anew in pages of 4 KiB each of which faults: on a
CPU that takes longer than the arithmetic. glibc reads its settings when a process starts, so the
command replaces itself once by the same command with them set. XLA reads how many devices a CPU is
shown as when JAX starts, too.

A module of its own, outside the package: to import ``jaxfl`` first would import JAX twice. What
calls ``jaxfl.cli`` (tests, notebooks, ``python -m jaxfl.cli``) is left alone.
"""

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping

LOST = "another process of the run is gone, or did not come"
"""What a process says that cannot go on alone."""
SWITCH = "JAXFL_MALLOC"
"""Environment variable: ``system`` leaves malloc as it is."""
SETTINGS = "GLIBC_TUNABLES"
FLAGS, CORES = "XLA_FLAGS", "--xla_force_host_platform_device_count"
TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",  # large blocks in huge pages, where the kernel allows them
        "glibc.malloc.mmap_max=0",  # large blocks come from the heap, and return to it
        "glibc.malloc.trim_threshold=1099511627776",  # which keeps them for the next round
    )
)


def improved(environment: Mapping[str, str], *, glibc: bool) -> dict[str, str] | None:
    """The environment to start again with; None where it stays as it is.

    Raises:
      ValueError: the switch has another value than ``system``.
    """
    asked = environment.get(SWITCH, "")
    if asked not in ("", "system"):
        raise ValueError(f"{SWITCH} must be system or not set; got {asked!r}")
    if asked or not glibc or SETTINGS in environment:
        return None
    return {**environment, SETTINGS: TUNABLES}


def a_device_per_core(environment: Mapping[str, str]) -> str:
    """XLA's flags, by which JAX shows every core that the process may use as a device.

    One that is not asked for costs nothing; ``devices`` of an experiment says how many are.
    """
    flags = environment.get(FLAGS, "")
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return flags if CORES in flags else f"{flags} {CORES}={cores}".strip()


def has_glibc() -> bool:
    """Whether this process's C library is glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


def supervised() -> int:
    """Runs one of several processes of a run; its exit code.

    JAX's service ends a process that has lost the others at once, with its own words and a stack.
    Here that is one line.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxfl.cli", *sys.argv[1:]],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches it once, from here
    )
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # a terminal that is closed asks it to stop as well
            sent = signal.SIGTERM if name == "SIGHUP" else getattr(signal, name)
            signal.signal(getattr(signal, name), lambda *_, sent=sent: child.send_signal(sent))
    assert child.stderr is not None
    said = Said()
    for line in child.stderr:
        if said.is_for_users(line):
            print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    if said.ended:
        if not said.lost:
            print(f"jaxfl: error: {LOST}; --resume goes on with the run", file=sys.stderr)
        return 2
    return code if code >= 0 else 128 - code


class Said:
    """What one of several processes has said so far.

    Attributes:
      ended: JAX's service has ended the process.
      lost: the process has said itself that another one is gone.
    """

    def __init__(self) -> None:
        self.ended = self.lost = self._theirs = False

    def is_for_users(self, line: str) -> bool:
        """Whether the next line is not, or part of, what the service says of lost processes."""
        logged = re.match(r"([IWEF])\d{4} \S+ +\d+ (\w*)", line)
        self.lost = self.lost or LOST in line
        if logged:
            level, source = logged.groups()
            self.ended = self.ended or level == "F"
            self._theirs = level in "EF" or source.startswith(("preemption", "coordination"))
        elif line.startswith(("jaxfl", "Traceback", "Usage", "Fatal")):
            self._theirs = False  # a message of theirs has several lines
        self._theirs = self._theirs or "recoverable task" in line
        return not self._theirs


def main() -> None:
    """The entry point."""
    try:
        environment = improved(os.environ, glibc=has_glibc())
    except ValueError as error:
        print(f"jaxfl: error: {error}", file=sys.stderr)
        sys.exit(2)
    if environment is not None and sys.executable:
        with contextlib.suppress(OSError):  # where it is not allowed: slower, but right
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    os.environ[FLAGS] = a_device_per_core(os.environ)
    if any(word.startswith("--coordinator") for word in sys.argv):
        sys.exit(supervised())
    # What is imported stays: to look through it for garbage is a sixth of a start.
    gc.disable()
    from jaxfl.cli import main as run

    gc.enable()
    run()


if __name__ == "__main__":
    main()
