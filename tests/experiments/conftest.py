"""What the tests of this folder share."""

import pytest
from helpers import SMALL_GRID, ran


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a run of ``SMALL_GRID``."""
    return ran(SMALL_GRID, tmp_path_factory.mktemp("kept"))[0]
