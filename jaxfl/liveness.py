"""How much memory a traced program needs at once, before it is compiled.

Walks the equations of a jaxpr in their order and keeps account of what is alive, by what XLA is
known to do: elementwise work fuses into whatever reads it and takes no memory of its own, unless
a matrix product, a sort, a loop or a result needs it whole; a loop's carry, and the target of a
scatter or an update of a slice, are overwritten in place when nobody reads them afterwards. A
branch that the platform decides is the one that will run.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxfl.types import PyTree

# fmt: off
WHOLE = frozenset((
    "random_bits", "dot_general", "conv_general_dilated", "sort", "top_k", "scatter",
    "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max", "gather", "while",
    "scan", "cond", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "eigh", "cholesky",
    "qr", "svd", "lu", "triangular_solve", "custom_call", "pure_callback", "shard_map",
    "all_gather", "psum", "reduce_window_sum", "reduce_window_max", "select_and_scatter_add",
    "approx_top_k", "concatenate", "fft",
))
# fmt: on
"""Operations that read their operands from memory and write their result there."""
SUMS = frozenset(
    {
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "reduce_and",
        "reduce_or",
        "argmax",
        "argmin",
    }
)
"""Those whose operand fuses into them, and whose result is written."""
MOVES = frozenset({"transpose", "rev"})
"""Those that cannot overwrite what they read, though they make as much."""
THREEFRY = 3
"""Arrays of their size that random bits take on the way, besides themselves."""
ALIASES = frozenset(
    {"reshape", "squeeze", "expand_dims", "copy", "stop_gradient", "optimization_barrier"}
)
"""Those whose result is their operand under another shape."""


def live_bytes(
    function: Callable[..., PyTree],
    *arguments: PyTree,
    platform: str,
    donated: Sequence[int] = (),
) -> int:
    """The most bytes alive at once while ``function(*arguments)`` runs, besides its arguments.

    Args:
      function: traceable.
      *arguments: pytrees of arrays or of their shapes.
      platform: what the program is compiled for, such as ``"cpu"``.
      donated: positions of arguments whose memory may be reused.

    Cost: a trace, and a walk over its equations. A branch counts as its most expensive one, a loop
    as one step; what XLA copies for its own reasons is not seen.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    sizes = [len(jax.tree.leaves(argument)) for argument in arguments]
    dying = [k in donated for k, size in enumerate(sizes) for _ in range(size)]
    return max(_peak(jaxpr, dying, platform), 0)


@dataclasses.dataclass
class _Step:
    """One equation, its variables replaced by numbers of values."""

    name: str
    operands: list[int | None]
    """None: a literal."""
    outputs: list[int]
    params: dict[str, Any]

    @property
    def inputs(self) -> list[int]:
        return [v for v in self.operands if v is not None]


class _Program:
    """A jaxpr as a list of steps, functions that it calls put in their place."""

    def __init__(self, jaxpr: Any, platform: str) -> None:
        self.platform = platform
        self.bytes: list[int] = []
        self.steps: list[_Step] = []
        names: dict[Any, int] = {}
        self.inputs = [self._new(names, v) for v in jaxpr.invars]
        self.constants = [self._new(names, v) for v in jaxpr.constvars]
        self._add(jaxpr, names)
        self.results = [names[a] for a in jaxpr.outvars if not hasattr(a, "val")]

    def _new(self, names: dict[Any, int], variable: Any) -> int:
        aval = variable.aval
        known = hasattr(aval, "size") and hasattr(aval.dtype, "itemsize")
        self.bytes.append(aval.size * aval.dtype.itemsize if known else 0)
        names[variable] = len(self.bytes) - 1
        return names[variable]

    def _add(self, jaxpr: Any, names: dict[Any, int]) -> None:
        for equation in jaxpr.eqns:
            inner, given = _called(equation, self.platform)
            if inner is None:
                operands = [None if hasattr(a, "val") else names[a] for a in equation.invars]
                outputs = [self._new(names, v) for v in equation.outvars]
                name = equation.primitive.name
                step = _Step(name, operands, outputs, equation.params)
                if name == "broadcast_in_dim" and self._of_equal_size(step):
                    step.name = "reshape"  # an axis of one
                self.steps.append(step)
                continue
            own: dict[Any, int] = {}
            for variable, atom in zip(inner.invars, given, strict=True):
                if hasattr(atom, "val"):
                    self.constants.append(self._new(own, variable))
                else:
                    own[variable] = names[atom]
            self.constants += [self._new(own, v) for v in inner.constvars]
            self._add(inner, own)
            for variable, atom in zip(equation.outvars, inner.outvars, strict=True):
                if hasattr(atom, "val"):
                    self.constants.append(self._new(names, variable))
                else:
                    names[variable] = own[atom]

    def _of_equal_size(self, step: _Step) -> bool:
        return [self.bytes[v] for v in step.inputs] == [self.bytes[v] for v in step.outputs]


def _called(equation: Any, platform: str) -> tuple[Any, Sequence[Any]]:
    """The jaxpr of a function that is called once and would be inlined, and its arguments.

    None of anything else. Of branches that the platform decides, the one that runs is all there is.
    """
    chosen = equation.params.get("branches_platforms")
    if equation.primitive.name == "cond" and chosen is not None:
        pairs = list(zip(equation.params["branches"], chosen, strict=True))
        fitting = [branch for branch, on in pairs if on is not None and platform in on]
        others = [branch for branch, on in pairs if on is None]
        return (fitting or others)[0].jaxpr, equation.invars[1:]
    if equation.primitive.name in WHOLE:
        return None, ()
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = equation.params.get(key)
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns") and len(inner.invars) == len(equation.invars):
            return inner, equation.invars
    return None, ()


def _peak(jaxpr: Any, dying: Sequence[bool], platform: str) -> int:
    """Bytes alive at the worst moment, besides those of the inputs."""
    program = _Program(jaxpr, platform)
    written = _written(program)
    roots = _roots(program, written)
    held = [v for v, own in zip(program.inputs, dying, strict=True) if not own]
    last = _last_uses(program, roots, held)
    size, alive, worst = program.bytes, 0, 0
    gone: dict[int, list[int]] = {}
    for value, when in last.items():
        gone.setdefault(when, []).append(value)
    for now, step in enumerate(program.steps):
        free = gone.get(now, [])
        made = [v for v in step.outputs if v in written]
        before = sum(map(size.__getitem__, made))
        over = frozenset().union(*(roots[v] for v in _overwritten(step)))
        before -= _reused([size[v] for v in made], [size[v] for v in free if v in over])
        inside = _inside(step, program, platform)
        worst = max(worst, alive + before + inside)
        alive += sum(map(size.__getitem__, made)) - sum(map(size.__getitem__, free))
        worst = max(worst, alive)
    return worst


def _overwritten(step: _Step) -> Sequence[int]:
    """The operands whose place the results may take."""
    first, end = 0, None
    if step.name == "scan":
        first, end = _carried(step.params)
    elif step.name == "while":
        first = step.params["cond_nconsts"] + step.params["body_nconsts"]
    elif step.name == "dynamic_update_slice" or step.name.startswith("scatter"):
        end = 1
    elif step.name in WHOLE | MOVES:
        end = 0
    return [v for v in step.operands[first:end] if v is not None]


def _carried(params: dict[str, Any]) -> tuple[int, int]:
    """Where the carry of a ``scan`` begins and ends among its operands."""
    if "num_consts" in params:
        first, length = params["num_consts"], params["num_carry"]
    else:  # from JAX 0.12 on
        first, length = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    return first, first + length


def _reused(made: list[int], free: list[int]) -> int:
    """Bytes of results that take the place of operands of their size."""
    left, total = list(free), 0
    for size in made:
        if size in left:
            left.remove(size)
            total += size
    return total


def _written(program: _Program) -> set[int]:
    """The values that get memory of their own."""
    made_by = {v: step for step in program.steps for v in step.outputs}
    needed = {v for step in program.steps if step.name in WHOLE for v in step.inputs}
    # A product of matrices reads them either way round.
    products = [step for step in program.steps if step.name == "dot_general"]
    turned = {v for step in products for v in step.inputs if v in made_by}
    turned = {v for v in turned if made_by[v].name == "transpose"}
    needed = needed - turned | {w for v in turned for w in made_by[v].inputs}
    # A reduction takes in any elementwise work but a selection.
    read = {v for step in program.steps if step.name in SUMS for v in step.inputs if v in made_by}
    needed |= {v for v in read if made_by[v].name == "select_n"}
    needed |= set(program.results)
    written = set()
    for value, step in made_by.items():
        whole = step.name in WHOLE or step.name in SUMS or step.name == "dynamic_update_slice"
        if whole or (value in needed and step.name not in ALIASES):
            written.add(value)
    # What an alias needs whole, its operand is.
    for step in reversed(program.steps):
        if step.name in ALIASES and set(step.outputs) & (needed | written):
            needed |= set(step.inputs)
            written |= {v for v in step.inputs if v in made_by and made_by[v].name not in ALIASES}
    return written


def _roots(program: _Program, written: set[int]) -> dict[int, frozenset[int]]:
    """For every value, the written ones that must stay for it to be read."""
    own = (*program.inputs, *program.constants)
    roots: dict[int, frozenset[int]] = {v: frozenset([v]) for v in own}
    for step in program.steps:
        read = frozenset(itertools.chain.from_iterable(roots[v] for v in step.inputs))
        for value in step.outputs:
            roots[value] = frozenset([value]) if value in written else read
    return roots


def _last_uses(
    program: _Program, roots: dict[int, frozenset[int]], held: Sequence[int]
) -> dict[int, int]:
    """When each written value is read for the last time; not of those that outlive the program."""
    last: dict[int, int] = {}
    for now, step in enumerate(program.steps):
        for value in step.outputs:
            last |= dict.fromkeys(roots[value] & {value}, now)
        for value in step.inputs:
            last |= dict.fromkeys(roots[value], now)
    for value in (*held, *program.constants):
        last.pop(value, None)
    for value in program.results:
        for root in roots[value]:
            last.pop(root, None)
    return last


def _inside(step: _Step, program: _Program, platform: str) -> int:
    """What a loop or a branch needs besides what goes in and comes out."""
    params = step.params
    if step.name == "scan":
        return _of_body(params["jaxpr"], *_carried(params), platform)
    if step.name == "while":
        return _of_body(params["body_jaxpr"], params["body_nconsts"], None, platform)
    made = sum(program.bytes[v] for v in step.outputs)
    if step.name == "random_bits":
        return THREEFRY * made
    if step.name != "cond":
        return 0
    branches = (branch.jaxpr for branch in params["branches"])
    peaks = (_peak(branch, [False] * len(branch.invars), platform) for branch in branches)
    return max(*peaks, made) - made


def _of_body(closed: Any, first: int, end: int | None, platform: str) -> int:
    """One step of a loop, which may overwrite the inputs from ``first`` to ``end``."""
    jaxpr = getattr(closed, "jaxpr", closed)
    carried = range(len(jaxpr.invars))[first:end]
    return max(_peak(jaxpr, [k in carried for k in range(len(jaxpr.invars))], platform), 0)
