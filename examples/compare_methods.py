"""Draw the picture of the README: two photos, explained by Saliency, DeconvNet and Guided Backpropagation.

Run: python examples/compare_methods.py docs/images/methods.png
"""

import sys
from pathlib import Path

import numpy as np
import skimage
from matplotlib.figure import Figure

from guided_backprop import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.models import load_default, read_image
from guided_backprop.render import colour_picture, picture

PHOTOS = ("chelsea.png", "coffee.png")
METHODS = (Saliency, DeconvNet, GuidedBackprop)


def draw(target: Path) -> None:
    """Write the figure to ``target``."""
    vision = load_default()
    photos = np.stack([vision.preprocess(read_image(Path(skimage.data_dir) / name)) for name in PHOTOS])
    explanations = [method(vision.network).explain(photos) for method in METHODS]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    for row, axes_of_row in enumerate(figure.subplots(len(PHOTOS), 1 + len(METHODS))):
        label = explanations[0].labels[row]
        panels = [(vision.class_names[label], picture(np.moveaxis(photos[row], 0, -1)))]
        for explained in explanations:
            pixels = colour_picture(np.moveaxis(explained.attribution[row], 0, -1))
            panels.append((explained.method, pixels))
        for axes, (title, pixels) in zip(axes_of_row, panels, strict=True):
            axes.imshow(pixels)
            axes.set_title(title)
            axes.set_axis_off()
    figure.supxlabel("EfficientNet-Lite0, top class; grey is 0, scaled to percentile 99 of the magnitudes", fontsize=9)
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
