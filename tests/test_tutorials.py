"""The tutorials' code is run: Python as the module ``tutorial``, TOML by the command line."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from jaxfl.cli import main

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "name", ["add_a_rule", pytest.param("add_an_attack", marks=pytest.mark.slow)]
)
def test_a_tutorial_runs(name, tmp_path, monkeypatch, capsys):
    page = DOCS / f"{name}.md"
    python, tables = blocks(page, "python"), blocks(page, "toml")
    assert len(python) >= 2
    (tmp_path / "tutorial.py").write_text("\n".join(python))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tutorial", raising=False)
    importlib.import_module("tutorial")
    for number, table in enumerate(tables):
        path = tmp_path / f"own{number}.toml"
        path.write_text(table)
        monkeypatch.setattr("sys.argv", ["jaxfl", "run", str(path), "--out", f"{path}.out"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert "accuracy" in capsys.readouterr().out
    sys.modules.pop("tutorial", None)
    assert tables


@pytest.mark.slow
def test_the_page_of_expected_robustness_runs(capsys):
    for code in blocks(DOCS / "expected_robustness.md", "python"):
        exec(compile(code, "expected_robustness.md", "exec"), {})
    assert "Estimate(value=" in capsys.readouterr().out
