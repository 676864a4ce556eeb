"""What TF32 does to a map: PyTorch's convolutions on a GPU round to it unless told not to.

    tensor_float.py [MODEL,MODEL...]    prints a table in Markdown, for two images of noise

Of each map the difference to the one in float64 on the same GPU, as a part of its norm, and the cosine of both: the
worse one of two.
"""

import sys
from itertools import product

import numpy as np
import torch
from contestants_torch import NETWORKS, on
from markdown import print_head, print_row

from guided_backprop import GuidedBackprop

MODELS = ("small CNN", "ResNet-18", "ResNet-50", "MobileNetV2")
IMAGES = 2


def compared(found: np.ndarray, exact: np.ndarray) -> list[str]:
    pairs = [(one.ravel(), other.ravel()) for one, other in zip(found, exact, strict=True)]
    off = max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)
    cosine = min(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for one, other in pairs)
    return [f"{off:.1e}", f"{cosine:.6f}"]


def main() -> None:
    framework = on("cuda")
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else MODELS
    header = ["model", *(" ".join(pair) for pair in product(("float32,", "TF32,"), ("difference", "cosine")))]
    print_head(header)
    for name in names:
        maps = {}
        for dtype, is_coarse in (("float64", False), ("float32", False), ("float32", True)):
            torch.backends.cudnn.allow_tf32 = is_coarse
            images, labels = framework.inputs(name, IMAGES, dtype)
            model = NETWORKS[name].build(dtype).to(images.device)
            maps[dtype, is_coarse] = np.asarray(GuidedBackprop(model).explain(images, labels), np.float64)
        exact, *others = maps.values()
        print_row([name, *(cell for other in others for cell in compared(other, exact))])


if __name__ == "__main__":
    main()
