"""``progress.json``: the commit point of a run."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

ELSEWHERE = "done in another run"
"""Why a run leaves cells out."""


@dataclasses.dataclass
class Progress:
    """How far a run is."""

    cell: int = 0
    """How many cells are done, in the order of ``groups``."""
    round: int = 0
    """Rounds that are done of the group under way."""
    log_bytes: int = 0
    """Length of ``rounds.jsonl`` up to there."""
    log_digest: str = hashlib.sha256().hexdigest()
    """SHA-256 of these bytes."""
    checkpoint: str = ""
    """Folder of the state after those rounds; empty at the start of a cell."""
    digest: str = ""
    """SHA-256 of that state."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Time taken by each cell."""
    running: dict[str, float] = dataclasses.field(default_factory=dict)
    """The part of it in which its rounds ran: without reading data, compiling and writing."""
    groups: list[list[int]] = dataclasses.field(default_factory=list)
    """Numbers of the cells that run together, in the order in which they run."""
    elsewhere: list[int] = dataclasses.field(default_factory=list)
    """Numbers of the cells that are left out, since another run of the experiment did them."""

    @property
    def done(self) -> set[int]:
        """Numbers of the cells that are done."""
        order = [number for group in self.groups for number in group]
        return set((order or range(self.cell))[: self.cell])

    def time_of(self, cell: int) -> tuple[float, float]:
        """Seconds that a cell took, and those of them in which its rounds ran; NaN if unknown."""
        return self.seconds.get(str(cell), 0.0), self.running.get(str(cell), math.nan)


def read_progress(path: Path) -> Progress:
    """What ``progress.json`` says.

    Raises:
      ValueError: it is damaged.
      OSError: it cannot be read.
    """
    try:
        progress = Progress(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    numbers = (progress.cell, progress.round, progress.log_bytes)
    order = progress.groups
    grid = [number for group in order for number in group] if _lists(order) else None
    texts = (progress.checkpoint, progress.digest, progress.log_digest)
    if not (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and progress.checkpoint == Path(progress.checkpoint).name
        and isinstance(progress.seconds, dict)
        and isinstance(progress.running, dict)
        and grid is not None
        and isinstance(progress.elsewhere, list)
        and (not grid or all(number in grid for number in progress.elsewhere))
        and all(type(number) is int for number in (*grid, *progress.elsewhere))
        and sorted(grid) == list(range(len(grid)))
    ):
        raise ValueError(f"{path} is damaged: it has values that no run writes")
    return progress


def _lists(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(inner, list) and inner for inner in value)
