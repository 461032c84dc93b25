"""What an honest but curious server can see of one image in the message of its owner.

Each of a few MNIST clients has one image and sends the gradient of its loss at the initial model,
as the round sends it: bare, through ``MessagePrivacy`` at three noises, through ``ExamplePrivacy``.
The label is read off the output layer's bias, the image found by ``jaxfl.inversion.Inversion``
(cosine distance). PSNR is that of the image in [0, 1]; noise drawn uniformly has about 6 dB, the
mean image about 11. *labels of eight* are read off the messages of clients with eight images.
Epsilon is of that one message, at delta = 1e-5.

``python -m benchmarks.inversion [--quick] [--docs docs]`` prints the table and writes
``measurements/inversion.json`` and ``images/inversion.png`` into the folder.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import save
from jaxfl import Federation, FedSGD, NoPrivacy, Simulation
from jaxfl.accounting import guarantee
from jaxfl.data import Dataset, mnist
from jaxfl.inversion import Inversion, Reconstruction, label_recovery, labels_of, psnr
from jaxfl.models import MLP, Model, SignGuardCNN
from jaxfl.privacy import ExamplePrivacy, MessagePrivacy, Privacy

MODELS: dict[str, Model] = {"MLP": MLP(hidden=(64,)), "CNN": SignGuardCNN(dropout=0.0)}
NOISES = (0.01, 0.1, 1.0)
MECHANISMS: dict[str, Privacy] = {
    "none": NoPrivacy(),
    **{
        f"MessagePrivacy, noise {z:g}": MessagePrivacy(clip=1.0, noise_multiplier=z) for z in NOISES
    },
    "ExamplePrivacy, noise 1": ExamplePrivacy(clip=1.0, noise_multiplier=1.0, sampling="fixed"),
}
SEVERAL = 8
"""Images of a client whose labels are read off together."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What came of one mechanism and model."""

    model: str
    mechanism: str
    epsilon: float | None
    """None where nothing is guaranteed."""
    psnr: list[float]
    """Of every image, in dB."""
    labels: float
    """Share of the labels of single images that were found."""
    labels_of_eight: float
    distance: list[float]
    """Of the reconstructions' gradients from the messages."""


def owned(images: np.ndarray, labels: np.ndarray, each: int) -> Dataset:
    """Clients with so many images each."""
    owners = np.arange(len(labels)) // each
    raw = mnist()
    return dataclasses.replace(
        raw, inputs=images, labels=labels, mean=(0.0,), std=(1.0,), client_ids=owners
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--docs", type=Path, default=None)
    given = arguments.parse_args()
    count, steps = (2, 100) if given.quick else (8, 2000)
    source = mnist()
    chosen = np.random.default_rng(0).permutation(len(source.test_labels))[: count * SEVERAL]
    images, labels = (np.asarray(a)[chosen] for a in (source.test_inputs, source.test_labels))
    found, pictures = [], {}
    for model in MODELS:
        seen, shown = measure(model, images, labels, count, steps)
        found += seen
        pictures[model] = shown
    print(table(found))
    if given.docs is not None:
        (given.docs / "images").mkdir(parents=True, exist_ok=True)
        path = given.docs / "measurements" / "inversion.json"
        save(path, [dataclasses.asdict(one) for one in found])
        draw(images[:count, :, :, 0] / 255, pictures, given.docs / "images" / "inversion.png")


def measure(
    name: str, images: np.ndarray, labels: np.ndarray, count: int, steps: int
) -> tuple[list[Seen], dict[str, np.ndarray]]:
    """All mechanisms against one model."""
    plain = simulation(name, NoPrivacy(), owned(images[:count], labels[:count], 1))
    attack, plan, state = Inversion(steps=steps, smoothness=0.01), plain.plan, plain.state

    def reconstruct(message: jax.Array, label: jax.Array, key: jax.Array) -> Reconstruction:
        model = plan.objective, state.params, state.model_state
        return attack.reconstruct(*model, message, label, key, sample=plain.data.sample)

    search, keys = jax.jit(jax.vmap(reconstruct)), jax.random.split(jax.random.key(0), count)
    truth, found, shown = images[:count] / 255, [], {}
    for mechanism, privacy in MECHANISMS.items():
        one = simulation(name, privacy, owned(images[:count], labels[:count], 1))
        sent = one.messages().sent
        read = np.array([labels_of(m, plan.spec.segments, 1)[0] for m in sent])
        result = search(sent, jnp.asarray(read)[:, None], keys)
        shown[mechanism] = np.asarray(result.inputs)[:, 0, :, :, 0]
        many = simulation(name, privacy, owned(images, labels, SEVERAL))
        recovered = [
            label_recovery(labels_of(m, plan.spec.segments, SEVERAL), own)
            for m, own in zip(many.messages().sent, labels.reshape(-1, SEVERAL), strict=True)
        ]
        promise = guarantee(one.federation, [1] * count, 1)
        found.append(
            Seen(
                model=name,
                mechanism=mechanism,
                epsilon=None if promise is None else round(promise.epsilon, 3),
                psnr=[
                    round(psnr(x, y[..., 0]), 2)
                    for x, y in zip(shown[mechanism], truth, strict=True)
                ],
                labels=float(np.mean(read == labels[:count])),
                labels_of_eight=float(np.mean(recovered)),
                distance=np.asarray(result.distance).round(5).tolist(),
            )
        )
    return found, shown


def simulation(name: str, privacy: Privacy, data: Dataset) -> Simulation:
    """One round that nobody attacks."""
    federation = Federation(algorithm=FedSGD(batch_size=SEVERAL), privacy=privacy)
    return Simulation(federation, data.by_client(), MODELS[name])


def table(found: list[Seen]) -> str:
    """As Markdown."""
    lines = [
        "| model | mechanism | epsilon | PSNR: mean (worst to best) | label | labels of eight |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for one in found:
        epsilon = "none" if one.epsilon is None else f"{one.epsilon:.3g}"
        low, mean, high = min(one.psnr), float(np.mean(one.psnr)), max(one.psnr)
        lines.append(
            f"| {one.model} | {one.mechanism} | {epsilon} | {mean:.1f} dB ({low:.1f} to "
            f"{high:.1f}) | {one.labels:.0%} | {one.labels_of_eight:.0%} |"
        )
    return "\n".join(lines)


def draw(truth: np.ndarray, pictures: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """The images, and below them what was found under each mechanism."""
    import matplotlib.pyplot as plt

    rows = [("the images", truth)]
    for model, shown in pictures.items():
        rows += [(f"{model}, {mechanism}", images) for mechanism, images in shown.items()]
    figure, axes = plt.subplots(len(rows), len(truth), figsize=(len(truth), 1.1 * len(rows)))
    for line, (name, images) in zip(axes, rows, strict=True):
        for place, image in zip(line, images, strict=True):
            place.imshow(image, cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
