"""A table as Markdown."""

from collections.abc import Iterable, Sequence


def as_markdown(lines: Iterable[Sequence[str]]) -> str:
    """Lines of entries, the first of them the header."""
    header, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rest))
