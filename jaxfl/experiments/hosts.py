"""One run over several processes, most often one on each host.

All of them run the same cells in step, each with its share of the clients. The first one keeps the
run's folder; the others work in a copy of it, which they drop at the end.
"""

import contextlib
import hashlib
import io
import json
import socket
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxfl.arguments import integer
from jaxfl.experiments.addresses import check_free, host_and_port, wait_for
from jaxfl.experiments.checkpoint import digest_of
from jaxfl.experiments.earlier import OWN
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.schema import Experiment
from jaxfl.machine import agree_on, process_memory, share_of
from jaxfl.types import PyTree

PATIENCE = 45
"""Seconds within which all processes must have come: with the start, less than a minute."""
LOST = "another process of the run is gone, or did not come"
PIECE = 2**26
"""Bytes that are sent at once."""


class Lost(Exception):  # noqa: N818 - no error of this process
    """Another process of the run is gone: this one cannot go on."""


def connect(coordinator: str, processes: int, process_id: int) -> None:
    """Joins the other processes; before JAX is asked for a device.

    Args:
      coordinator: ``HOST:PORT`` at which the first process waits for the others.
      processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ValueError: a wrong address or number, a port in use, or they did not all come within
        ``PATIENCE``.
    """
    place = host_and_port(coordinator)
    if place is None:
        raise ValueError(f"--coordinator must be HOST:PORT; got {coordinator!r}")
    integer(processes, "--processes", 2)
    integer(process_id, "--process-id", 0, processes - 1)
    if process_id == 0:
        check_free(place[1], "--coordinator")
    else:  # JAX itself would end this process without a word of ours
        wait_for(*place, PATIENCE, "no process of the run")
    # Of a process that dies the others learn where they wait for its numbers, as an error.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=PATIENCE,
            shutdown_timeout_seconds=PATIENCE,
        )
        devices = jax.devices()
    except RuntimeError as error:
        raise ValueError(
            f"not all of the {processes} processes came to {coordinator} within {PATIENCE} s "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        found = ", ".join(str(counts[i]) for i in range(processes))
        raise ValueError(
            f"all processes must have equally many devices; they have {found} (of a CPU, "
            "XLA_FLAGS=--xla_force_host_platform_device_count says how many)"
        )
    _memory_agreed_on()


def _memory_agreed_on() -> None:
    """Plans are made by the memory there is, and must be the same: the least that one may take.

    Processes of one machine share what it has.
    """
    memory = process_memory()
    if memory is None:
        return
    boot = Path("/proc/sys/kernel/random/boot_id")  # names of machines may be equal
    named = f"{socket.gethostname()} {boot.read_text() if boot.exists() else ''}"
    mine = int.from_bytes(hashlib.sha256(named.encode()).digest()[:3])
    told = np.asarray([mine, memory >> 20], np.int32)
    machines, megabytes = np.asarray(multihost_utils.process_allgather(told)).T
    shares = [
        share_of(int(size) << 20, int(np.sum(machines == machine)))
        for machine, size in zip(machines, megabytes, strict=True)
    ]
    agree_on(min(shares))


def leave() -> None:
    """All end together; the first process, whose service the others need, goes last."""
    if not several():
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        multihost_utils.sync_global_devices("end")
    sys.stdout.flush()
    if is_first():
        time.sleep(1)


def several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process keeps the run's folder and speaks to the user."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the failure of a collective operation into ``Lost``; without effect on one process."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Where an array is fetched, JAX raises the collective's failure as a ValueError.
        own = isinstance(error, ValueError) and "Gloo" not in str(error)
        if not several() or own or "RESOURCE_EXHAUSTED" in str(error):
            raise
        said = str(error).split("\n")[0][:200]
        raise Lost(f"{LOST}; --resume goes on with the run ({said})") from error


def agreed(wish: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any process has such a wish; to be asked by all at the same point."""
    if not several():
        return wish
    return lambda: bool(np.any(multihost_utils.process_allgather(np.asarray(wish()))))


@contextlib.contextmanager
def folder_of(
    path: Path,
    experiment: Experiment,
    *,
    resume: bool,
    force: bool,
    elsewhere: Collection[int] = (),
) -> Iterator[RunFolder]:
    """The run's folder, open: the path itself on the first process, on the others a copy.

    Raises:
      ValueError: as ``RunFolder``; processes that run different experiments or versions.
      OSError: the folder cannot be written.
    """
    if not several():
        with RunFolder(path, experiment, resume=resume, force=force, elsewhere=elsewhere) as folder:
            yield folder
        return
    numbered = experiment.axes, experiment.candidates  # in their order, which a table's text lacks
    _check_alike([experiment.table, numbered, resume, sorted(elsewhere)])
    with contextlib.ExitStack() as stack:
        folder = None

        def opened() -> bytes:
            nonlocal folder
            kept = RunFolder(path, experiment, resume=resume, force=force, elsewhere=elsewhere)
            folder = stack.enter_context(kept)
            return _packed(path) if resume else b""

        content = _from_first(opened)
        if folder is None:
            copy = Path(stack.enter_context(TemporaryDirectory()))
            if content:
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(copy, filter="data")
            folder = stack.enter_context(
                RunFolder(copy, experiment, resume=resume, elsewhere=elsewhere)
            )
        yield folder


def check_data(parts: PyTree) -> None:
    """Refuses processes that have read different data. To be called by all at the same point.

    Raises:
      ValueError: on all of them.
    """
    if several():
        _check_equal(digest_of(parts), "have other data")


def _check_alike(asked: Any) -> None:
    """Refuses processes that would not compute the same."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "jaxfl", "flax", "optax")}
    facts = [asked, versions, str(jnp.asarray(1.0).dtype)]
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    _check_equal(digest, "run another experiment, or with other versions or options,")


def _check_equal(digest: str, what: str) -> None:
    mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
    others = np.asarray(multihost_utils.process_allgather(mine))
    if np.any(others != others[0]):
        different = np.flatnonzero(np.any(others != others[0], axis=1)).tolist()
        leave()
        raise ValueError(f"processes {different} {what} than process 0")


def _from_first(make: Callable[[], bytes]) -> bytes:
    """What the first process makes, on all of them; its error too."""
    failed: Exception | None = None
    content = b""
    if is_first():
        try:
            content = make()
        except (ValueError, OSError) as error:
            failed, content = error, str(error).encode()
    pieces = [content[first : first + PIECE] for first in range(0, len(content), PIECE)]
    last = len(pieces[-1]) if pieces else 0
    told = np.asarray([len(pieces), last, failed is not None], np.int32)
    count, last, wrong = map(int, multihost_utils.broadcast_one_to_all(told))
    received = b""
    for number in range(count):
        sent = np.zeros(PIECE if number + 1 < count else last, np.uint8)
        if is_first():
            sent[:] = np.frombuffer(pieces[number], np.uint8)
        received += bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
    if wrong:
        leave()
    if failed is not None:
        raise failed
    if wrong:
        raise ValueError(f"process 0: {received.decode()}")
    return received


def _packed(path: Path) -> bytes:
    """What a run has written in its folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in OWN:
            if (path / name).exists():
                archive.add(path / name, arcname=name)
    return content.getvalue()
