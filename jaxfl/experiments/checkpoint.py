"""The state of a run on disk, with a sum over all its bits."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.types import PyTree


def save(path: Path, state: PyTree) -> str:
    """Writes a state into a new folder and returns the SHA-256 of what it holds.

    Of several processes the first writes.

    Raises:
      OSError: the disk does not take it; nothing is left there.
    """
    arrays = _arrays(state)
    if jax.process_index() > 0:
        return _digest(arrays)
    shutil.rmtree(path, ignore_errors=True)  # left by a run killed before its commit
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # Orbax logs every step of a failure; it is raised below
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path.resolve(), arrays)
            checkpointer.wait_until_finished()
    except Exception as error:  # Orbax raises many kinds
        for left in path.parent.glob(f"{path.name}*"):
            shutil.rmtree(left, ignore_errors=True)
        reason = _disk_error(error)
        if reason is None:
            raise
        raise OSError(0, reason) from error
    finally:
        logging.disable(before)
    return _digest(arrays)


def digest_of(tree: PyTree) -> str:
    """The SHA-256 of all leaves, their shapes and types."""
    return _digest(_arrays(tree))


def restore(path: Path, like: PyTree, digest: str) -> PyTree:
    """The state in a folder, in the structure of ``like``, as NumPy arrays.

    Raises:
      ValueError: it is not whole, or not the state whose SHA-256 is ``digest``.
    """
    damaged = f"the checkpoint {path} is damaged"
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(path.resolve(), _arrays(like))
    except Exception as error:  # by what is damaged, Orbax raises many kinds
        raise ValueError(f"{damaged} ({type(error).__name__})") from error
    if _digest(arrays) != digest:
        raise ValueError(f"{damaged} (its sum differs)")
    return _with_arrays(like, arrays)


def _checkpointer() -> Any:
    """Of this process alone: it waits for no other."""
    import orbax.checkpoint as ocp  # slow to import

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by number, keys of random streams as their data, without empty ones."""
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return {f"{i:04}": np.asarray(x) for i, x in enumerate(leaves) if x.size}


def _with_arrays(like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    for i, leaf in enumerate(leaves):
        if not leaf.size:
            continue
        array = arrays[f"{i:04}"]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            array = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        leaves[i] = array
    return jax.tree.unflatten(treedef, leaves)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _disk_error(error: BaseException | None) -> str | None:
    """What the operating system said, however deeply it is wrapped."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        for words in ("No space left on device", "Disk quota exceeded", "Read-only file system"):
            if words in str(error):
                return words
        error = error.__cause__ or error.__context__
    return None
