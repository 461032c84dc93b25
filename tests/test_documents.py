"""What the documents show is run: notebooks, and the README's Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jaxfl.aggregators import Oracle, Pipeline
from jaxfl.registry import AGGREGATORS
from jaxfl.report.components import attacks_table, paper, rules_table, sentence

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)


@pytest.mark.parametrize(("name", "table"), [("rules", rules_table), ("attacks", attacks_table)])
def test_the_readme_has_the_tables_of_the_registry(name, table):
    """``jaxfl rules --markdown`` writes them."""
    pattern = rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->"
    (written,) = re.findall(pattern, (ROOT / "README.md").read_text(), re.DOTALL)
    assert written == table()


@pytest.mark.parametrize("cls", AGGREGATORS.values(), ids=lambda cls: cls.__name__)
def test_every_rule_says_what_it_needs_costs_and_who_found_it(cls):
    assert sentence(cls, "Needs")
    assert sentence(cls, "Cost:")
    assert paper(cls) or cls in (Oracle, Pipeline)


def test_the_readme_snippets_run(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippets
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(snippets)],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_commands_run(tmp_path):
    (commands,) = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "jaxfl compare" in commands
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": here + os.pathsep + os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "first" / "summary.csv").is_file()
    assert "difference" in done.stdout
