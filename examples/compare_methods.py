"""Draw the picture of the README: two photos, and what in them excites VGG16's last convolution, by two methods.

The weights come as examples/neurons.py says.

Run: python examples/compare_methods.py docs/images/methods.png
"""

import sys
from pathlib import Path

import numpy as np
import skimage
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import nn

from guided_backprop import GuidedBackprop, Saliency
from guided_backprop.render import colour_picture, overlay, picture
from neurons import MEAN, SIZE, SPREAD, load_trunk

PHOTOS = ("chelsea.png", "motorcycle_left.png")
SMOOTH = 1.5


def excitement(features: torch.Tensor) -> torch.Tensor:
    """Return the score: how much is felt at all, over all channels and positions."""
    return features.mean(dim=(1, 2, 3))


def draw(target: Path, model: nn.Module) -> None:
    """Write the figure to ``target``."""
    photos = [ImageOps.fit(Image.open(Path(skimage.data_dir) / name), (SIZE, SIZE)) for name in PHOTOS]
    normed = [(np.asarray(photo) / 255 - MEAN) / SPREAD for photo in photos]
    images = torch.tensor(np.stack(normed), dtype=torch.float32).permute(0, 3, 1, 2)
    maps = [
        np.moveaxis(np.asarray(kind(model).explain(images, excitement)), 1, -1) for kind in (Saliency, GuidedBackprop)
    ]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    titles = ("photo", "Saliency", "GuidedBackprop", "GuidedBackprop, overlay")
    for axes_of_row, photo, saliency, guided in zip(figure.subplots(len(PHOTOS), 4), normed, *maps, strict=True):
        panels = (
            picture(photo),
            colour_picture(saliency),
            colour_picture(guided),
            overlay(photo, guided, smooth=SMOOTH),
        )
        for axes, title, pixels in zip(axes_of_row, titles, panels, strict=True):
            axes.imshow(pixels)
            axes.set_title(title)
            axes.set_axis_off()
    about = "What excites VGG16's last convolution. Grey is 0; full colour: percentile 99 of the magnitudes; "
    figure.supxlabel(f"{about}the overlay is smoothed by {SMOOTH} pixels", fontsize=9)
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), load_trunk())
