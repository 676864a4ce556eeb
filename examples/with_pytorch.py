"""PyTorch: three methods on a photo, EfficientNet-Lite0's top class, drawn side by side.

Run: python examples/with_pytorch.py maps.png
"""

import sys

import skimage
import torch

from guided_backprop import DeconvNet, GuidedBackprop, Saliency, compare
from guided_backprop.models import load_default, read_image


def main(target: str) -> None:
    """Draw the maps of the coffee photo into ``target``."""
    vision = load_default()  # any torch.nn.Module in eval mode will do, with its own preprocessing
    images = torch.from_numpy(vision.preprocess(read_image(f"{skimage.data_dir}/coffee.png")))[None]
    methods = [Saliency(vision.network), DeconvNet(vision.network), GuidedBackprop(vision.network)]
    found = compare(images, None, methods)
    found[0].plot(methods=found, class_names=vision.class_names).savefig(target)
    for each in found:
        print(f"{each.method}: {vision.class_name(each.labels[0])}, score {each.scores[0]:.2f}, {each.coverage}")


if __name__ == "__main__":
    main(sys.argv[1])
