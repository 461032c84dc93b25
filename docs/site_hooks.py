"""Hooks of the site: pages made from the repository's files, the API reference, its checks."""

import re
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    **{name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")},
}
FILES = ("LICENSE", "CITATION.cff")


def modules():
    """The public modules of every part of the package, by the part's name."""
    parts = {}
    for path in sorted((ROOT / "jaxfl").rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        if names[-1] == "__init__":
            names = names[:-1]
        if len(names) > 1 and not any(name.startswith("_") for name in names):
            parts.setdefault(names[1], []).append(".".join(names))
    return parts


def on_config(config):
    """Fills the navigation with the pages of the API reference."""
    pages = [{part: f"api/{part}.md"} for part in modules()]
    for section in config.nav:
        for entries in section.values():
            if "api/" in entries:
                entries[entries.index("api/") :] = pages
    return config


def on_files(files, config):
    """Adds what lies outside ``docs``, and one page of the reference for each part."""
    for name, target in PAGES.items():
        text = (
            (ROOT / name).read_text().replace("](docs/", "](").replace("](README.md", "](index.md")
        )
        text = re.sub(r"!\[([^]]*)\]\(https?:[^)]*\)", r"\1", text)  # the site loads no pictures
        files.append(File.generated(config, target, content=text))
    for name in (*FILES, *(f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("*.ipynb"))):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for part, names in modules().items():
        text = f"# jaxfl.{part}\n\n" + "\n".join(f"::: {name}\n" for name in names)
        files.append(File.generated(config, f"api/{part}.md", content=text))
    return files


def on_post_build(config):
    """Fails where a public name has no docstring or is not in the reference."""
    package = griffe.load("jaxfl", search_paths=[str(ROOT)], resolve_aliases=True)
    site = Path(config.site_dir)
    shown = set()
    for page in (site / "api").glob("*.html"):
        shown |= set(re.findall(r'id="(jaxfl[\w.]*)"', page.read_text()))
    wrong = []
    for part in modules().values():
        for name in part:
            for member in package[name.removeprefix("jaxfl.")].members.values():
                if member.is_alias or member.name.startswith("_"):
                    continue
                if not (member.is_class or member.is_function):
                    continue
                if not member.has_docstring:
                    wrong.append(f"{member.path} has no docstring")
                if member.path not in shown:
                    wrong.append(f"{member.path} is not in the reference")
    for page in site.rglob("*.html"):
        # Nothing is loaded from elsewhere: the site is read without a network.
        loaded = re.findall(
            r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        wrong += [f"{page.relative_to(site)} loads {address}" for address in loaded]
    if wrong:
        raise PluginError("\n".join(wrong))
