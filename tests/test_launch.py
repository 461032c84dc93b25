"""The command starts once more with another malloc, and is otherwise the same command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxfl_launch
from jaxfl_launch import (
    CORES,
    FLAGS,
    SETTINGS,
    SWITCH,
    TUNABLES,
    a_device_per_core,
    has_glibc,
    improved,
)

STUB = """
import json, os, sys
def main():
    print(json.dumps([sys.argv, os.environ.get("GLIBC_TUNABLES"), sys.flags.utf8_mode]))
    print("jax" in sys.modules, file=sys.stderr)
    sys.exit(7)
"""


@pytest.fixture
def launched(tmp_path):
    """The launcher beside a package that says how it was called."""
    shutil.copy(jaxfl_launch.__file__, tmp_path)
    (tmp_path / "jaxfl").mkdir()
    (tmp_path / "jaxfl" / "__init__.py").touch()
    (tmp_path / "jaxfl" / "cli.py").write_text(STUB)

    def run(*words, flags=(), **changes):
        clean = {k: v for k, v in os.environ.items() if k not in (SETTINGS, SWITCH)}
        script = str(tmp_path / "jaxfl_launch.py")
        return script, subprocess.run(
            [sys.executable, *flags, script, *words],
            env=clean | changes,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.skipif(not has_glibc(), reason="malloc is not glibc's")
def test_arguments_flags_and_exit_code_are_those_of_the_command(launched):
    words = ("run", "x.toml", "--set", "a = [1, 'b c']", "")
    script, done = launched(*words, flags=("-X", "utf8"))
    assert done.returncode == 7
    assert json.loads(done.stdout) == [[script, *words], TUNABLES, 1]
    assert done.stderr == "False\n"


@pytest.mark.parametrize(
    "changes", [{SWITCH: "system"}, {SETTINGS: "glibc.malloc.check=0"}, {SETTINGS: ""}]
)
def test_malloc_is_left_alone_where_the_user_says_so(launched, changes):
    script, done = launched("list", **changes)
    assert done.returncode == 7
    assert json.loads(done.stdout)[:2] == [[script, "list"], changes.get(SETTINGS)]


def test_an_unknown_switch_is_one_line(launched):
    _, done = launched("list", **{SWITCH: "fast"})
    assert done.returncode == 2
    assert done.stderr == "jaxfl: error: JAXFL_MALLOC must be system or not set; got 'fast'\n"


def test_every_core_is_a_device_unless_the_user_says_how_many():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert a_device_per_core({}) == f"{CORES}={cores}"
    assert a_device_per_core({FLAGS: "--xla_a=b"}) == f"--xla_a=b {CORES}={cores}"
    assert a_device_per_core({FLAGS: f"{CORES}=8"}) == f"{CORES}=8"


def test_it_starts_again_once_and_only_with_glibc():
    again = improved({"A": "b"}, glibc=True)
    assert again == {"A": "b", SETTINGS: TUNABLES}
    assert improved(again, glibc=True) is None
    assert improved({"A": "b"}, glibc=False) is None


def test_where_a_program_may_not_be_replaced_the_command_runs_as_it_is(monkeypatch):
    ran = []

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.delenv(SETTINGS, raising=False)
    monkeypatch.setitem(sys.modules, "jaxfl.cli", SimpleNamespace(main=lambda: ran.append(1)))
    jaxfl_launch.main()
    assert ran == [1]


def test_the_module_is_the_entry_point_and_in_the_wheel():
    text = (Path(jaxfl_launch.__file__).parent / "pyproject.toml").read_text()
    assert 'jaxfl = "jaxfl_launch:main"' in text
    assert 'only-include = ["jaxfl", "jaxfl_launch.py"]' in text
