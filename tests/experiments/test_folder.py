"""Run folders: stopping, resuming, refusing what does not belong there."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest
from helpers import run_until

from jaxfl.experiments import schema
from jaxfl.experiments.environment import recorded, revision
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.experiments.running import Interrupted

TABLE = {
    "rounds": 5,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "byzantine": 2,
    "model": {"name": "mlp", "hidden": [4], "dropout": 0.2},
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "data": {"name": "synthetic", "clients": 8, "samples": 80, "features": 4, "classes": 3},
    "sweep": {
        "seed": [0, 1],
        "algorithm": [
            {"name": "fedavg", "batch_size": 4},
            {"name": "fedsgd", "batch_size": 4, "momentum": 0.9},
        ],
        "aggregator": [{"name": "centered_clipping"}, {"name": "krum", "f": 4}],
    },
}


pytestmark = pytest.mark.xdist_group("folder")  # all share one run


def small(**changes):
    return schema.parse("small", copy.deepcopy(TABLE) | changes)


def run(path, *, experiment=None, **settings):
    return run_until(path, experiment or small(), **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, run(path)


def test_the_log_has_every_round_of_every_run(whole):
    path, results = whole
    lines = [json.loads(text) for text in (path / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 5
    places = {(x["cell"], x["seed"], x["round"]) for x in lines}
    assert places == {(c, s, r) for c in (0, 2) for s in (0, 1) for r in range(1, 6)}
    ends = [x for x in lines if "test_accuracy" in x]
    assert {x["round"] for x in ends} == {2, 4, 5}
    assert len({x["params_sha256"] for x in lines if "params_sha256" in x}) == 4
    assert [r.status for r in results] == ["done", results[1].status] * 2
    assert "Krum needs n >= 2f + 3 clients" in results[1].status
    for index in (0, 2):
        mine = [x["test_accuracy"] for x in ends if x["cell"] == index and x["round"] == 5]
        np.testing.assert_allclose(results[index].finals, mine)


@pytest.mark.parametrize("blocks", [1, 2, 4, 5])
def test_a_stopped_run_resumes_to_the_same_bits(whole, tmp_path, blocks):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", stop_after=blocks)
    results = run(tmp_path / "run", resume=True)
    for name in ("rounds.jsonl", "experiment.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()
    assert not list((tmp_path / "run" / "checkpoint").iterdir())
    for mine, theirs in zip(results, whole[1], strict=True):
        np.testing.assert_array_equal(mine.test, theirs.test)


@pytest.mark.slow
def test_the_memory_of_rules_is_part_of_a_checkpoint(tmp_path):
    rules = ["signguard_dist", "foolsgold", "clipped_clustering"]
    experiment = small(rounds=4, model="softmax", sweep={"seed": [0, 1], "aggregator": rules})
    run(tmp_path / "whole", experiment=experiment)
    for stop_after in (1, 2, 2):  # each time within another cell
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", experiment=experiment, stop_after=stop_after, resume=True)
    run(tmp_path / "parts", experiment=experiment, resume=True)
    whole, parts = ((tmp_path / name / "rounds.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_the_servers_memory_is_part_of_a_checkpoint(tmp_path):
    changes = {"model": "softmax", "data": TABLE["data"] | {"root": {"size": 10}}}
    changes["algorithm"] = {"name": "fedsgd", "batch_size": 4, "momentum": 0.9}
    changes["sweep"] = {"seed": [0, 1], "aggregator": ["fltrust"]}
    experiment = small(**changes)
    run(tmp_path / "whole", experiment=experiment)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", experiment=experiment, stop_after=1)
    run(tmp_path / "parts", experiment=experiment, resume=True)
    whole, parts = ((tmp_path / name / "rounds.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_what_was_written_after_the_last_commit_is_cut_off(whole, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=2)
    with (tmp_path / "rounds.jsonl").open("ab") as log:
        log.write(b'{"cell": 0, "seed": 0, "rou')
    (tmp_path / "checkpoint" / "cell-0-round-99").mkdir()
    run(tmp_path, resume=True)
    assert (tmp_path / "rounds.jsonl").read_bytes() == (whole[0] / "rounds.jsonl").read_bytes()


def test_results_are_read_back(whole):
    experiment, results = read_results(whole[0])
    assert experiment.cells == small().cells
    for mine, theirs in zip(results, whole[1], strict=True):
        np.testing.assert_array_equal(mine.test, theirs.test)
        assert mine.status == theirs.status, "the reason, too, where it did not run"
        assert mine.honest_selected == pytest.approx(theirs.honest_selected, nan_ok=True)


def test_resuming_a_finished_run_runs_nothing(whole):
    def watch(*_):
        raise AssertionError("a cell ran")

    with RunFolder(whole[0], small(), resume=True) as folder:
        assert folder.finished
        assert len(list(run_experiment(folder, watch))) == 4


@pytest.fixture
def stopped(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=2)
    return tmp_path


def test_an_unfinished_run_is_not_overwritten(stopped):
    log = (stopped / "rounds.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"unfinished run \(cell 1 of 4, round 4\); --resume"):
        run(stopped)
    assert (stopped / "rounds.jsonl").read_bytes() == log


def test_a_finished_run_is_run_anew(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    run(path)
    assert (path / "rounds.jsonl").read_bytes() == (whole[0] / "rounds.jsonl").read_bytes()


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_not_overwritten_by_another_experiment(whole, resume):
    before = contents(whole[0])
    message = "holds another experiment: rounds is 5 there, 2 here; --out chooses another folder, "
    with pytest.raises(ValueError, match=f"{message}--force overwrites"):
        run(whole[0], resume=resume, experiment=small(rounds=2))
    assert contents(whole[0]) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_its_commit_point_is_not_overwritten(whole, tmp_path, resume):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    (path / "progress.json").unlink()
    before = contents(path)
    with pytest.raises(ValueError, match=r"holds rounds.jsonl, but no progress.json; .* --force"):
        run(path, resume=resume)
    assert contents(path) == before


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "experiment.toml").write_text("# mine")
    with pytest.raises(ValueError, match=r"holds experiment.toml, but no progress.json"):
        run(tmp_path)
    assert (tmp_path / "experiment.toml").read_text() == "# mine"


def test_force_overwrites_when_the_first_block_is_done(whole, tmp_path):
    path, other = tmp_path / "run", small(rounds=2)
    shutil.copytree(whole[0], path)
    for old in ("sweep.png", "sweep.svg"):
        (path / old).write_bytes(b"old")
    before = contents(path)
    with (
        pytest.raises(RuntimeError, match="before the first block"),
        RunFolder(path, other, force=True),
    ):
        raise RuntimeError("before the first block")
    assert contents(path) == before
    run(path, force=True, experiment=other)
    assert read_results(path)[0].cells == other.cells
    assert not list(path.glob("sweep.*"))
    with pytest.raises(ValueError, match="give one of them"):
        run(path, force=True, resume=True)


def test_an_edited_log_is_refused(stopped):
    log = stopped / "rounds.jsonl"
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    text = json.dumps(lines[1]["test_accuracy"])
    edited = log.read_text().replace(text, str(1 - float(text))[: len(text)].ljust(len(text), "0"))
    assert len(edited) == len(log.read_text())
    assert edited != log.read_text()
    log.write_text(edited)
    with pytest.raises(ValueError, match=r"rounds.jsonl is damaged: its sum is not that"):
        run(stopped, resume=True)


def test_the_sum_is_that_of_the_file(whole):
    progress = json.loads((whole[0] / "progress.json").read_text())
    log = (whole[0] / "rounds.jsonl").read_bytes()
    assert progress["log_bytes"] == len(log)
    assert progress["log_digest"] == hashlib.sha256(log).hexdigest()


def test_another_experiment_is_refused_by_name(stopped):
    with pytest.raises(ValueError, match="holds another experiment: rounds is 5 there, 6 here"):
        run(stopped, resume=True, experiment=small(rounds=6))
    other = small(model={"name": "mlp", "hidden": [5], "dropout": 0.2})
    with pytest.raises(ValueError, match=r"model\.hidden is .4. there, .5. here"):
        run(stopped, resume=True, experiment=other)
    with pytest.raises(ValueError, match="another experiment: noise_order is not set there"):
        run(stopped, resume=True, experiment=small(noise_order="attack_then_noise"))


def edit_environment(folder, **changes):
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_that_goes_on_in_another_environment_says_so_and_records_it(stopped):
    edit_environment(stopped, packages={"jax": "0.1", "jaxfl": "0.0.1"}, x64=None, git="1234")
    with pytest.warns(UserWarning, match=r"goes on in another environment: .*'0\.1'.*") as said:
        run(stopped, stop_after=50, resume=True)
    (line,) = [str(warning.message) for warning in said if "goes on" in str(warning.message)]
    for word in ("packages.jax '0.1' before", "x64 None before, False now", "git '1234' before"):
        assert word in line
    begun = recorded(stopped)
    assert begun["packages"]["jax"] == "0.1"
    (later,) = begun["resumed"]
    assert later["packages"]["jax"] == jax.__version__
    assert read_results(stopped)[1]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("missing", [False, True])
def test_a_run_that_goes_on_where_it_was_says_nothing(stopped, missing):
    if missing:  # of an older version, or damaged: no result depends on it
        (stopped / "environment.json").write_text("{}")
    with pytest.raises(Interrupted):
        run(stopped, stop_after=1, resume=True)
    edit_environment(stopped, resumed=[recorded(stopped)])
    edit_environment(stopped, git="1234")  # where it was begun; the last place counts
    if not missing:
        run(stopped, resume=True)
        edit_environment(stopped, packages={})
        run(stopped, resume=True)  # nothing is left to run


def test_a_revision_is_that_of_the_repository_that_tracks_the_file(tmp_path):
    """Installed into an environment that lies in another project, jaxfl is not of its revision."""
    package = tmp_path / "venv" / "jaxfl"
    package.mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("venv\n")
    (package / "one.py").write_text("")

    def git(*words):
        settings = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *settings, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("add", ".gitignore")
    git("commit", "-m", "theirs")
    assert revision(package / "one.py") == "unknown"
    git("add", "--force", "venv/jaxfl/one.py")
    git("commit", "-m", "ours")
    assert revision(package / "one.py") == git("rev-parse", "HEAD")
    (package / "one.py").write_text("changed")
    assert revision(package / "one.py") == git("rev-parse", "HEAD") + "+"


def swapped(grid):
    return dict(reversed(grid.items()))


@pytest.mark.parametrize("resume", [False, True])
def test_axes_in_another_order_are_refused(stopped, resume):
    """Cells are numbered in that order: a log would hold two cells of one number."""
    message = (
        r"another order of the axes of \[sweep\]: seed, algorithm, aggregator there, "
        "aggregator, algorithm, seed here"
    )
    with pytest.raises(ValueError, match=message):
        run(stopped, resume=resume, experiment=small(sweep=swapped(TABLE["sweep"])))


def test_tuned_keys_in_another_order_are_refused(tmp_path):
    tune = {"optimizer.learning_rate": [0.1, 0.2], "optimizer.momentum": [0.5, 0.9]}
    changes = {"validation": 0.2, "sweep": {"aggregator": ["mean"]}}
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=1, experiment=small(tune=tune, **changes))
    with pytest.raises(ValueError, match=r"another order of the axes of \[tune\]"):
        run(tmp_path, resume=True, experiment=small(tune=swapped(tune), **changes))


def test_a_run_goes_on_on_other_devices_than_its_own(whole, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", stop_after=2)
    elsewhere = small(devices=1, way="pmap")
    with pytest.raises(ValueError, match="another experiment: devices is not set there"):
        run(tmp_path / "run", experiment=elsewhere)
    told = small(devices=1, way="pmap", title="The same, told otherwise", findings=[])
    run(tmp_path / "run", experiment=told, resume=True)
    text = (tmp_path / "run" / "experiment.toml").read_text()
    assert "The same, told otherwise" in text
    assert "pmap" not in text, "what ran before is not told otherwise"
    logs = [folder / "rounds.jsonl" for folder in (tmp_path / "run", whole[0])]
    assert logs[0].read_bytes() == logs[1].read_bytes()


def biggest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "progress.json").write_text('{"cell": 0'), "progress.json is damaged"),
        (lambda p: (p / "progress.json").write_text('{"sell": 0}'), "progress.json is damaged"),
        (lambda p: (p / "rounds.jsonl").write_text(""), "rounds.jsonl is damaged: it is shorter"),
        (lambda p: flip(p / "rounds.jsonl"), "rounds.jsonl is damaged"),
        (lambda p: (p / "experiment.toml").unlink(), "experiment.toml is missing or damaged"),
    ],
)
def test_a_damaged_folder_is_refused(stopped, damage, message):
    damage(stopped)
    with pytest.raises(ValueError, match=message) as error:
        run(stopped, resume=True)
    assert "\n" not in str(error.value)


def other_numbers(folder: Path) -> None:
    progress = json.loads((folder / "progress.json").read_text())
    progress["digest"] = "0" * 64
    (folder / "progress.json").write_text(json.dumps(progress))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: flip(biggest(p / "checkpoint")), r".*"),
        (lambda p: shutil.rmtree(p / "checkpoint"), r".*"),
        (other_numbers, r"\(its sum differs\)"),
    ],
)
def test_a_cell_whose_checkpoint_is_damaged_is_run_again(whole, tmp_path, damage, reason):
    with pytest.raises(Interrupted):
        run(tmp_path, stop_after=5)
    before = json.loads((tmp_path / "progress.json").read_text())
    assert (before["cell"], before["round"]) == (2, 4)
    damage(tmp_path)
    started = []

    def watch(groups, at, rounds):
        started.append((groups[at].indices, rounds))
        return lambda *_: None

    message = f"cell-2-round-4 is damaged {reason}: .* is run again from round 0"
    with (
        pytest.warns(UserWarning, match=message),
        RunFolder(tmp_path, small(), resume=True) as folder,
    ):
        list(run_experiment(folder, watch))
    assert started == [((2,), 0)], "the first cell is kept"
    assert (tmp_path / "rounds.jsonl").read_bytes() == (whole[0] / "rounds.jsonl").read_bytes()
    assert read_results(tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match="is in use by another run"),
    ):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.argv = ["jaxfl", "run", sys.argv[1], "--out", sys.argv[2], "--quiet", *sys.argv[3:]]
from jaxfl.experiments import folder
before = folder.RunFolder.commit
def commit(self, cell, rounds, state=None):
    if rounds == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    before(self, cell, rounds, state)
folder.RunFolder.commit = commit
from jaxfl.cli import main
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(whole, tmp_path):
    """A limit on the size of files stands in for the disk, from the second checkpoint on."""
    experiment = tmp_path / "small.toml"
    shutil.copy(whole[0] / "experiment.toml", experiment)
    words = [sys.executable, "-c", LIMITED, experiment, tmp_path / "run"]
    done = subprocess.run(
        words,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"cannot write to {tmp_path / 'run'}: " in line
    assert "too large" in line
    run(tmp_path / "run", resume=True)
    log = (tmp_path / "run" / "rounds.jsonl").read_bytes()
    assert log == (whole[0] / "rounds.jsonl").read_bytes()


@pytest.mark.slow
def test_thirty_kills_at_random_moments():
    script = Path(__file__).parent.parent / "kill_check.py"
    words = [sys.executable, script, "--kills", "30"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal bit for bit" in done.stdout
