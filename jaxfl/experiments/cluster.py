"""Groups of cells on the workers of a Ray cluster, a JAX process on each, instead of here."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

RETRIES = 3
"""How often a job whose worker was lost is begun again on another one."""
POLL = 0.2
"""Seconds between two looks at whether the run is to stop."""

J = TypeVar("J")
R = TypeVar("R")


class Cluster(Generic[J, R]):
    """Runs jobs on a Ray cluster; use as a context manager.

    The cluster is the one that ``RAY_ADDRESS`` names, or this machine's cores. Every worker has a
    GPU where the cluster has any, else a core by Ray's count, and is used again: what it compiled
    serves the next job. Jobs begin in their order, as workers are free.

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
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except ConnectionError:
            address = os.environ.get("RAY_ADDRESS", "this machine")
            raise ValueError(f"no Ray cluster answers at {address}") from None
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        run = ray.remote(max_retries=RETRIES, **needs)(self._function)
        self._begun = {number: run.remote(job) for number, job in self._jobs.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def take(self, number: int, stop: Callable[[], bool]) -> R | None:
        """What a job answered, waited for; None where ``stop`` came first.

        Raises:
          ValueError, OSError: what the job raised.
          RuntimeError: anything else that it raised, or its workers were lost too often.
        """
        begun = self._begun[number]
        while not self._ray.wait([begun], timeout=POLL)[0]:
            if stop():
                return None
        try:
            return self._ray.get(self._begun.pop(number))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError):
                raise error.cause from error
            raise RuntimeError(f"job {number + 1}: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            reason = f"lost its worker {RETRIES + 1} times: {type(error).__name__}"
            raise RuntimeError(f"job {number + 1} {reason}") from error
