"""``rounds.jsonl``: lines of JSON, known by the SHA-256 of all of them."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]

CELL = re.compile(rb'{"cell": (\d+)[,}]')
"""How a line begins."""


def encode(line: Line) -> bytes:
    """JSON has no NaN and no infinity: they become null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return (json.dumps(plain) + "\n").encode()


class Log:
    """Where each cell's lines are. They stay in the file until they are asked for: of a large grid
    they do not fit the memory together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, list[tuple[int, int]]] = {}

    def __iter__(self) -> Iterator[int]:
        """The cells, in the order of their first lines."""
        return iter(list(self._places))

    def __contains__(self, cell: int) -> bool:
        return cell in self._places

    def add(self, cell: int, begin: int, end: int) -> None:
        """Notes that from one byte to another there are lines of a cell."""
        places = self._places.setdefault(cell, [])
        if places and places[-1][1] == begin:
            begin, _ = places.pop()
        places.append((begin, end))

    def pop(self, cell: int) -> list[Line]:
        """The lines of a cell, which is forgotten.

        Raises:
          ValueError: they are no JSON.
        """
        pieces = []
        with self._path.open("rb") as log:
            for begin, end in self._places.pop(cell):
                log.seek(begin)
                pieces.append(log.read(end - begin))
        try:
            return [json.loads(text) for text in b"".join(pieces).splitlines()]
        except ValueError as error:
            raise ValueError(f"{self._path} is damaged: {error}") from None

    def cut(self, cells: Collection[int], end: int) -> int:
        """Forgets the last cells of a log that ends there; gives where the first of them began."""
        places = (place for cell in cells for place in self._places.pop(cell, []))
        return min((begin for begin, _ in places), default=end)


def read_log(path: Path, length: int, digest: str) -> Log:
    """The first so many bytes of a log, whose sum is checked before anything of it is used.

    Raises:
      ValueError: it is shorter, not what the sum was taken of, or a line is of no cell.
    """
    if (path.stat().st_size if path.is_file() else 0) < length:
        raise ValueError(f"{path} is damaged: it is shorter than progress.json says")
    found, total, at, nameless = Log(path), hashlib.sha256(), 0, 0
    for text in _first(path, length):
        total.update(text)
        if named := CELL.match(text):
            found.add(int(named[1]), at, at + len(text))
        else:
            nameless += 1
        at += len(text)
    if total.hexdigest() != digest:
        raise ValueError(f"{path} is damaged: its sum is not that in progress.json")
    if nameless:
        raise ValueError(f"{path} is damaged: {nameless} of its lines are of no cell")
    return found


def digest_of(path: Path, length: int) -> str:
    """SHA-256 of the first so many bytes."""
    total = hashlib.sha256()
    for text in _first(path, length):
        total.update(text)
    return total.hexdigest()


def _first(path: Path, length: int) -> Iterator[bytes]:
    """The lines of the first so many bytes, one after the other."""
    if not length:
        return
    with path.open("rb") as log:
        while length and (text := log.readline(length)):
            yield text
            length -= len(text)
