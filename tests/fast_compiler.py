"""XLA's quickest compiler: compiling is most of what the suite's time goes into."""

import os
import subprocess
import sys
from importlib.metadata import version

FLAGS = (
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)


def ask_for_it(cache) -> None:
    """For this process and those it starts; to be called before JAX starts its backend."""
    os.environ.update(settings(cache))


def settings(cache) -> dict[str, str]:
    """What the environment needs besides what is in it.

    A jaxlib that does not know one of the flags would abort; JAX's own setting then does less, but
    something.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.split("=")[0] for flag in given}
    flags = [flag for flag in FLAGS if flag.split("=")[0] not in names]
    if not flags:
        return {}
    if _known(cache):
        return {"XLA_FLAGS": " ".join(flags + given)}
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def _known(cache) -> bool:
    """Whether this jaxlib starts with the flags: tried once, in a process of its own."""
    jaxlib = version("jaxlib")
    answers = cache.get("jaxfl/knows_flags", {}) if cache else {}
    if jaxlib not in answers:
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": " ".join(FLAGS), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            check=False,
        )
        answers = {jaxlib: done.returncode == 0}
        if cache:
            cache.set("jaxfl/knows_flags", answers)
    return answers[jaxlib]
