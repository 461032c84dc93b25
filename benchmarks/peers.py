"""The same rounds in PyTorch: a loop over clients, and ``torch.func.vmap`` over clients.

Both compute each client's gradient of one batch, stack the flat gradients as ``[n, d]`` (as a
robust rule would need), average, and take the server's step of SGD with momentum. PyTorch is
optional (``pip install jaxfl[peers]``) and imported where it is used.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

WAYS = ("loop", "vmap")


def network(name: str, dropout: float = 0.5) -> Any:
    """``cnn``: the SignGuard CNN; ``mlp``: 784-128-10."""
    nn: Any = importlib.import_module("torch").nn
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    layers = []
    for conv in (nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 1, 1)):
        layers += [conv, nn.MaxPool2d(2), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(288, 120), nn.ReLU(), nn.Dropout(dropout)]
    head += [nn.Linear(120, 84), nn.ReLU(), nn.Dropout(dropout), nn.Linear(84, 10)]
    return nn.Sequential(*layers, *head)


class Federation:
    """Clients with ``samples`` images each, of which a round uses ``batch``."""

    def __init__(self, model: str, clients: int, samples: int, batch: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        torch = self.torch
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        shape = (clients * samples, 1, 28, 28)
        self.inputs = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8))
        self.labels = torch.arange(clients * samples) % 10
        self.clients, self.samples, self.batch = clients, samples, batch
        self.model = network(model)
        self.params = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )
        dim = sum(p.numel() for p in self.model.parameters())
        self.rows = torch.empty((clients, dim))
        self.per_client = self._per_client()

    def round(self, way: str) -> None:
        """One round; the step moves the model."""
        if way == "loop":
            for client in range(self.clients):
                self._loop_client(client)
        else:
            self._vmap_clients()
        self._step(self.rows.mean(dim=0))

    def _loop_client(self, client: int) -> None:
        torch = self.torch
        inputs, labels = self._load(client * self.samples + torch.randperm(self.samples))
        loss = torch.nn.functional.cross_entropy(self.model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        torch.cat([g.reshape(-1) for g in gradients], out=self.rows[client])

    def _vmap_clients(self) -> None:
        torch = self.torch
        order = torch.rand(self.clients, self.samples).argsort(dim=1)
        order += torch.arange(self.clients)[:, None] * self.samples
        inputs, labels = self._load(order)
        params = {name: value.detach() for name, value in self.params.items()}
        gradients = self.per_client(params, inputs, labels)
        flat = [g.reshape(self.clients, -1) for g in gradients.values()]
        torch.cat(flat, dim=1, out=self.rows)

    def _load(self, order: Any) -> tuple[Any, Any]:
        index = order[..., : self.batch]
        return self.inputs[index].float() / 255, self.labels[index]

    def _per_client(self) -> Callable[..., Any]:
        torch = self.torch

        def loss(params: Any, inputs: Any, labels: Any) -> Any:
            logits = torch.func.functional_call(self.model, params, (inputs,))
            return torch.nn.functional.cross_entropy(logits, labels)

        gradient = torch.func.grad(loss)
        return torch.func.vmap(gradient, in_dims=(None, 0, 0), randomness="different")

    def _step(self, mean: Any) -> None:
        start = 0
        for parameter in self.model.parameters():
            part = mean[start : start + parameter.numel()]
            parameter.grad = part.view_as(parameter)
            start += parameter.numel()
        self.optimizer.step()
