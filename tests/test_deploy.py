"""What puts jaxfl on other machines: the SLURM script, the image's files, the conda recipe."""

import os
import re
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

import jaxfl

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
STUBS = {
    # As SLURM's: the command once for each task, in parallel; signals go on to the tasks.
    "srun": """
        while [[ $1 == --* ]]; do options+=("$1"); shift; done
        echo "${SRUN_CPUS_PER_TASK:-1} ${options[*]}" > "$SAID.srun"
        trap 'kill -TERM $(jobs -p)' TERM
        for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" & done
        code=0
        for job in $(jobs -p); do
          while kill -0 $job 2>/dev/null; do code=0; wait $job || code=$?; done
        done
        exit $code
    """,
    "scontrol": """
        if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$SAID"; fi
    """,
    # Says how it was called; runs until it is told to stop, if asked to.
    "jaxfl": """
        echo "$@" >> "$SAID"
        trap 'exit 130' TERM
        while [ -n "${LASTS:-}" ]; do sleep 0.05; done
    """,
}


@pytest.fixture
def submit(tmp_path):
    """Starts the script as SLURM would; the process, and the file of what was called."""
    for name, text in STUBS.items():
        path = tmp_path / name
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(0o755)
    said = tmp_path / "said"
    said.touch()
    started = []

    def start(*words, tasks=1, **variables):
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SAID": str(said),
            "SLURM_NTASKS": str(tasks),
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NODELIST": "node[7-8]",
        }
        script = ["bash", str(DEPLOY / "jaxfl.sbatch"), *words]
        environment = os.environ | given | variables
        process = subprocess.Popen(script, env=environment, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, said

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_task_is_one_run_that_can_go_on(submit):
    process, said = submit("my file.toml", "out")
    assert process.wait(20) == 0
    assert said.read_text() == "run my file.toml --out out --resume\n"


def test_several_tasks_are_processes_of_one_run(submit):
    process, said = submit("my.toml", "out", tasks=3)
    assert process.wait(20) == 0
    call = "run my.toml --out out --resume --coordinator node7:24242 --processes 3 --process-id"
    assert sorted(said.read_text().splitlines()) == [f"{call} {i}" for i in range(3)]


@pytest.mark.parametrize("cores", ["16", ""])
def test_each_task_gets_the_cores_that_the_job_has_for_it(submit, cores):
    process, said = submit("my.toml", "out", tasks=2, SLURM_CPUS_PER_TASK=cores)
    assert process.wait(20) == 0
    cpus, *options = said.with_suffix(".srun").read_text().split()
    assert cpus == (cores or "1")
    assert options == ["--kill-on-bad-exit=0"]


def test_a_job_at_its_time_limit_stops_and_is_queued_again(submit):
    process, said = submit("my.toml", "out", tasks=2, LASTS="1")
    while said.read_text().count("\n") < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert said.read_text().splitlines()[2:] == ["requeue 4242"]


def test_what_is_missing_is_said(submit):
    process, said = submit("my.toml")
    assert process.wait(20) != 0
    assert "usage: sbatch jaxfl.sbatch EXPERIMENT FOLDER" in process.stderr.read()
    assert said.read_text() == ""


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_recipe_asks_for_what_the_project_does():
    recipe = (DEPLOY / "conda" / "recipe.yaml").read_text()
    run = recipe[recipe.index("  run:") : recipe.index("tests:")]
    (oldest,) = re.findall(r'^  python_min: "(.*)"$', recipe, re.MULTILINE)
    lines = re.findall(r"^ +- (.*)$", run.replace("${{ python_min }}", oldest), re.MULTILINE)
    asked = {line.replace(" ", "") for line in lines}
    wanted = {
        "matplotlib-base" + d[10:] if d.startswith("matplotlib") else d
        for d in project()["dependencies"]
    }
    assert asked == wanted | {"python" + project()["requires-python"]}
    assert f'version: "{jaxfl.__version__}"' in recipe


def test_the_image_is_made_of_files_that_are_there():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [words.split() for words in re.findall(r"^COPY (.*)$", text, re.MULTILINE)]
    files = {name for *names, _ in copied for name in names}
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert files == set(allowed)
    assert all((ROOT / name).exists() for name in files)
    assert "cuda13" in project()["optional-dependencies"]


def test_every_extra_of_users_is_installed_alone_by_continuous_integration():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (listed,) = re.findall(r"extra: \[(.*)\]", workflow)
    (made,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = (ROOT / ".ci" / "extra").read_text()
    cases = re.findall(r"^  (\w[\w |]*)\) tests=\((\S+)", script, re.MULTILINE)
    tried = {name: path.strip(")") for names, path in cases for name in names.split(" | ")}
    # Those of contributors are what `make` installs; a GPU, no runner has.
    others = {"all", "dev", "docs", "peers", "cuda13"}
    assert set(tried) == set(project()["optional-dependencies"]) - others
    assert set(tried) == set(listed.split(", ")) == set(made.split())
    assert all((ROOT / path).exists() for path in tried.values())
