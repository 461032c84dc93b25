"""The command line, as a person would use it."""

import csv
import os
import subprocess
import sys

import pytest

SMALL = """
rounds = 4
evaluate_every = 2
byzantine = 2
model = "softmax"
[data]
name = "synthetic"
clients = 10
samples = 200
features = 4
classes = 3
[sweep]
seed = [0, 1]
attack = ["none", { name = "ipm", scale = 10.0 }]
aggregator = ["mean", "krum", { name = "krum", f = 4 }]
"""


def jaxfl(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxfl.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_run_writes_a_table_and_a_plot_whose_paths_it_prints(small, tmp_path):
    done = jaxfl("run", small, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    assert "runs/small/accuracy.png" in done.stdout
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["status"] for row in rows} > {"done"}
    assert "n/a" in done.stdout
    for row in rows:
        if row["status"] == "done":
            assert f"{float(row['final_accuracy']) * 100:.1f}" in done.stdout
    assert "\x1b[" not in done.stdout, "plain lines where there is no terminal"
    assert sorted(p.name for p in folder.iterdir()) == ["accuracy.png", "summary.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstartt"], "did you mean 'quickstart'"),
        (["run", "small.toml", "--set", "byzantine=11"], "byzantine must be at most"),
        (["run", "small.toml", "--set", "data.clients=0"], "data.clients must be an integer"),
        (["run", "small.toml", "--set", 'sweep.aggregator=["krumm"]'], "did you mean 'krum'"),
        (
            ["run", "small.toml", "--set", 'sweep.aggregator=[{name="krum",f=4}]'],
            "Krum needs n >= 2f + 3 clients; got n = 10, f = 4",
        ),
        (["run", "small.toml", "--set", "data={name='mnist'}"], "JAXFL_DATA_DIR"),
        (["run", "small.toml", "--set", "data={name='mnist'}", "--data-dir", "."], "is missing"),
    ],
)
def test_a_mistake_is_one_line_and_a_bad_exit_code(small, tmp_path, arguments, message):
    done = jaxfl(*arguments, cwd=tmp_path, JAXFL_DATA_DIR="")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_list_names_the_quickstart(tmp_path):
    done = jaxfl("list", cwd=tmp_path)
    assert done.returncode == 0
    assert "quickstart" in done.stdout
