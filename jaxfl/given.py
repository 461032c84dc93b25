"""What a simulation is given: one or one for each seed, checked before anything runs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxfl.arguments import seed_of
from jaxfl.data.federated import FederatedData
from jaxfl.federation import Federation


def checked_seeds(seeds: Sequence[int] | np.ndarray) -> list[int]:
    """The seeds of a simulation, or one clear error."""
    if np.ndim(seeds) != 1 or len(seeds) == 0:
        raise ValueError(f"seeds must be a list of integers, at least one seed; got {seeds!r}")
    return [seed_of(seed) for seed in seeds]


def checked_honest(honest: Any, runs: int, clients: int, most: Sequence[int]) -> np.ndarray:
    """Masks of the honest clients of every run, or one clear error.

    Each run leaves out at most as many clients as its own number says, or the one that all share.
    """
    sets = np.asarray(honest)
    if sets.shape != (runs, clients) or sets.dtype != bool:
        raise ValueError(
            f"honest must be masks [{runs}, {clients}], one of all clients for each seed; got "
            f"shape {sets.shape} of {sets.dtype}"
        )
    for left, allowed in zip(
        (~sets).sum(axis=1), np.broadcast_to(np.asarray(most), runs), strict=True
    ):
        if left > allowed:
            raise ValueError(
                f"byzantine must be at least {left}, as many as honest leaves out; got {allowed}"
            )
    return sets


def partitions_and_parts(
    federation: Federation | Sequence[Federation],
    data: FederatedData | Sequence[FederatedData],
    runs: int,
) -> tuple[list[FederatedData], list[Federation]]:
    """The partitions and the federations of a simulation, or one clear error."""
    partitions = listed_partitions(data)
    parts = list(federation) if isinstance(federation, Sequence) else [federation]
    for given, what in ((data, "partitions"), (federation, "federations")):
        if isinstance(given, Sequence) and len(given) != runs:
            raise ValueError(f"got {len(given)} {what} for {runs} seeds")
    return partitions, parts


def check_devices(devices: Any) -> None:
    """Raises ValueError unless it is None or a list of devices."""
    listed = isinstance(devices, Sequence) and not isinstance(devices, str)
    if devices is not None and not (
        listed and devices and all(isinstance(device, jax.Device) for device in devices)
    ):
        raise ValueError(
            f"devices must be a list of JAX devices, such as jax.devices(); got {devices!r}"
        )


def listed_partitions(data: FederatedData | Sequence[FederatedData]) -> list[FederatedData]:
    """The partitions as a list, or one clear error."""
    partitions = list(data) if isinstance(data, Sequence) else [data]
    for part in partitions:
        if not isinstance(part, FederatedData):
            raise ValueError(
                "data must be FederatedData: call dataset.split(partition, clients) or "
                f".by_client(); got {type(part).__name__}"
            )
    return partitions


def as_one_program(parts: list[Federation]) -> tuple[list[Federation], list[int]]:
    """The federations with the most attackers that one has, and how many each has.

    Who is Byzantine is a mask, so fewer attackers are the same program; none at all are not, nor
    is a number that is fixed for every round.
    """
    counts = [part.byzantine for part in parts]
    if len(set(counts)) == 1 or not all(map(countless, parts)):
        return parts, counts
    return [part.replace(byzantine=max(counts)) for part in parts], counts


def countless(part: Federation) -> bool:
    """Whether the program is the same for any other number of attackers, if there are any."""
    return part.byzantine > 0 and part.byzantine_per_round is None


def stacked(parts: list[Federation]) -> tuple[Federation, tuple[bool, ...]]:
    """One federation, whose leaves lead by a seed axis where they differ; which ones do.

    What all seeds share has no axis: a branch that it decides is decided once.
    """
    shapes = {jax.tree.structure(p): None for p in parts}
    if len(shapes) > 1:
        raise ValueError(
            "federations of one simulation may differ only in leaves (numbers), and in byzantine "
            "where it is above 0 and byzantine_per_round is not given"
        )
    (structure,) = shapes
    each = list(zip(*map(jax.tree.leaves, parts), strict=True))
    own = tuple(any(not np.array_equal(x, leaves[0]) for x in leaves) for leaves in each)
    merged = [np.stack(x) if differ else x[0] for x, differ in zip(each, own, strict=True)]
    return jax.tree.unflatten(structure, merged), own
