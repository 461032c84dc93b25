"""No product of messages, models' memories or statistics is left at JAX's default precision."""

import ast
from pathlib import Path

import jaxfl

PRODUCTS = {"dot", "matmul", "vdot", "inner", "einsum", "tensordot", "multi_dot", "dot_general"}
OWN = {"models", "data", "report"}
"""Models multiply as JAX is told to; data and reports are made by NumPy on the host."""


def unstated(source):
    """The lines with a product that states no precision; NumPy's, on the host, have none to state.

    ``@`` is NumPy's where a module does not use JAX's arrays.
    """
    on_devices = "jax.numpy" in source or "import jax\n" in source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and on_devices:
            yield node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in PRODUCTS:
            on_host = getattr(getattr(node.func, "value", None), "id", "") == "np"
            stated = any(k.arg == "precision" for k in node.keywords)
            yield from [node.lineno] * (not stated and not on_host)


def test_every_product_states_its_precision():
    root = Path(jaxfl.__file__).parent
    files = [p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in OWN]
    found = [(p.name, line) for p in files for line in unstated(p.read_text("utf-8"))]
    assert len(files) > 50
    assert not found


def test_what_it_finds():
    products = "jnp.dot(a, b)\nx = a @ b\njnp.matmul(a, b, precision='highest')\nnp.dot(a, b)\n"
    assert sorted(unstated(f"{products}import jax\n")) == [1, 2]
    assert sorted(unstated(products)) == [1]
