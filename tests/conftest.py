"""Strict settings for the whole suite, its compiler, and which tests share a process."""

import gc
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fast_compiler
import jax
import pytest
from hypothesis import settings
from program_cache import ProgramCache

MOST_MAPPINGS = 20_000
# XLA's own caches would make the folder's path, new each time, a part of every program's key.
PERSISTENT_CACHE = {
    "min_compile_time_secs": 0,
    "min_entry_size_bytes": -1,
    "enable_xla_caches": "none",
}
# Tracing makes millions of small objects and hardly any circles: rare searches are cheaper.
GARBAGE = (100_000, 20, 50)
PROGRAMS = pytest.StashKey[ProgramCache]()
# Few tests that take long: started first, so that no process is left alone with them at the end.
LONG = (
    *("gpu", "devices", "documents", "mutations", "folder", "hosts", "auditing", "cli", "profile"),
    *("cluster", "tfds", "results", "findings"),
)
# The same examples every time; `--hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--default-compiler",
        action="store_true",
        help="compile as for users, not as fast as can be; runs the tests marked default_compiler",
    )


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Where in Python an operation was written is looked up for each one that is lowered.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    cache = getattr(config, "cache", None)
    if not config.option.default_compiler:
        fast_compiler.ask_for_it(cache)
        if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
            jax.config.update("jax_disable_most_optimizations", True)
    if config.getoption("numprocesses", None):
        return  # runs no test itself
    root = Path(cache.mkdir("jaxfl_programs") if cache else tempfile.mkdtemp(prefix="jaxfl-"))
    programs = config.stash[PROGRAMS] = ProgramCache(root)
    jax.config.update("jax_compilation_cache_dir", str(programs.folder))
    for name, value in PERSISTENT_CACHE.items():
        jax.config.update(f"jax_persistent_cache_{name}", value)
        os.environ[f"JAX_PERSISTENT_CACHE_{name.upper()}"] = str(value)
    # Of the command line; Matplotlib's list of fonts, made in seconds, stays where it is.
    os.environ.setdefault("MPLCONFIGDIR", str(cache.mkdir("jaxfl_matplotlib") if cache else root))
    os.environ["XDG_CACHE_HOME"] = str(programs.home)
    # Processes that tests start, too, take what earlier runs of the suite compiled.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs.folder)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    programs = session.config.stash.get(PROGRAMS, None)
    if programs:
        programs.close(keep=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    report = yield
    if report.failed and PROGRAMS in item.config.stash:
        item.config.stash[PROGRAMS].doubt(call.start, time.time())
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Tests that compile the same programs run in one process, the longest first."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))
        if item.get_closest_marker("default_compiler") and not config.option.default_compiler:
            item.add_marker(pytest.mark.skip(reason="needs --default-compiler"))
    counts = Counter(map(_belongs_to, items))

    def order(item: Any) -> tuple[int, int, str]:
        group = _belongs_to(item)
        place = LONG.index(group) if group in LONG else len(LONG)
        return place, -counts[group], group

    items.sort(key=order)


def _group(item: Any) -> str:
    """The value of the parameter that the module's ``grouped_by`` names, or else the file."""
    marker = item.get_closest_marker("grouped_by")
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if marker and marker.args[0] == "function":
        return item.originalname
    if marker and marker.args[0] in parameters:
        return str(parameters[marker.args[0]])
    return item.path.stem.removeprefix("test_")


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
    return item.get_closest_marker("xdist_group").args[0]


@pytest.fixture
def key():
    return jax.random.key(0)
