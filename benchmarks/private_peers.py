"""The same private rounds in Opacus: a loop over clients, each with a clipped, noised gradient.

PyTorch and Opacus are optional (``pip install jaxfl[peers]``) and imported where they are used.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import peers
from benchmarks.cases import BATCH, Case, federated
from benchmarks.timing import Report
from jaxfl.models.objective import Objective
from jaxfl.types import Batch, PyTree

TOLERANCE = 1e-4
"""Between our clipped gradient and Opacus's, in units of the largest number in it."""
LOOP, HOOKS, GHOST = "PyTorch loop, plain", "Opacus, hooks", "Opacus, ghost clipping"


class Clients(peers.Federation):
    """The rounds of ``peers`` without dropout; clients' gradients are private unless ``LOOP``."""

    def __init__(
        self, case: Case, way: str, *, noise: float, clip: float, threads: int = 1
    ) -> None:
        super().__init__(case.model, case.clients, case.samples, BATCH)
        torch = self.torch
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.way, self.threads = way, threads
        if way == LOOP:
            return
        with warnings.catch_warnings(action="ignore"):
            modules = importlib.import_module("opacus.grad_sample")
            optimizers = importlib.import_module("opacus.optimizers")
            losses = importlib.import_module("opacus.utils.fast_gradient_clipping_utils")
        numbers = {"noise_multiplier": noise, "max_grad_norm": clip, "expected_batch_size": BATCH}
        self.criterion: Any = torch.nn.CrossEntropyLoss()
        if way == HOOKS:
            self.wrapped: Any = modules.GradSampleModule(self.model)
            self.private: Any = optimizers.DPOptimizer(self.optimizer, **numbers)
        else:
            wrapper, optimizer = (
                modules.GradSampleModuleFastGradientClipping,
                optimizers.DPOptimizerFastGradientClipping,
            )
            self.wrapped = wrapper(self.model, max_grad_norm=clip, use_ghost_clipping=True)
            self.private = optimizer(self.optimizer, **numbers)
            criterion = losses.DPLossFastGradientClipping
            self.criterion = criterion(self.wrapped, self.private, self.criterion)

    def __call__(self) -> None:
        """One round."""
        self.torch.set_num_threads(self.threads)
        with warnings.catch_warnings(action="ignore"):  # of hooks, once or at every call
            self.round("loop")

    def _loop_client(self, client: int) -> None:
        if self.way == LOOP:
            super()._loop_client(client)
            return
        inputs, labels = self._load(client * self.samples + self.torch.randperm(self.samples))
        flat = [gradient.reshape(-1) for gradient in self.gradients(inputs, labels)]
        self.torch.cat(flat, out=self.rows[client])

    def gradients(self, inputs: Any, labels: Any) -> list[Any]:
        """All that Opacus does to a batch before the step: clip, add, noise, divide."""
        self.private.zero_grad(set_to_none=True)
        self.criterion(self.wrapped(inputs), labels).backward()
        self.private.pre_step()
        return [parameter.grad for parameter in self.model.parameters()]


def clipped(
    case: Case, way: str, clip: float, weights: list[np.ndarray], images: jax.Array, labels: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradient without noise, flat, for weights from ``as_torch``; the norms, with hooks."""
    rival = Clients(case, way, noise=0.0, clip=clip)
    parameters = list(rival.model.parameters())
    for parameter, value in zip(parameters, weights, strict=True):
        parameter.data.copy_(rival.torch.tensor(value))
    # As laid out by PyTorch: for convolutions with the channels last, Opacus 1.6.0 is wrong.
    inputs = rival.torch.tensor(np.asarray(images).reshape(-1, 1, 28, 28))
    with warnings.catch_warnings(action="ignore"):
        gradients = rival.gradients(inputs, rival.torch.tensor(np.asarray(labels)).long())
    flat = np.concatenate([gradient.numpy().ravel() for gradient in gradients])
    if way != HOOKS:
        return flat, None
    rows = [parameter.grad_sample.reshape(len(inputs), -1) for parameter in parameters]
    return flat, np.linalg.norm(np.concatenate(rows, axis=1), axis=1)


def as_torch(objective: Objective, flat: jax.Array, statistics: PyTree) -> list[np.ndarray]:
    """Our flat parameters, or a gradient by them, as PyTorch lays them out."""
    arrays, channels = [], 1
    for _, layer in nnx.iter_modules(objective.module(flat, statistics)):
        if not isinstance(layer, nnx.Linear | nnx.Conv):
            continue
        assert layer.bias is not None
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        if isinstance(layer, nnx.Conv):
            kernel, channels = kernel.transpose(3, 2, 0, 1), kernel.shape[-1]
        else:  # the first after convolutions sees images, in PyTorch with the channels first
            kernel = kernel.reshape(-1, channels, kernel.shape[1]).swapaxes(0, 1)
            kernel, channels = kernel.reshape(-1, kernel.shape[-1]).T, 1
        arrays += [kernel, bias]
    return arrays


def check(case: Case, objective: Objective, ours: Mapping[str, Callable[[float], Any]]) -> Report:
    """Compares clipped gradients from equal weights and images; raises unless they are equal.

    ``ours`` maps a clip to a function of flat parameters, statistics, a batch and a key.
    """
    report = Report(
        f"{case.model}: clipped gradients without noise, difference over largest number",
        ("clip", "clipped", *(f"{name} / {way}" for name in ours for way in (HOOKS, GHOST))),
    )
    case = dataclasses.replace(case, clients=1)
    images, labels = federated(case).samples(jnp.arange(BATCH))
    params, statistics = objective.init(jax.random.key(0))
    weights = as_torch(objective, params, statistics)
    batch = Batch(images, labels, jnp.ones(BATCH, bool))

    def compare(clip: float) -> float:
        theirs, norms = clipped(case, HOOKS, clip, weights, images, labels)
        expected = {HOOKS: theirs, GHOST: clipped(case, GHOST, clip, weights, images, labels)[0]}
        assert norms is not None
        cells = [f"{clip:.3g}", f"{100 * np.mean(norms > clip):.0f} %"]
        for name, gradient in ours.items():
            flat = gradient(clip)(params, statistics, batch, jax.random.key(0))
            own = np.concatenate([part.ravel() for part in as_torch(objective, flat, statistics)])
            for way, theirs in expected.items():
                difference = np.abs(own - theirs).max() / np.abs(own).max()
                if not difference <= TOLERANCE:
                    raise AssertionError(f"{case.model}, {name}: {difference:.1e} from {way}")
                cells.append(f"{difference:.0e}")
        report.rows.append(tuple(cells))
        return float(np.median(norms))

    compare(compare(1.0))  # at the benchmark's clip, and at one that half of the examples exceed
    return report
