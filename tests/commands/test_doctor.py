"""``jaxfl doctor``: what it finds, what it says to do, and the self-test's known result."""

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxfl import __version__, cli
from jaxfl.commands import doctor
from jaxfl.experiments import selftest

REQUIREMENTS = [
    "numpy>=2",
    "pytest; extra == 'here'",
    "numpy; (sys_platform == 'linux' or sys_platform != 'linux') and extra == 'here'",
    "not-a-package-of-ours>=3; extra == 'gone'",
    "not-for-this-one; sys_platform == 'plan9' and extra == 'here'",
    "jax[cuda12]>=0.4; extra == 'inner'",
    "another-one; extra == 'dev'",
]


def ask(*words):
    return CliRunner().invoke(cli.app, ["doctor", *words])


def rows(text):
    """The table's lines, cells stripped, those that go on below put together."""
    found = []
    for line in text.splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                found.append(cells)
            else:
                found[-1] = [a + b for a, b in zip(found[-1], cells, strict=True)]
    return {cells[0]: cells[1:] for cells in found}


def test_an_extra_is_installed_or_what_is_missing_is_named():
    found = {finding.what: finding for finding in doctor.extras(REQUIREMENTS)}
    assert list(found) == ["extra gone", "extra here", "extra inner"]
    assert found["extra here"].found == "installed"
    assert found["extra here"].to_do == ""
    assert found["extra gone"].found == "missing: not-a-package-of-ours"
    assert found["extra gone"].to_do == "if you need it: pip install 'jaxfl[gone]'"
    assert doctor.requirements_of("not-a-package-of-ours") is None
    assert "jax-cuda12" in found["extra inner"].found  # what an extra of an extra asks for


def test_the_command_lists_what_is_here_and_how_to_get_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "jaxfl" / "programs").mkdir(parents=True)
    (tmp_path / "jaxfl" / "programs" / "a.program").write_bytes(bytes(3 * 2**20))
    done = ask("--quick")
    assert done.exit_code == 0, done.output
    table = rows(done.stdout)
    assert table["jax"] == [jax.__version__, ""]
    assert table["jaxfl"][0] in (__version__, "not installed")  # a checkout may be only imported
    assert table["devices"][0].startswith(f"{jax.local_device_count()} x ")
    assert table["data folder"][0].replace(" ", "") == str(tmp_path)
    assert table["data folder"][1] == ""
    assert table["data digits"] == ["embedded", ""]
    assert table["data mnist"][0] == "absent"
    assert "train-images-idx3-ubyte" in table["data mnist"][1]
    assert table["cache programs"][0].replace(" ", "").endswith("1files,3.0MiB")
    assert "self-test" not in table
    assert done.stdout.splitlines()[-1].startswith("Nothing here is broken.")


def test_who_only_imports_jaxfl_is_told_to_install_the_clone(monkeypatch):
    known = dict.fromkeys(doctor.PACKAGES, "1") | {"jaxfl": "not installed"}
    monkeypatch.setattr(doctor, "environment", lambda: {"packages": known})
    monkeypatch.setattr(doctor, "requirements_of", lambda _: None)
    found = {finding.what: finding.to_do for finding in doctor.findings(quick=True)}
    assert found["jaxfl"] == found["extras"] == "pip install . in the clone"
    monkeypatch.setitem(known, "flax", "not installed")
    found = {finding.what: finding.to_do for finding in doctor.versions()}
    assert found["flax"] == "pip install flax"


def test_a_data_folder_that_is_not_set_or_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFL_DATA_DIR", str(tmp_path / "gone"))
    assert "there is no such folder" in next(doctor.data()).to_do
    monkeypatch.delenv("JAXFL_DATA_DIR")
    first = next(doctor.data())
    assert (first.found, first.to_do[:18]) == ("none", "set JAXFL_DATA_DIR")


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not_there"))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path)
    (finding,) = doctor.caches()
    assert "set XDG_CACHE_HOME" in finding.to_do


@pytest.mark.parametrize(("digest", "code"), [("0" * 16, 1), (selftest.EXPECTED, 0)])
def test_results_that_differ_are_an_error(monkeypatch, digest, code):
    monkeypatch.setattr(selftest, "self_test", lambda: selftest.SelfTest(digest, 9.5))
    monkeypatch.setattr(doctor, "data", list)
    done = ask()
    assert done.exit_code == code
    assert ("Nothing here is broken" in done.stdout) == (code == 0)
    (found, to_do) = rows(done.stdout)["self-test"]
    assert digest in found
    assert ("FAILED" in found, bool(to_do)) == (code == 1, code == 1)


def test_one_selection_more_is_another_hash():
    found = {"Krum": {"selected": [True, False]}}
    assert selftest.digest_of(found) != selftest.digest_of({"Krum": {"selected": [True, True]}})


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_the_self_test_passes_and_nothing_that_is_hashed_lies_near_a_boundary(double):
    with jax.enable_x64(double):
        assert selftest.self_test().passed
        for rule in selftest.RULES.values():
            answer = np.asarray(rule(selftest.updates())) / selftest.UNIT
            assert np.min(np.abs(answer - np.floor(answer) - 0.5)) > 0.004
        accuracies = {
            name: selftest.accuracy_with(rule) for name, rule in selftest.DEFENCES.items()
        }
    assert accuracies["mean"] < 0.3
    assert accuracies["SignGuard"] > 0.8
