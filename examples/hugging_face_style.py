"""A model as Hugging Face writes them: it takes ``pixel_values`` by name and returns an object with ``.logits``.

Of several outputs the one called "logits" is explained unless ``output=`` says another.
A model from the hub is handed over alike: ``ResNetForImageClassification.from_pretrained(...).eval()``.

Run: python examples/hugging_face_style.py maps.png
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn

from guided_backprop import GuidedBackprop


@dataclass
class ImageClassifierOutput:
    """What such models return."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class ForImageClassification(nn.Module):
    """A small network with the signature of such models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5), nn.ReLU())
        self.classifier = nn.Linear(32, 3)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Return logits, and the loss if there are labels."""
        pooled = self.embedder(pixel_values).mean((2, 3))
        logits = self.classifier(pooled)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, pooled)


def main(target: str) -> None:
    """Draw the maps of two random images into ``target``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, pixel_values = ForImageClassification().eval(), torch.rand(2, 3, 32, 32)
    explanations = GuidedBackprop(model).explain(pixel_values)  # the logits, of the class with the highest
    by_name = GuidedBackprop(model).explain({"pixel_values": pixel_values}, explanations.labels)
    assert torch.equal(by_name.attribution["pixel_values"], explanations.attribution)
    pooled = GuidedBackprop(model, output="pooler_output").explain(pixel_values, 7)  # a feature instead of a class
    print(f"classes {explanations.labels}, {explanations.coverage}; feature 7: {pooled.scores.round(3)}")
    explanations.plot().savefig(target)


if __name__ == "__main__":
    main(sys.argv[1])
