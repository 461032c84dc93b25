"""``rounds.jsonl``: lines of JSON, known by the SHA-256 of all of them."""

import hashlib
import json
import math
from collections.abc import Container
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def encode(line: Line) -> bytes:
    """JSON has no NaN and no infinity: they become null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return (json.dumps(plain) + "\n").encode()


def read_log(path: Path, length: int, digest: str) -> dict[int, list[Line]]:
    """The first so many bytes of a log, by cell.

    Raises:
      ValueError: it is shorter, not what the sum was taken of, or no JSON.
    """
    raw = path.read_bytes() if path.is_file() else b""
    if len(raw) < length:
        raise ValueError(f"{path} is damaged: it is shorter than progress.json says")
    if hashlib.sha256(raw[:length]).hexdigest() != digest:
        raise ValueError(f"{path} is damaged: its sum is not that in progress.json")
    lines: dict[int, list[Line]] = {}
    try:
        for text in raw[:length].splitlines():
            line = json.loads(text)
            lines.setdefault(line["cell"], []).append(line)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return lines


def length_before(path: Path, cells: Container[int]) -> int:
    """Bytes of the lines before the first of one of these cells."""
    before = 0
    for text in path.read_bytes().splitlines(keepends=True):
        if json.loads(text)["cell"] in cells:
            break
        before += len(text)
    return before
