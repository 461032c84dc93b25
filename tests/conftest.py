"""Strict settings for the whole suite."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings

MOST_MAPPINGS = 20_000
# The same examples every time; `--hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Many programs of different tests are the same: each process keeps its own, on disk. A
    # folder for all would have readers of what is half written.
    folder = tempfile.mkdtemp(prefix="jaxfl-tests-")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """All tests of one rule run in one process, which compiles it once."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if name and "every rule" in (item.module.__doc__ or "").lower():
            item.add_marker(pytest.mark.xdist_group(f"{name}"))


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """Frees compiled programs before they need more mappings than Linux allows a process.

    The limit is 65,530 (vm.max_map_count); past it the compiler crashes.
    """
    maps = Path("/proc/self/maps")
    if nextitem is None or _belongs_to(item) == _belongs_to(nextitem) or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


def _belongs_to(item: Any) -> str:
    group = item.get_closest_marker("xdist_group")
    return group.args[0] if group else str(item.path)


@pytest.fixture
def key():
    return jax.random.key(0)
