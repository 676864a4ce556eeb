"""Where models come from: by name, from a file or a function, with their preprocessing and class names.

No framework is imported until a model is loaded.
"""

from guided_backprop.models.classes import best_classes, probabilities
from guided_backprop.models.default import load_default
from guided_backprop.models.measured import Measured
from guided_backprop.models.preprocessing import Preprocessing, ResizeCrop, View
from guided_backprop.models.resolve import load_model
from guided_backprop.models.vision import Batch, VisionModel
from guided_backprop.photos import image_paths, read_image

__all__ = [
    "Batch",
    "Measured",
    "Preprocessing",
    "ResizeCrop",
    "View",
    "VisionModel",
    "best_classes",
    "image_paths",
    "load",
    "load_default",
    "load_model",
    "probabilities",
    "read_image",
]

#: The same as :func:`load_model`, by its first name.
load = load_model
