"""What follows from the project's public address: badges of Colab, the line of the citation.

The address is the line ``Repository`` of ``[project.urls]`` in ``pyproject.toml``. Where it is one
of GitHub's, each notebook begins with a badge and can install jaxfl from there, the README has the
badge of the first notebook, and ``CITATION.cff`` names it. Where there is none, nothing does.
"""

import json
import re
import tomllib
from pathlib import Path

BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)\n\n")
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
SOURCE = re.compile(r"^    source = .*$", re.MULTILINE)
"""Where a notebook that does not find jaxfl installs it from."""
CITED = re.compile(r"^repository-code: .*\n", re.MULTILINE)


def repository(pyproject: Path) -> str | None:
    """Owner and name, ``"OWNER/NAME"``, of the project's repository at GitHub; None without one.

    Raises:
        ValueError: where ``Repository`` is at GitHub but names no repository there.
    """
    address = tomllib.loads(pyproject.read_text())["project"].get("urls", {}).get("Repository", "")
    if not re.match(r"https?://(www\.)?github\.com(/|$)", address):
        return None
    named = re.fullmatch(r"https?://[^/]+/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    if named is None:
        raise ValueError(
            f"Repository = {address!r} in {pyproject} names no repository at GitHub; it has the "
            "form https://github.com/OWNER/NAME"
        )
    return named[1]


def write_address(root: Path) -> None:
    """Makes notebooks, README and citation of a clone say what its ``pyproject.toml`` does.

    Doing so twice changes nothing more.
    """
    at = repository(root / "pyproject.toml")
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        notebook = json.loads(path.read_text())
        title, install = notebook["cells"][:2]
        title["source"] = _lines(_with_badge("".join(title["source"]), at, path.name))
        install["source"] = _lines(SOURCE.sub(_source(at), "".join(install["source"])))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    readme, citation = root / "README.md", root / "CITATION.cff"
    readme.write_text(_with_badge(readme.read_text(), at, notebooks[0].name))
    cited = CITED.sub("", citation.read_text())
    line = f"repository-code: https://github.com/{at}\n" if at else ""
    citation.write_text(cited.replace("license: ", f"{line}license: ", 1))


def _with_badge(text: str, at: str | None, notebook: str) -> str:
    """A Markdown text with the badge below its title, or without one."""
    text = BADGE.sub("", text)
    if at is None:
        return text
    target = f"https://colab.research.google.com/github/{at}/blob/main/notebooks/{notebook}"
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\n[![Open in Colab]({IMAGE})]({target})\n\n{rest}"


def _source(at: str | None) -> str:
    places = f'*glob.glob("../jaxfl/.."), "git+https://github.com/{at}"' if at else '".."'
    return f'    source = [*glob.glob("jaxfl-*.whl"), {places}][0]'


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
