"""``jaxfl doctor``: what is here, whether it computes what it should, what to do about the rest."""

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxfl.data import available
from jaxfl.data.raw_files import DATA_DIR
from jaxfl.devices import memory_of_device
from jaxfl.experiments import selftest
from jaxfl.experiments.environment import PACKAGES
from jaxfl.experiments.environment import describe as environment
from jaxfl.files import user_cache
from jaxfl.memory import amount

CONTRIBUTORS = ("all", "dev", "docs", "peers")
"""Extras that serve work on jaxfl itself: nothing to do about them."""
INSTALL = "pip install . in the clone"
"""What to do where jaxfl is imported, but not installed."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    to_do: str = ""
    """What to do about it; empty where there is nothing."""
    broken: bool = False
    """Whether results cannot be trusted."""


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="Without the self-test, which takes ten seconds.")
    ] = False,
) -> None:
    """Show versions, devices, data, caches and extras; compute something whose result is known."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title="jaxfl doctor", title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("found", overflow="fold", max_width=40)  # an address fits into the last
    table.add_column("what to do", overflow="fold")
    broken = False
    with console.status("looking"):
        for finding in findings(quick=quick):
            texts = map(escape, (finding.what, finding.found, finding.to_do))
            table.add_row(*texts, style="red" if finding.broken else None)
            broken |= finding.broken
    console.print(table)
    if broken:
        raise typer.Exit(1)
    console.print("Nothing here is broken. What is absent or missing matters where you use it.")


def findings(*, quick: bool) -> Iterator[Finding]:
    """All that is looked at, in the order of the table."""
    yield from versions()
    yield from machine()
    yield from data()
    yield from caches()
    if known := requirements_of("jaxfl"):
        yield from extras(known)
    else:
        yield Finding("extras", "unknown: jaxfl is imported, not installed", INSTALL)
    if not quick:
        yield self_test()


def versions() -> Iterator[Finding]:
    """Of Python and of what results depend on."""
    known = environment()["packages"]
    yield Finding("Python", f"{platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        missing = known[name] == "not installed"
        hint = INSTALL if name == "jaxfl" else f"pip install {name}"
        yield Finding(name, known[name], hint if missing else "")


def machine() -> Iterator[Finding]:
    """Devices, cores and memory."""
    devices = jax.local_devices()
    kinds = sorted({device.device_kind for device in devices})
    hint = ""
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        hint = "a GPU is not used: pip install 'jaxfl[cuda13]'"
    yield Finding("devices", f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()})", hint)
    every = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    yield Finding("cores", f"{usable} of {every}")
    memory = memory_of_device(devices[0])
    yield Finding("memory", "unknown" if memory is None else amount(memory))


def data() -> Iterator[Finding]:
    """The data sets and their folder, found or how to get them."""
    folder, hint = os.environ.get(DATA_DIR), ""
    if not folder:
        hint = f"set {DATA_DIR} to a folder of yours, if you need a data set that is absent"
    elif not Path(folder).expanduser().is_dir():
        hint = f"there is no such folder: make it, or set {DATA_DIR} to another"
    yield Finding("data folder", folder or "none", hint)
    for entry in available():
        where = "" if entry.folder is None else f": {entry.folder}"
        yield Finding(f"data {entry.name}", f"{entry.where}{where}", entry.how)


def caches() -> Iterator[Finding]:
    """Compiled programs kept between runs."""
    folder = user_cache()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        hint = "nothing is kept between runs: set XDG_CACHE_HOME to a folder of yours"
        yield Finding("cache", f"{folder} cannot be written", hint)
        return
    for name in ("programs", "xla"):
        files = [path for path in (folder / name).glob("*") if path.is_file()]
        size = sum(map(_size, files))
        yield Finding(f"cache {name}", f"{folder / name}: {len(files)} files, {amount(size)}")


def extras(requirements: list[str]) -> Iterator[Finding]:
    """Each extra: installed, or what of it is missing.

    Args:
      requirements: those of jaxfl, as its metadata lists them.
    """
    named = re.findall(r"extra == ['\"]([\w.-]+)['\"]", "\n".join(requirements))
    for extra in sorted(set(named) - set(CONTRIBUTORS)):
        missing = missing_of(requirements, extra)
        hint = f"if you need it: pip install 'jaxfl[{extra}]'" if missing else ""
        found = f"missing: {', '.join(missing)}" if missing else "installed"
        yield Finding(f"extra {extra}", found, hint)


def missing_of(requirements: list[str], extra: str) -> list[str]:
    """The distributions that an extra asks for on this platform and that are not here."""
    found = []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if (
            marker is None
            or marker.evaluate({"extra": ""})
            or not marker.evaluate({"extra": extra})
        ):
            continue
        theirs = requirements_of(requirement.name)
        if theirs is None:
            found.append(requirement.name)
            continue
        found += [
            name for inner in sorted(requirement.extras) for name in missing_of(theirs, inner)
        ]
    return found


def requirements_of(name: str) -> list[str] | None:
    """Those of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None


def self_test() -> Finding:
    """Computes what ``experiments.selftest`` knows the hash of."""
    done = selftest.self_test()
    found = f"{done.digest} in {done.seconds:.1f} s, expected {selftest.EXPECTED}"
    if done.passed:
        return Finding("self-test", f"passed: {found}")
    hint = "do not trust results here; report this table, with `pip freeze`"
    return Finding("self-test", f"FAILED: {found}", hint, broken=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process has deleted it since
        return 0
