"""``progress.json``: the commit point of a run."""

import dataclasses
import hashlib
import json
from pathlib import Path


@dataclasses.dataclass
class Progress:
    """How far a run is."""

    cell: int = 0
    """The cell under way; those before it are done."""
    round: int = 0
    """Rounds of that cell that are done."""
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
    texts = (progress.checkpoint, progress.digest, progress.log_digest)
    if not (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and progress.checkpoint == Path(progress.checkpoint).name
        and isinstance(progress.seconds, dict)
    ):
        raise ValueError(f"{path} is damaged: it has values that no run writes")
    return progress
