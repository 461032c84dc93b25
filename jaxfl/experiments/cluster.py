"""Groups of cells on the workers of a Ray cluster, a JAX process on each, instead of here."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from jaxfl.experiments.addresses import host_and_port, wait_for
from jaxfl.machine import PROGRAM_BYTES, agree_on, process_memory, share_of

RETRIES = 3
"""How often a job whose worker was lost is begun again on another one."""
POLL = 0.2
"""Seconds between two looks at whether the run is to stop."""
PATIENCE = 10
"""Seconds within which a cluster must answer; Ray itself would try for minutes."""
HANDED = ("XLA_FLAGS", "GLIBC_TUNABLES")
"""Environment variables that the command ``jaxfl`` sets, and that workers elsewhere lack."""

J = TypeVar("J")
R = TypeVar("R")


class Cluster(Generic[J, R]):
    """Runs jobs on a Ray cluster; use as a context manager.

    The cluster is the one that ``RAY_ADDRESS`` names, or this machine's cores. Every worker has a
    GPU where the cluster has any, else a core by Ray's count, and is used again: what it compiled
    serves the next job. Workers of one node share its memory as Ray counts it. Jobs begin in their
    order, as workers are free.

    Args:
      function: what is done with a job, importable on the workers; its arguments and answers are
        pickled.
      jobs: by number, in the order in which they are to begin.

    Raises:
      ValueError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, function: Callable[[J], R], jobs: Mapping[int, J]) -> None:
        self._function, self._jobs = function, jobs
        self._begun: dict[int, Any] = {}

    def __enter__(self) -> "Cluster[J, R]":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            raise ValueError("launcher ray is not installed; pip install 'jaxfl[ray]'") from None
        self._ray = ray
        address = os.environ.get("RAY_ADDRESS", "")
        place = host_and_port(address.removeprefix("ray://"))
        if place is not None:
            wait_for(*place, PATIENCE, "no Ray cluster")
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except ConnectionError:
            raise ValueError(f"no Ray cluster answers at {address or 'this machine'}") from None
        except RuntimeError as error:  # other versions of Ray or Python there, among others
            said = " ".join(str(error).split())
            raise ValueError(f"Ray at {address or 'this machine'}: {said}") from error
        kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        handed = {name: os.environ[name] for name in HANDED if name in os.environ}
        run = ray.remote(
            max_retries=RETRIES,
            runtime_env={"env_vars": handed},
            **{f"num_{kind.lower()}s": 1},
        )(_on_worker)
        self._begun = {
            number: run.remote(self._function, job, kind) for number, job in self._jobs.items()
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def take(self, number: int, stop: Callable[[], bool]) -> R | None:
        """What a job answered, waited for; None where ``stop`` came first.

        Raises:
          ValueError, OSError: what the job raised, or its workers were lost too often.
          MemoryError: it needs more memory than its worker or node has.
          RuntimeError: anything else that it raised.
        """
        begun = self._begun[number]
        while not self._ray.wait([begun], timeout=POLL)[0]:
            if stop():
                return None
        try:
            return self._ray.get(self._begun.pop(number))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError | MemoryError):
                raise error.cause from error
            if "RESOURCE_EXHAUSTED" in str(error.cause):
                raise MemoryError(f"job {number + 1}: {error.cause}") from error
            raise RuntimeError(f"job {number + 1}: {error.cause!r}") from error
        except self._ray.exceptions.OutOfMemoryError as error:
            raise MemoryError(f"job {number + 1}: {error}") from error
        except self._ray.exceptions.RayError as error:
            reason = f"lost its worker {RETRIES + 1} times: {type(error).__name__}"
            raise ConnectionError(f"job {number + 1} {reason}") from error


def _on_worker(function: Callable[[J], R], job: J, kind: str) -> R:
    """Does a job with this worker's share of its node's memory; ``kind`` is what each has one of.

    The share is that of the worker's first job: later ones find less free, since it holds it.
    """
    ray = importlib.import_module("ray")
    here = ray.get_runtime_context().get_node_id()
    has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    memory = process_memory()
    if memory is not None and "memory" in has:
        share = share_of(int(has["memory"]) - PROGRAM_BYTES, max(int(has.get(kind, 1)), 1))
        agree_on(min(memory, share))
    return function(job)
