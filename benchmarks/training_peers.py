"""One whole training run elsewhere, as a command: a PyTorch loop, ByzFL's own loop, or Flower.

``python benchmarks/training_peers.py WAY TASK DATA.npz`` prints one JSON line: seconds of every
round and the test accuracy after every fifth. It imports nothing of jaxfl, so that it runs in an
environment of the rival's own (Flower pins other packages); ``benchmarks.training`` writes the
data and calls it. All numbers of a task are in ``TASK``, a JSON object.
"""

import functools
import json
import sys
import time
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


def network(model: str) -> nn.Module:
    """``lr``: softmax regression; ``mlp``: 784-100-10; ``cnn``: 32-64-128 for CIFAR-10."""
    if model == "lr":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


EVERY = 5
"""Rounds between two evaluations."""


class Data:
    """Images and labels as tensors, and each client's samples."""

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            self.inputs, self.test_inputs = (torch.from_numpy(file[k]) for k in ("x", "test_x"))
            self.labels, self.test_labels = (torch.from_numpy(file[k]) for k in ("y", "test_y"))
            self.order, self.start = file["order"], file["start"]
            count = sum(name.startswith("parameter_") for name in file.files)
            self.parameters = [torch.from_numpy(file[f"parameter_{i}"]) for i in range(count)]

    def of(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A client's inputs and labels."""
        mine = torch.from_numpy(self.order[self.start[client] : self.start[client + 1]])
        return self.inputs[mine], self.labels[mine]

    def begin(self, model: nn.Module) -> nn.Module:
        """The model, with the weights that everybody starts from."""
        with torch.no_grad():
            for own, value in zip(model.parameters(), self.parameters, strict=True):
                own.copy_(value)
        return model


@functools.lru_cache
def data_of(path: str) -> Data:
    """The data, read once in a process."""
    return Data(path)


def accuracy(model: nn.Module, data: Data) -> float:
    """Share of the test samples that are classified rightly."""
    model.eval()
    with torch.no_grad():
        right = (model(data.test_inputs).argmax(dim=1) == data.test_labels).float().mean()
    model.train()
    return float(right)


def local_epoch(model: nn.Module, inputs: Any, labels: Any, batch: int, rate: float) -> None:
    """SGD over a client's samples once, in a random order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    order = torch.randperm(len(labels))
    for first in range(0, len(labels), batch):
        chosen = order[first : first + batch]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()


class Log:
    """Seconds and accuracy of each round; what is measured between rounds is not timed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.accuracy: list[float] = []
        self._begun = time.perf_counter()

    def start(self) -> None:
        """A round begins."""
        self._begun = time.perf_counter()

    def end(self, model: nn.Module, data: Data) -> None:
        """A round has ended with this model; the next one begins when it is evaluated."""
        self.seconds.append(time.perf_counter() - self._begun)
        if len(self.seconds) % EVERY == 0:
            self.accuracy += [accuracy(model, data)] * EVERY
        self.start()

    def show(self) -> None:
        """Prints what was noted, on a line."""
        print(json.dumps({"seconds": self.seconds, "accuracy": self.accuracy}), flush=True)


def loop(task: dict[str, Any], data: Data) -> None:
    """FedAvg as a plain loop over clients, all data and models in memory."""
    random = np.random.default_rng(0)
    server = data.begin(network(task["model"]))
    client = network(task["model"])
    clients = [data.of(i) for i in range(len(data.start) - 1)]
    log = Log()
    for _ in range(task["rounds"]):
        cohort = random.choice(len(clients), task["cohort"], replace=False)
        before = {key: value.clone() for key, value in server.state_dict().items()}
        total = {key: torch.zeros_like(value) for key, value in before.items()}
        samples = sum(len(clients[i][1]) for i in cohort)
        for i in cohort:
            inputs, labels = clients[i]
            client.load_state_dict(before)
            local_epoch(client, inputs, labels, task["batch"], task["rate"])
            share = len(clients[i][1]) / samples
            for key, value in client.state_dict().items():
                total[key] += share * value
        server.load_state_dict(total)
        log.end(server, data)
    log.show()


def byzfl(task: dict[str, Any], data: Data) -> None:
    """ByzFL's clients, Byzantine client and server, in the loop of its documentation."""
    from unittest.mock import MagicMock

    for name in ("torchvision", "torchvision.transforms", "seaborn"):
        sys.modules.setdefault(name, MagicMock())  # for its data sets and plots
    from byzfl import ByzantineClient, Client, Server  # pyright: ignore

    rule = {"trimmed_mean": "TrMean", "krum": "Krum"}[task["rule"]]
    attackers = 0 if task["attack"] == "none" else task["byzantine"]
    honest = task["cohort"] - attackers

    def loader(inputs: Any, labels: Any, batch: int, shuffle: bool) -> Any:
        dataset = torch.utils.data.TensorDataset(inputs, labels)
        return torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=shuffle)

    shared = {"model_name": "fc_mnist", "device": "cpu", "learning_rate": task["rate"]}
    decay = {"weight_decay": 0.0, "milestones": [10**6], "learning_rate_decay": 1.0}
    clients = [
        Client(
            shared
            | {
                "loss_name": "NLLLoss",
                "LabelFlipping": False,
                "nb_labels": 10,
                "momentum": task["momentum"],
                "training_dataloader": loader(*data.of(i), task["batch"], True),
                "optimizer_name": "SGD",
                "store_per_client_metrics": False,
            }
            | decay
        )
        for i in range(honest)
    ]
    server = Server(
        shared
        | {
            "test_loader": loader(data.test_inputs, data.test_labels, 1000, False),
            "optimizer_name": "SGD",
            "aggregator_info": {"name": rule, "parameters": {"f": task["byzantine"]}},
            "pre_agg_list": [],
        }
        | decay
    )
    data.begin(server.model)
    attacker = ByzantineClient(
        {"name": "ALittleIsEnough", "f": attackers, "parameters": {"tau": 1.5}}
    )
    if task["attack"] == "min_max":
        attacker.attack = min_max  # one that it lacks
    log = Log()
    for _ in range(task["rounds"]):
        model = server.get_dict_parameters()
        for client in clients:
            client.set_model_state(model)
            client.compute_gradients()
        gradients = [client.get_flat_gradients_with_momentum() for client in clients]
        server.update_model_with_gradients(gradients + attacker.apply_attack(gradients))
        log.end(server.model, data)
    log.show()


def min_max(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The mean minus gamma deviations, no farther from any gradient than two are from each other.

    The largest gamma is found by halving steps, as the attack's authors describe it.
    """
    rows = torch.stack(gradients)
    mean, deviation = rows.mean(dim=0), rows.std(dim=0)
    reach = torch.cdist(rows, rows).max()
    gamma, step = 0.0, 10.0
    while step > 1e-3:
        tried = mean - (gamma + step) * deviation
        if (rows - tried).norm(dim=1).max() <= reach:
            gamma += step
        else:
            step /= 2
    return mean - gamma * deviation


if __name__ == "__main__":
    way, description, path = sys.argv[1:]
    torch.manual_seed(0)
    asked = json.loads(description)
    if way == "flower":
        import training_flower

        training_flower.flower(asked, path)
    else:
        {"loop": loop, "byzfl": byzfl}[way](asked, Data(path))
