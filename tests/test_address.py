"""What follows from the project's address, or from there being none."""

import re
import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest

from jaxfl.report.address import repository, write_address

ROOT = Path(__file__).parent.parent
WRITTEN = ("notebooks", "README.md", "CITATION.cff")


@pytest.fixture
def clone(tmp_path):
    """A copy of what is written, and a function that gives it an address."""
    for name in (*WRITTEN, "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)

    def give(address):
        text = (ROOT / "pyproject.toml").read_text()
        text = re.sub(r"^Repository = .*\n", "", text, flags=re.MULTILINE)
        line = f'Repository = "{address}"\n' if address else ""
        text = text.replace("[project.urls]\n", f"[project.urls]\n{line}")
        (tmp_path / "pyproject.toml").write_text(text)
        write_address(tmp_path)
        return contents(tmp_path)

    return give


def contents(root):
    paths = [p for name in WRITTEN for p in ([root / name, *(root / name).glob("*.ipynb")])]
    return {str(p.relative_to(root)): p.read_text() for p in paths if p.is_file()}


def test_the_repository_says_what_its_pyproject_does(clone):
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert clone(urls.get("Repository")) == contents(ROOT)


@pytest.mark.parametrize("ending", ["", "/", ".git"])
def test_with_an_address_every_notebook_can_be_opened_in_colab(clone, tmp_path, ending):
    found = clone(f"https://github.com/some.one/jax-fl{ending}")
    start = "https://colab.research.google.com/github/some.one/jax-fl/blob/main/notebooks"
    notebooks = [name for name in found if name.endswith(".ipynb")]
    assert len(notebooks) == len(list((ROOT / "notebooks").glob("*.ipynb"))) > 0
    for name in notebooks:
        notebook = nbformat.reads(found[name], as_version=4)
        nbformat.validate(notebook)
        title, install = (cell.source for cell in notebook.cells[:2])
        _, badge, text = title.split("\n\n", 2)
        assert re.fullmatch(r"\[!\[Open in Colab\]\(https://[^)]*\.svg\)\]\((.*)\)", badge)
        assert f"({start}/{Path(name).name})" in badge
        assert text
        (places,) = re.findall(r"source = (.*)\[0\]$", install, re.MULTILINE)
        assert places.endswith(', "git+https://github.com/some.one/jax-fl"]')
    assert found["README.md"].count(f"({start}/00_quickstart.ipynb)") == 1
    cited = "\nrepository-code: https://github.com/some.one/jax-fl\nlicense: "
    assert found["CITATION.cff"].count(cited) == 1
    write_address(tmp_path)
    assert contents(tmp_path) == found


def test_without_an_address_at_github_there_is_no_badge(clone):
    with_one = clone("https://github.com/someone/jaxfl")
    assert all("someone/jaxfl" in text for text in with_one.values())
    moved = clone("https://github.com/other/name")
    assert not any("someone" in text for text in moved.values())
    for address in (None, "https://example.org/someone/jaxfl"):
        without = clone(address)
        assert not any(
            "colab.research" in text or "github.com" in text for text in without.values()
        )


@pytest.mark.parametrize("address", ["https://github.com/", "https://github.com/a/b/tree/main"])
def test_an_address_that_names_no_repository_is_an_error(clone, address):
    with pytest.raises(ValueError, match=r"has the form https://github.com/OWNER/NAME"):
        clone(address)


def test_where_a_notebook_installs_from(clone, tmp_path, monkeypatch):
    """The wheel beside it, else the clone that it lies in, else the repository."""
    found = clone("https://github.com/someone/jaxfl")["notebooks/00_quickstart.ipynb"]
    install = nbformat.reads(found, as_version=4).cells[1].source
    (line,) = re.findall(r"^ *(source = .*)$", install, re.MULTILINE)

    def source():
        names = {}
        exec(f"import glob\n{line}", names)
        return names["source"]

    folder = tmp_path / "elsewhere" / "notebooks"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert source() == "git+https://github.com/someone/jaxfl"
    (tmp_path / "elsewhere" / "jaxfl").mkdir()
    assert Path(source()).resolve() == tmp_path / "elsewhere"
    (folder / "jaxfl-1.0-py3-none-any.whl").touch()
    assert source() == "jaxfl-1.0-py3-none-any.whl"


def test_the_project_names_addresses_that_exist():
    """The papers, and nothing else before the project has an address of its own."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    papers = {name for name, at in urls.items() if re.match(r"https://arxiv.org/abs/\d+\.\d+$", at)}
    assert {"Paper: SignGuard", "Paper: FLTrust"} <= papers
    assert all(len(name) <= 32 for name in urls)  # as package indexes want it
    assert repository(ROOT / "pyproject.toml") or urls.keys() == papers
