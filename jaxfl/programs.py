"""Compiled programs kept on disk: loaded in a later process without being traced or compiled.

JAX's own cache keeps binaries by what was traced and lowered, which is most of what a small cell
costs. Here a program is found by what it is made of: the parts' classes and static fields, the
plan, shapes and types of the arguments, jaxfl's own source, versions, configuration, flags and
machine. Where one of them differs the name differs; where one cannot be described, such as a
class or function of the user's, the program is compiled as always and not kept.

Programs are kept once ``keep_in`` has named a folder, as the command line does. They are code:
nobody else must be able to write there.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import os
import pickle
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from jaxfl.devices import Device, compile_for
from jaxfl.files import write_aside
from jaxfl.identity import Unknown, describe, kind_of, nodes, surroundings
from jaxfl.types import PyTree

MOST_BYTES = 2**29
"""What a folder may hold before the programs used longest ago are deleted."""
MAPS, MAPS_ALLOWED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
LAPACK = b"lapack_"
"""In the names of the functions that a program on a CPU calls for eigenvectors."""
SHARE_OF_MAPS = 1 / 3
"""Of the memory maps allowed, those from which on programs are let go."""

_folder: Path | None = None


def keep_in(folder: Path | None) -> None:
    """Keeps the programs compiled from now on in this folder, and takes them from there; None: not.

    Costs about 1 MB a program; at most ``MOST_BYTES`` are kept.
    """
    global _folder
    _folder = folder


def compile_or_load(
    function: Callable[..., PyTree],
    parts: Any,
    *,
    way: str,
    devices: Sequence[Device] | None,
    donate: tuple[int, ...],
) -> Callable[..., PyTree]:
    """``devices.compile_for``, or on one device the program that is kept of the same function.

    Args:
      function: a pure function of positional pytrees.
      parts: all that it is made of besides jaxfl's source and its arguments: plain values,
        components, a plan, functions of a module.
      way: that of ``compile_for``, as the next two.
      devices: the devices; the first alone unless given.
      donate: positions of arguments whose memory the result may take.
    """
    compiled = compile_for(function, way=way, devices=devices, donate=donate)
    folder, device = _folder, (devices or jax.devices())[0]
    if folder is None or len(devices or ()) > 1:
        return compiled
    try:
        name = (describe(parts), donate, surroundings(device))
    except Unknown:
        return compiled
    return _Kept(folder, compiled, jax.jit(function, donate_argnums=donate), name, device)


def make_room() -> None:
    """Lets go of the programs of earlier runs where the kernel may soon refuse to map another.

    Each compiled program takes hundreds of a process's memory maps, of which Linux allows 65,530,
    and JAX holds on to all that it has compiled: after some fifty experiments on a CNN it fails
    with "LLVM compilation error: Cannot allocate memory". What is needed again is compiled again.
    """
    try:
        most = int(MAPS_ALLOWED.read_bytes())
        taken = MAPS.read_bytes().count(b"\n")
    except OSError:
        return  # another system, with other limits
    if taken > most * SHARE_OF_MAPS:
        for kept in list(_every):
            kept.programs.clear()
        jax.clear_caches()
        gc.collect()


def keeping() -> bool:
    """Whether programs are kept."""
    return _folder is not None


def make_ready(program: Callable[..., PyTree], *arguments: PyTree) -> None:
    """Compiles or loads what a call would run, and computes nothing; for kept programs only."""
    if isinstance(program, _Kept):
        leaves, structure = jax.tree.flatten(arguments)
        program.ready(structure, tuple(map(kind_of, leaves)), arguments)


@dataclasses.dataclass(eq=False)
class _Kept:
    """A function and its programs: one for each structure, shapes and types of the arguments."""

    folder: Path
    compiled: Callable[..., PyTree]
    jitted: Any
    name: Any
    device: Device
    programs: dict[Any, Callable[..., PyTree]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _every.add(self)

    def __call__(self, *arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(arguments)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return self.compiled(*arguments)  # part of another program
        program = self.ready(structure, tuple(map(kind_of, leaves)), arguments)
        with jax.default_device(self.device):
            return program(*arguments)

    def ready(self, structure: Any, kinds: Any, arguments: PyTree) -> Callable[..., PyTree]:
        """The program for such arguments; may be asked for by several threads."""
        program = self.programs.get((structure, kinds))
        if program is None:
            with jax.default_device(self.device):
                program = self._find(structure, kinds, arguments)
            self.programs[structure, kinds] = program
        return program

    def _find(self, structure: Any, kinds: Any, arguments: PyTree) -> Callable[..., PyTree]:
        try:
            text = repr((self.name, list(nodes(structure)), kinds))
        except Unknown:
            return self.compiled
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.program"
        with _one_at_a_time[path]:
            program = _load(path, jax.tree.structure((arguments, {})), self.device)
            if program is None:
                with _compiled_here:
                    program = self.jitted.lower(*arguments).compile()
                _save(path, program)
        return program


_every: weakref.WeakSet[_Kept] = weakref.WeakSet()


class _CompiledHere:
    """Without JAX's own cache: what comes from there cannot be written a second time.

    On the CPU it is written without its functions: it is loaded, and fails when it is called.
    The setting is the process's own: the last of several threads that are in here restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = bool(
                    jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
                )
                self._set(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._before)

    def _set(self, enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # asks for the setting once


_compiled_here = _CompiledHere()
_one_at_a_time: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def _load(path: Path, structure: Any, device: Device) -> Callable[..., PyTree] | None:
    """The program in a file; None where there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:32], content[32:]
    try:
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("damaged")
        binary, results = pickle.loads(body)
        if LAPACK in binary:
            _find_lapack()
        program = serialize_executable.deserialize_and_load(
            binary, structure, results, execution_devices=[device]
        )
    except Exception:  # whatever a file may hold: the program is compiled anew
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the last to be deleted
    return program


@functools.cache
def _find_lapack() -> None:
    """Lowers a program that needs LAPACK: JAX looks its functions up then, not at the call.

    A program that is loaded was lowered elsewhere, and would call what was never found.
    """
    jax.jit(jnp.linalg.eigh).lower(jnp.eye(1))


def _save(path: Path, program: Any) -> None:
    """Writes a program; where that cannot be done, it is not kept."""
    try:
        binary, _, results = serialize_executable.serialize(program)
        body = pickle.dumps((binary, results))
    except Exception:  # not every backend and program can
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_aside(path, hashlib.sha256(body).digest() + body)
        _shrink(path.parent, MOST_BYTES)


def _shrink(folder: Path, most: int) -> None:
    """Deletes the programs used longest ago until the rest is small enough."""
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.program"))
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
