"""Adapters: how each library is asked for a map of Guided Backpropagation, as its own documentation shows.

Each is one function ``(model, images, labels) -> map``: images are the framework's own tensor, labels ``(N,)`` class
ids as NumPy's, and the map is like the images. A library is imported when it is asked.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

from guided_backprop_suite.cases import Adapter

CLASSES = 5


@dataclass(frozen=True)
class Library:
    """A library, and how it is asked.

    Attributes:
        name: its name, with the version in tables.
        package: what it is called in the index of packages.
        frameworks: of which frameworks it explains models.
        explain: the adapter.
    """

    name: str
    package: str
    frameworks: tuple[str, ...]
    explain: Adapter

    @property
    def title(self) -> str | None:
        """The name and the version; None if it is not there."""
        try:
            return f"{self.name} {version(self.package)}"
        except PackageNotFoundError:
            # What lies in a folder is no distribution.
            module = self.package.replace("-", "_")
            return f"{self.name} {import_module(module).__version__}" if find_spec(module) else None


def ours(model: Any, images: Any, labels: Any) -> Any:
    from guided_backprop import GuidedBackprop  # noqa: PLC0415

    return GuidedBackprop(model).explain(images, labels).attribution


def captum(model: Any, images: Any, labels: Any) -> Any:
    import torch  # noqa: PLC0415
    from captum.attr import GuidedBackprop  # noqa: PLC0415

    return GuidedBackprop(model).attribute(images, target=torch.as_tensor(labels))


def zennit(model: Any, images: Any, labels: Any) -> Any:
    import torch  # noqa: PLC0415
    from zennit.attribution import Gradient  # noqa: PLC0415
    from zennit.composites import GuidedBackprop  # noqa: PLC0415

    with Gradient(model=model, composite=GuidedBackprop()) as attributor:
        return attributor(images, torch.eye(CLASSES, dtype=images.dtype)[labels])[1]


def grad_cam(model: Any, images: Any, labels: Any) -> Any:
    """Explain with pytorch-grad-cam, image by image: it returns the first of a batch, channels last."""
    from pytorch_grad_cam import GuidedBackpropReLUModel  # noqa: PLC0415

    explain = GuidedBackpropReLUModel(model=model, device="cpu")
    found = [explain(images[[row]], target_category=int(label)) for row, label in enumerate(labels)]
    return np.stack([each.transpose(2, 0, 1) if each.ndim == 3 else each for each in found])


def tdhook(model: Any, images: Any, labels: Any) -> Any:
    import torch  # noqa: PLC0415
    from tdhook.attribution import GuidedBackpropagation  # noqa: PLC0415
    from tensordict import TensorDict  # noqa: PLC0415

    def chosen(targets: Any, _: Any) -> Any:
        return targets.apply(lambda outputs: outputs[range(len(labels)), labels.tolist()])

    with GuidedBackpropagation(init_attr_targets=chosen).prepare(model) as hooked:
        return hooked(TensorDict({"input": torch.as_tensor(images)}, batch_size=len(images)))["attr", "input"]


def xplique(model: Any, images: Any, labels: Any) -> Any:
    from xplique.attributions import GuidedBackprop  # noqa: PLC0415

    return GuidedBackprop(model, reducer=None)(images, np.eye(CLASSES, dtype=images.dtype.as_numpy_dtype)[labels])


def keras_vis(model: Any, images: Any, labels: Any) -> Any:
    """Explain with tf-keras-vis: the signed gradient of a model that its guided modifier changed."""
    from tf_keras_vis.saliency import Saliency  # noqa: PLC0415
    from tf_keras_vis.utils.model_modifiers import GuidedBackpropagation  # noqa: PLC0415
    from tf_keras_vis.utils.scores import CategoricalScore  # noqa: PLC0415

    saliency = Saliency(model, model_modifier=GuidedBackpropagation())
    options = {"keepdims": True, "gradient_modifier": None, "normalize_map": False}
    return saliency(CategoricalScore(labels.tolist()), images, **options)


LIBRARIES = (
    Library("guided-backprop", "guided-backprop", ("torch", "keras", "jax"), ours),
    Library("Captum", "captum", ("torch",), captum),
    Library("zennit", "zennit", ("torch",), zennit),
    Library("pytorch-grad-cam", "grad-cam", ("torch",), grad_cam),
    Library("tdhook", "tdhook", ("torch",), tdhook),
    Library("Xplique", "xplique", ("keras",), xplique),
    Library("tf-keras-vis", "tf-keras-vis", ("keras",), keras_vis),
)
