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
import hashlib
import importlib
import inspect
import os
import pickle
import platform
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from jaxfl.devices import Device, compile_for
from jaxfl.files import write_aside
from jaxfl.models.objective import Objective
from jaxfl.types import PyTree

MOST_BYTES = 2**29
"""What a folder may hold before the programs used longest ago are deleted."""
VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose version tells their code."""
NO_EFFECT = ("cache", "log", "traceback")
"""Words in names of JAX's settings that do not change what a program computes."""

_folder: Path | None = None


class Unknown(Exception):  # noqa: N818 - no error: the program is not kept
    """A part of a program that cannot be told from another by a description."""


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


@dataclasses.dataclass
class _Kept:
    """A function and its programs: one for each structure, shapes and types of the arguments."""

    folder: Path
    compiled: Callable[..., PyTree]
    jitted: Any
    name: Any
    device: Device
    programs: dict[Any, Callable[..., PyTree]] = dataclasses.field(default_factory=dict)

    def __call__(self, *arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(arguments)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.compiled(*arguments)  # part of another program
        kinds = tuple(map(_kind, leaves))
        with jax.default_device(self.device):
            if (structure, kinds) not in self.programs:
                self.programs[structure, kinds] = self._find(structure, kinds, arguments)
            return self.programs[structure, kinds](*arguments)

    def _find(self, structure: Any, kinds: Any, arguments: PyTree) -> Callable[..., PyTree]:
        try:
            text = repr((self.name, list(_nodes(structure)), kinds))
        except Unknown:
            return self.compiled
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.program"
        program = _load(path, jax.tree.structure((arguments, {})), self.device)
        if program is None:
            with _compiled_here():
                program = self.jitted.lower(*arguments).compile()
            _save(path, program)
        return program


@contextlib.contextmanager
def _compiled_here() -> Iterator[None]:
    """Without JAX's own cache: what comes from there cannot be written a second time.

    On the CPU it is written without its functions: it is loaded, and fails when it is called.
    """
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # asks for the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


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


def describe(value: Any) -> Any:
    """A value as nested tuples of texts, equal for equal values in any process.

    Raises:
      Unknown: it has code that no version tells, or is of a kind that has no description.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        return tuple(map(describe, value))
    if isinstance(value, dict):
        return tuple((describe(key), describe(inner)) for key, inner in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes().hex()
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, type | types.FunctionType):
        return _global(value)
    if isinstance(value, Objective):  # all else in it follows from these
        return describe((value.factory, value.loss_function, value.shapes))
    if dataclasses.is_dataclass(value) and _package(value) == "jaxfl":
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return _global(type(value)), describe(fields)
    text = repr(value)
    if _package(value) not in VERSIONED or " at 0x" in text:
        raise Unknown(text)
    return _global(type(value)), text


def _nodes(structure: Any) -> Iterator[Any]:
    """Every node of a pytree: its type, what is static in it, and how many children."""
    node, children = structure.node_data(), structure.children()
    yield None if node is None else describe(node), len(children)
    for child in children:
        yield from _nodes(child)


def _kind(leaf: Any) -> tuple[Any, ...]:
    kind = getattr(leaf, "dtype", type(leaf).__name__)
    return np.shape(leaf), str(kind), bool(getattr(leaf, "weak_type", False))


def _package(value: Any) -> str:
    """The package of a class, a function, or a value's class."""
    named = value if isinstance(value, type | types.FunctionType) else type(value)
    return named.__module__.partition(".")[0]


def _global(named: Any) -> str:
    """A class or function of jaxfl, a package of ``VERSIONED`` or Python, by its name."""
    if _package(named) not in ("jaxfl", "builtins", "collections", *VERSIONED):
        raise Unknown(repr(named))
    module = sys.modules[named.__module__]
    if inspect.isfunction(named) and getattr(module, named.__qualname__, None) is not named:
        raise Unknown(repr(named))  # a local function may close over anything
    return f"{named.__module__}:{named.__qualname__}"


def surroundings(device: Device) -> tuple[Any, ...]:
    """What else decides how a program compiles here: code, versions, settings, flags, machine."""
    settings = jax.config.values  # pyright: ignore[reportAttributeAccessIssue]
    return (
        _source(),
        tuple(map(version, VERSIONED)),
        platform.python_version(),
        tuple(
            (key, repr(value))
            for key, value in sorted(settings.items())
            if not any(word in key for word in NO_EFFECT)
        ),
        tuple((key, os.environ.get(key, "")) for key in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
        (device.platform, device.device_kind, device.id, jax.device_count()),
        device.client.platform_version,
        _machine(),
    )


@functools.cache
def _source() -> str:
    """The sum over jaxfl's own source."""
    package = importlib.import_module("jaxfl")
    root = Path(str(package.__file__)).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return total.hexdigest()


@functools.cache
def _machine() -> tuple[Any, ...]:
    """The processor and what it can do: a home folder may be shared by unlike machines."""
    facts: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        facts = sorted({line for line in lines if line.startswith(wanted)})
    return platform.machine(), platform.processor(), os.cpu_count(), *facts
