"""Strict settings for the whole suite."""

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


@pytest.fixture
def key():
    return jax.random.key(0)
