"""The tutorials' blocks, run as a reader would: Python as one module, TOML by ``jaxfl run``."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from jaxfl.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("add_a*.md"))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_tutorial_shows_runs(page, tmp_path, monkeypatch):
    experiments = blocks(page, "toml")
    named = {name for text in experiments for name in re.findall(r'"(\w+):\w+"', text)}
    (module,) = named or {f"{page.stem}_tutorial"}
    (tmp_path / f"{module}.py").write_text("\n\n".join(blocks(page, "python")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module(module)
    try:
        for i, text in enumerate(experiments):
            path = tmp_path / f"{i}.toml"
            path.write_text(text)
            out = tmp_path / f"out{i}"
            monkeypatch.setattr("sys.argv", ["jaxfl", "run", str(path), "--out", str(out)])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
            assert (out / "rounds.jsonl").read_text()
    finally:
        sys.modules.pop(module, None)


def test_a_rule_has_a_tutorial():
    assert DOCS / "add_a_rule.md" in PAGES
