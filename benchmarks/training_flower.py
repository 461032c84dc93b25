"""Flower's simulation as a rival of ``benchmarks.training``; ``training_peers`` is the command.

Flower's strategies combine models. Attackers who look at the honest updates are put in where the
replies arrive, for none of Flower's clients knows the others.
"""

import os
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from training_peers import Data, Log, local_epoch, min_max, network


def a_little_is_enough(messages: list[torch.Tensor]) -> torch.Tensor:
    """The mean plus 1.5 deviations."""
    rows = torch.stack(messages)
    return rows.mean(dim=0) + 1.5 * rows.std(dim=0)


def momentum_step(model: nn.Module, data: Any, task: dict[str, Any], state: Any) -> None:
    """A step along the momentum of gradients of a batch; ``state`` keeps it between rounds."""
    from flwr.app import ArrayRecord  # pyright: ignore

    inputs, labels = data
    chosen = torch.randperm(len(labels))[: task["batch"]]
    nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
    old = state["momentum"].to_torch_state_dict() if "momentum" in state else {}
    new = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            new[name] = (1 - task["momentum"]) * value.grad
            if name in old:
                new[name] += task["momentum"] * old[name]
            value -= task["rate"] * new[name]
    state["momentum"] = ArrayRecord(new)


def strategy_of(task: dict[str, Any], clients: int) -> Any:
    """Flower's own strategy; under attack, the last replies become what the attackers send."""
    from flwr.app import ArrayRecord  # pyright: ignore
    from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg, Krum  # pyright: ignore

    share = {"fraction_train": task["cohort"] / clients, "fraction_evaluate": 0.0}
    byzantine = task["byzantine"]
    if task["rule"] == "krum":
        made = Krum(num_malicious_nodes=byzantine, **share)
    elif task["rule"] == "trimmed_mean":
        made = FedTrimmedAvg(beta=byzantine / task["cohort"], **share)
    else:
        made = FedAvg(**share)
    if task["attack"] == "none":
        return made
    craft = {"min_max": min_max, "alie": a_little_is_enough}[task["attack"]]
    aggregate = made.aggregate_train

    def attacked(server_round: int, replies: Any) -> Any:
        replies = list(replies)
        sent = [reply.content["arrays"].to_torch_state_dict() for reply in replies[:-byzantine]]
        # A message is minus a model, up to what all share.
        messages = [-torch.cat([value.reshape(-1) for value in each.values()]) for each in sent]
        parts = (-craft(messages)).split([value.numel() for value in sent[0].values()])
        named = zip(sent[0].items(), parts, strict=True)
        model = {name: part.reshape(value.shape) for (name, value), part in named}
        for reply in replies[-byzantine:]:
            reply.content["arrays"] = ArrayRecord(model)
        return aggregate(server_round, replies)

    made.aggregate_train = attacked
    return made


def flower(task: dict[str, Any], data_path: str) -> None:
    """Flower's simulation: a ClientApp in Ray's workers, its strategy in a ServerApp."""
    os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # pyright: ignore
    from flwr.clientapp import ClientApp  # pyright: ignore
    from flwr.serverapp import ServerApp  # pyright: ignore
    from flwr.simulation import run_simulation  # pyright: ignore

    client_app, server_app, log = ClientApp(), ServerApp(), Log()

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        import training_peers as peers  # not what is pickled: a worker reads the data once

        torch.set_num_threads(1)
        data = peers.data_of(data_path)
        model = network(task["model"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        inputs, labels = data.of(int(context.node_config["partition-id"]))
        if task["byzantine"]:
            momentum_step(model, (inputs, labels), task, context.state)
        else:
            local_epoch(model, inputs, labels, task["batch"], task["rate"])
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(labels)}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        data = Data(data_path)

        def evaluate(server_round: int, arrays: Any) -> Any:
            if server_round == 0:
                log.start()
                return None
            model = network(task["model"])
            model.load_state_dict(arrays.to_torch_state_dict())
            log.end(model, data)
            return MetricRecord({"round": server_round})  # it wants one; ours is in the log

        strategy = strategy_of(task, len(data.start) - 1)
        start = ArrayRecord(data.begin(network(task["model"])).state_dict())
        strategy.start(grid, start, num_rounds=task["rounds"], evaluate_fn=evaluate)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(Data(data_path).start) - 1,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
        },
    )
    log.show()
