"""Strict settings for the whole suite."""

import jax
import pytest


def pytest_configure() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)
