"""Loader: a folder that TensorFlow saved, a SavedModel."""

from typing import Any

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.vision import VisionModel


def load(asked: Asked) -> VisionModel:
    """Load the function that a SavedModel serves.

    Raises:
        MissingExtraError: TensorFlow isn't installed.
        ModelError: it can't be loaded, serves nothing, or doesn't say what it is shown.
    """
    tensorflow = asked.package("tensorflow", "tensorflow")
    try:
        loaded = tensorflow.saved_model.load(asked.name)
    # TensorFlow's errors have no base of their own.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ModelError(
            f"model must be a folder that this TensorFlow can load; received model={asked.spec!r} "
            f"({type(error).__name__}: {reason:.300}). Load it yourself, and pass file.py:function."
        ) from error
    return of_loaded(loaded, asked)


def of_loaded(loaded: Any, asked: Asked) -> VisionModel:
    """Return what a loaded SavedModel serves.

    Raises:
        ModelError: it serves nothing, or doesn't say what it is shown.
    """
    served = dict(loaded.signatures)
    if not served:
        raise ModelError(
            f"model must serve a function; received model={asked.spec!r}, without signatures. Save it with one, or "
            "pass file.py:function."
        )
    network = served.get("serving_default") or next(iter(served.values()))
    # A signature doesn't hold what its model has learned.
    network._backref_to_saved_model = loaded
    _, inputs = network.structured_input_signature
    shapes = [spec.shape for spec in inputs.values()]
    shape = () if len(shapes) != 1 or shapes[0].rank is None else tuple(shapes[0].as_list())
    return asked.vision_model(network, shape)
