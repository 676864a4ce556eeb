"""A model as timm writes them: batch-norm and ReLU in one layer, functional ReLUs, clamps in place.

No ReLU here is a module of its own that a hook could find. timm's own models are handed over alike:
``GuidedBackprop(timm.create_model("resnet26d", pretrained=True).eval())``.

Run: python examples/timm_style.py maps.png
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import GradCAM, GuidedBackprop, compare


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch-norm that ends in an activation, in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations of the shape of ``x``."""
        return F.relu(super().forward(x), inplace=True)


class Block(nn.Module):
    """A residual block whose last ReLU is a clamp."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNormAct2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations of the shape of ``x``."""
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)))) + x).clamp_(min=0)


def main(target: str) -> None:
    """Draw the maps of two random images into ``target``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = [nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), BatchNormAct2d(16), nn.MaxPool2d(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
        model = nn.Sequential(*stem, Block(16), Block(16), *head).eval()
        images = F.interpolate(torch.rand(2, 3, 8, 8), 64, mode="bicubic")
    method = GuidedBackprop(model).optimize(images)  # faster; the model stays as it is
    found = compare(images, None, [method, GradCAM(model, "4")])
    print(found[0].coverage)  # all five ReLUs
    found[0].plot(methods=found).savefig(target)


if __name__ == "__main__":
    main(sys.argv[1])
