"""What one run of each instruction of a compiled program costs, and the phase that it belongs to.

A compiled program's text names every instruction, its shapes and the ``jax.named_scope`` that it
was traced in. How often an instruction runs is not read there: the profiler's events say it.
"""

import collections
import dataclasses
import math
import re

from jaxfl.profiling.hlo import Instruction, Module, Shape

PHASES: tuple[str, ...] = (
    "cohort",
    "local work",
    "privacy",
    "attack",
    "pre-aggregation",
    "aggregation",
    "server",
    "record",
    "evaluation",
)
"""The names of the scopes, in the order of a round."""
OTHER = "no phase"

CONTROL = frozenset({"while", "conditional", "call", "async-start", "async-done"})
"""Instructions that only run others."""
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
)
_PER_ELEMENT = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "power"),
        *("negate", "abs", "sign", "floor", "ceil", "round-nearest-afz", "round-nearest-even"),
        *("sqrt", "rsqrt", "cbrt", "exponential", "exponential-minus-one", "log", "log-plus-one"),
        *("logistic", "tanh", "sine", "cosine", "tan", "atan2", "erf"),
    }
)
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
_CHANGES = {"dynamic-update-slice": 1, "scatter": -1}
"""Instructions that change a part of their first operand in place, and which operand it becomes."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of an instruction does."""

    phase: str
    flops: int
    """Operations on floating-point numbers."""
    bytes: int
    """Read and written, as if nothing stayed in a cache."""
    spans: bool
    """A fusion with parts of other phases, which count for its own."""
    control: bool
    """It only runs others: its time is theirs."""


def phase_of(scopes: str) -> str | None:
    """The phase that a path of scopes belongs to; None: to none.

    It is the innermost, but what an attack tries out is the attack's.

    >>> phase_of("jit(block)/while/body/server/aggregation/vmap(pre-aggregation)/dot_general")
    'pre-aggregation'
    """
    found = [part for part in re.split(r"[/()]", scopes) if part in PHASES]
    return "attack" if "attack" in found else found[-1] if found else None


def costs_of(text: str) -> dict[str, Cost]:
    """The cost of one run of each instruction of a compiled program, by the instruction's name.

    Products of matrices and convolutions count 2 operations for each multiply-add (padding of a
    convolution included), anything else that computes with floating-point numbers 1 for each
    element. Sorting, comparing and drawing random bits have none.
    """
    program = _Program(text)
    return {
        name: program.cost(instruction)
        for computation in program.executed
        for name, instruction in program.computations[computation].items()
        if instruction.opcode not in _FREE
    }


class _Program:
    """A program with the phase of each of its instructions."""

    def __init__(self, text: str) -> None:
        module = Module(text)
        self.computations, self.roots = module.computations, module.roots
        self.home = {x: name for name, inner in self.computations.items() for x in inner}
        self.phases = {
            name: phase_of(x.scopes)
            for inner in self.computations.values()
            for name, x in inner.items()
        }
        self.executed: list[str] = []
        self._enter(module.entry, None)

    def _enter(self, name: str, inherited: str | None) -> None:
        """Completes the phases of what a computation runs.

        What the compiler put in or rewrote may have no scope of its own: its result may under
        another name; otherwise it belongs to the loop that it is in, or where what it reads does.
        """
        if name in self.executed or name not in self.computations:
            return
        self.executed.append(name)
        own = self.computations[name]
        renamed = {
            y.operands[0]: self.phases[y.name] for y in own.values() if y.opcode == "bitcast"
        }
        for x in own.values():
            phase = self.phases[x.name]
            if phase is None and x.opcode not in _FREE:
                read = next(filter(None, (self.phases.get(y) for y in x.operands)), None)
                phase = self._majority(x) or renamed.get(x.name) or inherited or read
                self.phases[x.name] = phase
            if x.opcode in CONTROL:
                for called in x.called:
                    self._enter(called, phase)

    def _fused(self, x: Instruction) -> list[Instruction]:
        """What a fusion is made of, fusions in it included; nothing of any other instruction."""
        if x.opcode != "fusion":
            return []
        direct = [y for c in x.called for y in self.computations[c].values()]
        return [z for y in direct for z in (self._fused(y) or [y])]

    def _majority(self, x: Instruction) -> str | None:
        counted = collections.Counter(filter(None, (self.phases[y.name] for y in self._fused(x))))
        return counted.most_common(1)[0][0] if counted else None

    def cost(self, x: Instruction) -> Cost:
        """Of one run of an instruction, with all that it is fused of."""
        phase, fused, control = self.phases[x.name], self._fused(x), x.opcode in CONTROL
        others = {self.phases[y.name] for y in fused if y.opcode not in _FREE} - {None, phase}
        return Cost(
            phase=phase or OTHER,
            flops=0 if control else sum(map(self._flops, fused or [x])),
            bytes=0 if control else self._traffic(x),
            spans=bool(others),
            control=control,
        )

    def _flops(self, x: Instruction) -> int:
        table = self.computations[self.home[x.name]]
        operands = [table[name].shapes[0] for name in x.operands if name in table]
        out = x.shapes[0]
        if not out.real:
            return 0
        if x.opcode == "dot":
            return 2 * out.count * _contracted(x.text, operands[0])
        if x.opcode == "convolution":
            kernel = re.search(r"dim_labels=\w+_(\w+)->", x.text)
            assert kernel is not None
            return 2 * out.count * operands[1].count // operands[1].sizes[kernel[1].index("o")]
        if x.opcode == "reduce":
            return operands[0].count
        if x.opcode == "reduce-window":
            size = re.search(r"size=([\dx]+)", x.text)
            return out.count * math.prod(map(int, size[1].split("x"))) if size else out.count
        if x.opcode == "scatter":
            return operands[-1].count
        return out.count if x.opcode in _PER_ELEMENT else 0

    def _traffic(self, x: Instruction) -> int:
        """Bytes read and written by one run of an instruction, which may be a fusion."""
        table = self.computations[self.home[x.name]]
        sources = [table[name] for name in x.operands if name in table]
        if x.opcode == "fusion":
            inner = self.computations[x.called[0]]
            parameters = [y for y in inner.values() if y.opcode == "parameter"]
            read = sum(self._read(inner, parameter) for parameter in parameters)
            return read + self._written(inner, self.roots[x.called[0]])
        if x.opcode in _SLICES:
            return 2 * x.bytes + sum(source.bytes for source in sources[1:])
        if x.opcode in _CHANGES:
            change = _CHANGES[x.opcode]
            return 2 * sources[change].bytes + sum(source.bytes for source in sources[1:change])
        return x.bytes + sum(source.bytes for source in sources)

    def _read(self, inner: dict[str, Instruction], source: Instruction) -> int:
        """What a fusion reads of one of its parameters: all, or only the slices that it takes."""
        total = 0
        for user in inner.values():
            if source.name not in user.operands:
                continue
            first = user.operands[0] == source.name
            if user.opcode == "bitcast":
                total += self._read(inner, user)
            elif user.opcode in _SLICES and first:
                total += user.bytes
            elif user.opcode not in _CHANGES or not first:
                return source.bytes
        return min(total, source.bytes)

    def _written(self, inner: dict[str, Instruction], root: str) -> int:
        """What a fusion writes: its result, or only the part of it that it changes."""
        x = inner[root]
        if x.opcode == "tuple":
            return sum(self._written(inner, name) for name in x.operands)
        if x.opcode == "bitcast":
            return self._written(inner, x.operands[0])
        if x.opcode in _CHANGES:
            return inner[x.operands[_CHANGES[x.opcode]]].bytes
        return x.bytes


def _contracted(text: str, left: Shape) -> int:
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
    return math.prod(left.sizes[int(n)] for n in dims[1].split(",") if n) if dims else 1
