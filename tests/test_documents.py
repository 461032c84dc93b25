"""What the documents show is run, what is generated is compared, and links lead somewhere."""

import inspect
import itertools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jaxfl.aggregators import Oracle, PerLayer, Pipeline
from jaxfl.registry import AGGREGATORS
from jaxfl.report import quoted
from jaxfl.report.components import attacks_table, paper, rules_table, sentence
from jaxfl.report.public import public_names, public_page
from jaxfl.report.reference import experiments_page
from jaxfl.report.replications import replications_page

ROOT = Path(__file__).parent.parent


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = {"06_pytorch": "torch"}
"""What notebooks import that the tests do not ask for."""
CORES, GOAL = 2, 120
MOST_SECONDS = CORES * GOAL
"""Processor time of a notebook that two idle cores run in two minutes: other than the clock's, it
does not grow by what else the suite runs. ``python -m benchmarks.notebooks`` asks the clock."""
CELL = 600
"""Seconds by the clock, on a busy machine, after which a cell does not end any more."""
READ = {"05_language_model": "ag_news"}
"""What published data they read."""


def processor_seconds():
    """Of the processes that this one began and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_begins_with_one_cell_that_installs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert ["%pip install" in source for source in cells] == [True] + [False] * (len(cells) - 1)
    more = f" {NEEDED[path.stem]}" if path.stem in NEEDED else ""
    assert cells[0].endswith(f"%pip install --quiet {{source}}{more}")
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_pictures(path):
    if needed := NEEDED.get(path.stem):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    read = READ.get(path.stem)
    if read and not Path(os.environ.get("JAXFL_DATA_DIR", ""), read).is_dir():
        pytest.skip(f"JAXFL_DATA_DIR does not name a folder with {read}")
    notebook, used = nbformat.read(path, as_version=4), processor_seconds()
    NotebookClient(notebook, timeout=CELL, kernel_name="python3").execute()
    assert processor_seconds() - used < MOST_SECONDS
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)


@pytest.mark.parametrize(("name", "table"), [("rules", rules_table), ("attacks", attacks_table)])
def test_the_page_of_components_has_the_tables_of_the_registry(name, table):
    """``jaxfl rules --markdown`` writes them."""
    pattern = rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->"
    (written,) = re.findall(pattern, (ROOT / "docs" / "components.md").read_text(), re.DOTALL)
    assert written == table()


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("experiments", experiments_page),
        ("public_api", public_page),
        ("replications", lambda: replications_page(ROOT / "results")),
    ],
)
def test_a_generated_page_is_what_the_code_says(name, page):
    """``python -m jaxfl.report.reference docs`` writes them."""
    written = (ROOT / "docs" / f"{name}.md").read_text()
    assert written == page()
    # The last column says what a name is or what a field means.
    assert not re.search(r"\|\s*\|$", written, re.MULTILINE)


@pytest.mark.parametrize("name", quoted.DOCUMENTS)
def test_quoted_results_are_those_that_are_kept(name):
    text = (ROOT / name).read_text()
    assert "<!-- results: " in text
    assert text == quoted.with_results(text, ROOT / "results")
    # What is kept is what is quoted: an older number would be written anew.
    start = text.index("<!-- results: ")
    older = text[:start] + re.sub(r"(\| )(\d+\.\d)( |,|;)", r"\g<1>00.0\3", text[start:], count=1)
    assert older != text
    assert quoted.with_results(older, ROOT / "results") == text


@pytest.mark.parametrize("name", quoted.MEASURED_IN)
def test_quoted_measurements_are_those_that_a_benchmark_wrote(name):
    text = (ROOT / name).read_text()
    assert "<!-- measured: " in text
    assert text == quoted.with_measured(text, ROOT / "docs" / "measurements")


def test_a_measured_table_is_found_by_how_its_title_begins(tmp_path):
    tables = [
        {"title": f"Cost, {n} cores", "header": ["a", "ms"], "rows": [["x", n]]} for n in "24"
    ]
    (tmp_path / "it.json").write_text(json.dumps({"tables": tables}))
    text = "<!-- measured: it {} -->\nold\n<!-- /measured -->"
    got = quoted.with_measured(text.format("Cost, 4"), tmp_path)
    assert got.splitlines()[1:-1] == ["| a | ms |", "| --- | --- |", "| x | 4 |"]
    for name in ("it Costs", "nothing Cost"):
        with pytest.raises(ValueError, match="no table 'Cost"):
            quoted.with_measured(f"<!-- measured: {name} -->\n\n<!-- /measured -->", tmp_path)


def typed_by_hand(text):
    """Experiments that are run by name above a table that nothing generates."""
    paragraphs = text.split("\n\n")
    return [
        name
        for above, table in itertools.pairwise(paragraphs)
        if table.lstrip("\n").startswith("|")
        for name in re.findall(r"`jaxfl run ([\w-]+)", above)
    ]


def test_tables_of_experiments_are_generated():
    """Nobody would notice that a number typed by hand is no longer what comes out."""
    text = "By `jaxfl run mnist --reduced`:\n\n{}| | a |\n| --- | --- |\n| b | 1 |\n"
    assert typed_by_hand(text.format("")) == ["mnist"]
    assert typed_by_hand(text.format("<!-- results: mnist -->\n")) == []
    documents = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    assert [name for path in documents for name in typed_by_hand(path.read_text())] == []


def test_what_is_quoted_must_be_there():
    text = "<!-- results: {} -->\n\n<!-- /results -->"
    with pytest.raises(ValueError, match="results mnist: the grid has no axis 'nothing'"):
        quoted.with_results(text.format("mnist nothing"), ROOT / "results")
    with pytest.raises(ValueError, match="nowhere"):
        quoted.with_results(text.format("nowhere"), ROOT / "results")


def test_markers_that_are_still_empty_are_filled_each():
    text = "<!-- results: {} -->\n<!-- /results -->\nand\n".format
    names = "adapters-backdoor_reduced aggregator backdoor", "storage"
    found = quoted.with_results("".join(map(text, names)), ROOT / "results")
    assert found.count("and") == 2
    backdoor, storage = found.split("and", 1)
    # Of the axes whose label is the same in all cells, such as the attack, nothing is said.
    assert "| rank 8 | 47.9; 100.0; 20 |" in backdoor
    assert "Median" in storage
    assert quoted.with_results(found, ROOT / "results") == found


PUBLIC = {k: v for names in public_names().values() for k, v in names.items()}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    assert inspect.getdoc(PUBLIC[name])


def slug(heading):
    """The anchor that Markdown renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_relative_link_is_dead(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("cls", AGGREGATORS.values(), ids=lambda cls: cls.__name__)
def test_every_rule_says_what_it_needs_costs_and_who_found_it(cls):
    assert sentence(cls, "Needs")
    assert sentence(cls, "Cost:")
    assert paper(cls) or cls in (Oracle, PerLayer, Pipeline)


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


@pytest.mark.slow
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
