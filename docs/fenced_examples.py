"""Shows the examples of docstrings as Python sessions, which Markdown would take for quotations."""

import griffe


class FencedExamples(griffe.Extension):
    """Puts paragraphs that begin with ``>>>`` into code blocks."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrites an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with its examples in fences."""
    parts = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{p}\n```" if p.startswith(">>> ") else p for p in parts)
