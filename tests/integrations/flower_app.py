"""A small Flower app, written into a folder: softmax regression on digits, client 0 Byzantine.

Flower starts a process for every message, so its modules import little.
"""

from pathlib import Path

import numpy as np

CLIENTS = 4
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "digits"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "jaxfl"

[tool.flwr.app.components]
serverapp = "digits.server:app"
clientapp = "digits.client:app"

[tool.flwr.app.config]
strategy = ""
folder = ""
"""
TASK = """
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord


def samples(folder):
    found = np.load(Path(folder) / "digits.npz")
    return found["inputs"], found["labels"]


def accuracy(model, folder):
    inputs, labels = (x[1400:] for x in samples(folder))
    return float(np.mean(np.argmax(inputs @ model["weight"] + model["bias"], 1) == labels))


def train(model, who, folder):
    inputs, labels = (x[who:1400:CLIENTS] for x in samples(folder))
    weight, bias = model["weight"].copy(), model["bias"].copy()
    for _ in range(20):
        logits = inputs @ weight + bias
        error = np.exp(logits - logits.max(1, keepdims=True))
        error /= error.sum(1, keepdims=True)
        error[np.arange(len(error)), labels] -= 1
        weight -= inputs.T @ error / len(error)
        bias -= error.mean(0)
    return {"bias": bias, "weight": weight, "rounds": model["rounds"] + 1}, len(labels)


def arrays_of(record):
    return {name: array.numpy() for name, array in record.items()}


def record_of(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
"""
CLIENT = """
from digits.task import arrays_of, record_of, train
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def fit(message, context):
    who = int(context.node_config["partition-id"])
    sent = arrays_of(message.content["arrays"])
    back, count = train(sent, who, context.run_config["folder"])
    if who == 0:
        back = {k: v - 10 * (back[k] - v) for k, v in sent.items()}
    metrics = MetricRecord({"num-examples": count, "byzantine": float(who == 0)})
    content = RecordDict({"arrays": record_of(back), "metrics": metrics})
    return Message(content=content, reply_to=message)
"""
SERVER = """
import json
from pathlib import Path

import numpy as np
from digits.task import CLIENTS, accuracy, arrays_of, record_of
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def strategy_of(name):
    needed = {"min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS, "fraction_evaluate": 0.0}
    if name == "fedavg":
        return FedAvg(**needed)
    import jaxfl
    from jaxfl.integrations.flower import RobustStrategy

    return RobustStrategy(aggregator=jaxfl.SignGuard(), **needed)


@app.main()
def main(grid, context):
    name, folder = context.run_config["strategy"], context.run_config["folder"]
    start = {"weight": np.zeros((64, 10), "f4"), "bias": np.zeros(10, "f4"), "rounds": np.array(0)}
    result = strategy_of(name).start(grid=grid, initial_arrays=record_of(start), num_rounds=3)
    last = arrays_of(result.arrays)
    found = {
        "accuracy": accuracy(last, folder),
        "rounds": float(last["rounds"]),
        "names": list(last),
        "metrics": [dict(m) for m in result.train_metrics_clientapp.values()],
    }
    aside = Path(folder) / f"{name}.part"
    aside.write_text(json.dumps(found))
    aside.rename(Path(folder) / f"{name}.json")
"""


def write_app(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> None:
    """The app's project and its data."""
    np.savez(folder / "digits.npz", inputs=inputs, labels=labels)
    package = folder / "app" / "digits"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text("")
    task = TASK.replace("import numpy", f"CLIENTS = {CLIENTS}\nimport numpy")
    for name, text in (("task", task), ("client", CLIENT), ("server", SERVER)):
        (package / f"{name}.py").write_text(text.lstrip())
