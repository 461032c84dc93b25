"""Scales of an experiment, each kept in a folder of its own.

NAME            the whole
NAME_reduced    as its file's ``[reduced]`` has it
NAME_SCALE      with changes of one's own, by the name that was given to them
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from jaxfl.experiments.difference import SAID
from jaxfl.experiments.kept import Kept, read_kept
from jaxfl.experiments.schema import packaged, packaged_file, read

REDUCED = "reduced"
"""The scale of what is run with ``--reduced``."""


def folder_name(experiment: str, scale: str | None) -> str:
    """What the folder of an experiment is called at a scale; None is the whole."""
    return experiment if scale is None else f"{experiment}_{scale}"


def check_scale(experiment: str, scale: str) -> None:
    """Refuses a name that is not to be told from another folder's.

    Raises:
      ValueError: it is no name, or another experiment or ``--reduced`` has the folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", scale):
        raise ValueError(f"--as wants letters, digits, -, _ and dots; got {scale!r}")
    folder = folder_name(experiment, scale)
    if scale == REDUCED or scale_of(Path(folder)) != (experiment, scale):
        raise ValueError(f"--as {scale}: {folder} has its own meaning; choose another name")


def scale_of(folder: Path) -> tuple[str, str | None]:
    """The experiment and the scale that a folder is called by.

    The longest name of an experiment counts: ``attacks_mnist`` is one, not a scale of ``attacks``.
    """
    begun = [name for name in packaged() if f"{folder.name}_".startswith(f"{name}_")]
    name = max(begun, key=len, default=folder.name)
    return name, folder.name[len(name) + 1 :] or None


def as_told_now(folder: Path, kept: Kept) -> Kept:
    """What is kept in a folder, with the title and the claims that its experiment has now."""
    name, scale = scale_of(folder)
    if name not in packaged():
        return kept
    table = read(packaged_file(name))
    changes = table.get("reduced", {}) if scale == REDUCED else {}
    said = {key: value for key, value in (table | changes).items() if key in SAID}
    if scale not in (None, REDUCED):
        said["title"] = f"{said.get('title', name)}: {scale}"
    ran = {key: value for key, value in kept.table.items() if key not in SAID}
    return dataclasses.replace(kept, table=ran | said)


def whole_scales(folders: Sequence[Path], experiment: str) -> tuple[list[Path], list[str]]:
    """The scales of an experiment that are kept whole: first the one that trained most.

    Returns:
      their folders, of those of one name the first; what is said of others that cannot be read.
    """
    found: dict[str, tuple[int, Path]] = {}
    damaged: dict[str, str] = {}
    for path in (cells.parent for folder in folders for cells in folder.glob("*/cells.jsonl")):
        if scale_of(path)[0] != experiment or path.name in found:
            continue
        try:
            kept = read_kept(path)
            if kept.was_whole:
                found[path.name] = kept.rounds, path
        except ValueError as error:
            said = str(error)
            damaged[path.name] = said if str(path) in said else f"{path}: {said}"
    ordered = sorted(found.values(), key=lambda item: item[0], reverse=True)
    return [path for _, path in ordered], list(damaged.values())
