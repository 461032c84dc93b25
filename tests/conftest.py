"""Strict settings for the whole suite."""

import os
from typing import Any

import jax
import pytest


def pytest_configure() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """All tests of one rule run in one process, which compiles it once."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if name and "every rule" in (item.module.__doc__ or "").lower():
            item.add_marker(pytest.mark.xdist_group(f"{name}"))


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """Frees a rule's or a file's programs: those of the whole suite exceed the mappings allowed
    to a process (65,530 on Linux), on which compiling crashes.
    """
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    if parallel and nextitem is not None and _belongs_to(item) != _belongs_to(nextitem):
        jax.clear_caches()


def _belongs_to(item: Any) -> str:
    group = item.get_closest_marker("xdist_group")
    return group.args[0] if group else str(item.path)


@pytest.fixture
def key():
    return jax.random.key(0)
