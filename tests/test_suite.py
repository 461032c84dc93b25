"""That the suite runs as its conftest.py means it to."""

import pytest


def test_tests_that_share_programs_share_a_process(request):
    """Versions of pytest and pytest-xdist that do not go together leave every test ungrouped."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@suite")
