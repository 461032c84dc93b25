"""The text of a compiled program (HLO), read: computations, instructions, shapes."""

import dataclasses
import math
import re

_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its type and its sizes."""

    kind: str
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        bits = re.search(r"\d+", self.kind)
        return self.count * (-(-int(bits[0]) // 8) if bits else int(self.kind == "pred"))

    @property
    def real(self) -> bool:
        """Whether its elements are floating-point or complex numbers."""
        return self.kind.startswith(("f", "bf", "c"))


@dataclasses.dataclass
class Instruction:
    """One line of the text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    text: str
    """Its attributes, as they are written."""
    scopes: str
    """The path of ``jax.named_scope`` and transformations that it was traced in; may be empty."""

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(shape.bytes for shape in self.shapes)


class Module:
    """The computations of a program, each a table of instructions."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, str] = {}
        self.entry = ""
        current = ""
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            header = _HEADER.match(line)
            if header and not line.startswith(("HloModule", " ")):
                current = header[2]
                self.computations[current] = {}
                self.entry = current if header[1] else self.entry
            elif current and " = " in line:
                instruction = _parse(line.strip().removeprefix("ROOT "))
                self.computations[current][instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    self.roots[current] = instruction.name


def _parse(line: str) -> Instruction:
    name, rest = line.split(" = ", 1)
    kind, rest = _until(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    operands, text = _until("(" + rest)
    scopes = re.search(r'op_name="([^"]*)"', text)
    branches = _BRANCHES.search(text)
    called = [*_CALLED.findall(text), *re.findall(r"%?([\w.-]+)", branches[1] if branches else "")]
    shapes = tuple(
        Shape(kind, tuple(int(n) for n in sizes.split(",") if n))
        for kind, sizes in _SHAPE.findall(kind)
    )
    return Instruction(
        name=name.lstrip("%"),
        opcode=opcode,
        shapes=shapes or (Shape("token", ()),),
        operands=tuple(re.findall(r"%([\w.-]+)", operands)),
        called=tuple(called),
        text=text,
        scopes=scopes[1] if scopes else "",
    )


def _until(text: str) -> tuple[str, str]:
    """A text that starts with a parenthesis, split after the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
