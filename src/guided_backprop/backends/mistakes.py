"""First mistakes: one table of what is no model, no images and no output, and what to pass instead.

And why a model refused its images: their shape beside the one that it wants. All this is looked at once something is
known to be wrong, so it can make an error clearer, and can refuse nothing that is right.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from guided_backprop.arrays import Array, Inputs, Model, Outputs
from guided_backprop.errors import ImageError, ModelError

#: The shape of a batch, with None for a free size.
Shape = Sequence[int | None]


class Mistake(NamedTuple):
    """One row of the table.

    Attributes:
        is_it: tells it.
        what: what was received, in words.
        advice: the one thing to do.
    """

    is_it: Callable[[Any], bool]
    what: str
    advice: str


def _is_of(kind: type, module: str) -> bool:
    return any(base.__module__.startswith(module) for base in kind.__mro__)


def _named(name: str, module: str) -> Callable[[Any], bool]:
    return lambda thing: type(thing).__name__ == name and _is_of(type(thing), module)


def _has(*names: str) -> Callable[[Any], bool]:
    # What can be called may be a model, and may say that it has whatever it is asked for.
    return lambda thing: not callable(thing) and all(hasattr(thing, name) for name in names)


def _is_detection(output: object) -> bool:
    return isinstance(output, Mapping) and "boxes" in output


_DETECTION = "Explain a Box of lambda images: stack_detections(model(images), classes, count)."
_ONNX = "Make a PyTorch module of it, as onnx2torch.convert(path) does, and pass that."
_MODELS = (
    Mistake(
        lambda model: isinstance(model, (str, os.PathLike)) and str(model).endswith(".onnx"), "an ONNX file", _ONNX
    ),
    Mistake(_named("ModelProto", "onnx"), "an ONNX model", _ONNX),
    Mistake(_named("InferenceSession", "onnxruntime"), "an engine's session, which has no gradients", _ONNX),
    Mistake(lambda model: isinstance(model, (str, os.PathLike)), "a path", "Load the model: load_model(path)."),
    Mistake(lambda model: isinstance(model, type), "a class", "Pass an instance of it."),
    Mistake(
        _has("signatures"),
        "a SavedModel",
        'Pass one of its signatures: loaded.signatures["serving_default"].',
    ),
    Mistake(
        lambda model: _is_of(type(model), "transformers.pipelines"),
        "a pipeline, which takes pictures or words",
        "Pass pipeline.model, and to explain what its image_processor makes of the pictures.",
    ),
    Mistake(
        lambda model: _is_of(type(model), "flax.linen") and getattr(model, "scope", None) is None,
        "a linen module without its parameters",
        "Pass functools.partial(model.apply, variables).",
    ),
    Mistake(
        _has("apply_fn", "params"),
        "a training state",
        'Pass functools.partial(state.apply_fn, {"params": state.params}).',
    ),
    Mistake(
        _has("init", "apply"),
        "a transformed function without its parameters",
        "Pass lambda images: model.apply(parameters, None, images), or without None after without_apply_rng.",
    ),
    Mistake(_named("ExportedProgram", "torch.export"), "an exported program", "Pass exported.module()."),
    Mistake(
        lambda model: isinstance(model, Mapping) and not callable(model),
        "a dictionary",
        "Load its weights into a model, and pass the model.",
    ),
    Mistake(
        _has("model"),
        "an object that holds a model",
        "Pass its model: thing.model.",
    ),
    Mistake(
        _has("predict"),
        "a model without gradients",
        "Pass a network of PyTorch, TensorFlow or JAX.",
    ),
)
_IMAGES = (
    Mistake(lambda images: _is_of(type(images), "PIL"), "", "Preprocess it as for the model: preprocess(image)[None]."),
    Mistake(
        lambda images: isinstance(images, (str, os.PathLike)),
        "",
        "Open it and preprocess it as for the model: preprocess(Image.open(path))[None].",
    ),
    Mistake(lambda images: hasattr(images, "to_numpy"), "", 'Pass images.to_numpy("float32").'),
    Mistake(
        lambda images: isinstance(images, list) and bool(images) and isinstance(images[0], (list, int, float)),
        "",
        'Pass np.array(images, "float32").',
    ),
    Mistake(
        lambda images: isinstance(images, list) and bool(images) and not hasattr(images[0], "shape"),
        "",
        "Make an array of each, as for the model, and stack them to one batch.",
    ),
    Mistake(
        lambda images: hasattr(images, "__array__") and len(getattr(images, "shape", ())) > 0,
        "",
        "Pass np.asarray(images).",
    ),
)
_OUTPUTS = (
    Mistake(_is_detection, "a detector's dictionary of boxes", _DETECTION),
    Mistake(
        lambda output: isinstance(output, Mapping),
        "a dictionary",
        "Wrap the model in a function that takes what is explained out of it.",
    ),
    Mistake(
        lambda output: isinstance(output, (list, tuple)) and bool(output) and _is_detection(output[0]),
        "a detector's dictionaries of boxes",
        _DETECTION,
    ),
    Mistake(
        lambda output: isinstance(output, (list, tuple)),
        "several outputs in one",
        "Wrap the model in a function that returns one of them.",
    ),
    Mistake(
        lambda output: isinstance(output, np.ndarray),
        "NumPy's, which has no gradient",
        "Compute it with the framework's own functions.",
    ),
    Mistake(
        lambda output: hasattr(output, "shape") and len(output.shape) == 0,
        "one number for all images, as a loss is",
        "Pass the model without its loss; labels say what of its output is explained.",
    ),
    Mistake(
        lambda output: re.search(r"\b(u?int|bool)", _dtype(output)) is not None,
        "integers, which have no gradient",
        "Pass a model that returns scores, without argmax() or rounding.",
    ),
)


def refuse_no_model(model: Model) -> None:
    """Raise ModelError for what cannot be asked for an output, or only in another form."""
    for is_it, what, advice in _MODELS:
        if is_it(model):
            raise _no_model(f"{what}, {_brief(model)}", advice)
    if not callable(model):
        raise _no_model(f"model={_brief(model)}", "Pass the model itself.")


def no_array(images: object, kinds: str) -> ImageError:
    """Return the error for images that are no array of the kinds that a framework takes."""
    advice = next((row.advice for row in _IMAGES if row.is_it(images)), "Stack the images to one batch.")
    return ImageError(f"images must be {kinds} of shape (N, ...); received images={type(images).__name__}. {advice}")


def no_rows(count: int | str, output: Outputs, array: str, why: str | None = None) -> ModelError:
    """Return the error for an output that is not one array with a row per image.

    Args:
        count: how many images there are.
        output: what the model returned.
        array: what the framework calls an array.
        why: what is wrong with the images, if anything is.
    """
    what, advice = "", "Wrap the model in a function that returns it."
    row = next((row for row in _OUTPUTS if row.is_it(output)), None)
    if row is not None:
        what, advice = f", {row.what}", row.advice
    elif count == 1 and len(getattr(output, "shape", ())) > 0:
        what = ", without an axis of images"
        advice = "Where the model squeezes it away, name the axes: squeeze(-1), not squeeze()."
    return ModelError(
        f"model must return a real {array} with a row per image, ({count}, ...); "
        f"received output={described(output)}{what}. {why or advice}"
    )


def described(value: object) -> str:
    """Return how an error names what a model gave: an array by its shape and dtype."""
    if not hasattr(value, "shape"):
        names = ", ".join(map(repr, value)) if isinstance(value, Mapping) else ""
        return f"{type(value).__name__} of {names}" if names else type(value).__name__
    shape = value.shape
    return f"{tuple(shape) if isinstance(shape, tuple) else shape} {_dtype(value)}"


def model_failed(error: Exception, arrays: Sequence[Array], what: str, reason: str, advice: str) -> ModelError:
    """Return the error for a model that failed on its images.

    Args:
        error: what it raised.
        arrays: what it was given.
        what: what a model must do with images.
        reason: what the error says.
        advice: the one thing to do.
    """
    received = "; ".join(_received(array) for array in arrays)
    return ModelError(
        f"model must {what} the images; received images of shape {received} and {type(error).__name__}: "
        f"{reason.removeprefix(f'{type(error).__name__}: ').rstrip('. ')}. {advice}"
    )


def wrong_number(inputs: Inputs, counts: range, names: Sequence[str]) -> str | None:
    """Return what to pass instead of too few or too many inputs, or of inputs by other names."""
    if not isinstance(inputs.form, str):
        unknown = [name for name in inputs.form if names and name not in names]
        return f"Its inputs are called {', '.join(names)}, and none {unknown[0]!r}." if unknown else None
    if len(inputs.arrays) in counts:
        return None
    wanted = counts.start if len(inputs.arrays) < counts.start else counts.stop - 1
    called = f" ({', '.join(names[:wanted])})" if names else ""
    how = "Pass a tuple of them." if wanted > 1 else "Pass one array; labels are another argument of explain."
    return f"The model takes {wanted} input{'s' if wanted > 1 else ''}{called}. {how}"


def wrong_shape(array: Array, wanted: Shape, channel_axis: int, owner: str = "The model") -> str | None:
    """Return what is wrong with the shape of one input, and what to write; None if it is what is wanted.

    Args:
        array: the input, as the framework's own.
        wanted: the shape of a batch.
        channel_axis: where channels are in that.
        owner: what wants it.
    """
    shape = tuple(array.shape)
    is_rows = len(wanted) == 2 and len(shape) > 2 and shape[-1] == wanted[1]
    if _fits(shape, wanted) or is_rows:
        return None
    takes = f"{owner} takes {_text(wanted)}."
    if _fits((None, *shape), wanted):
        return f"{takes} One image is a batch of one: pass images[None]."
    for batch in ("", "[None]"):
        order = _order(shape if not batch else (None, *shape), wanted, channel_axis)
        if order is not None:
            return f"{takes} Its channels are on another axis: pass {_transposed(array, batch, order)}."
    return f"{takes} {_resized(shape, wanted, channel_axis)}"


def _order(shape: Shape, wanted: Shape, channel_axis: int) -> list[int] | None:
    """Return the order of axes that brings channels from the end to the front, or back, if the shape then fits."""
    if len(shape) != len(wanted) or len(wanted) < 3:
        return None
    order = list(range(len(wanted)))
    order.insert(channel_axis, order.pop(1 if channel_axis != 1 else -1))
    return order if _fits([shape[axis] for axis in order], wanted) else None


def _resized(shape: Shape, wanted: Shape, channel_axis: int) -> str:
    """Return what to do with images of other sizes, or of another number of axes."""
    missing = len(wanted) - len(shape)
    if missing == 1 and len(wanted) > 2 and wanted[channel_axis] == 1:
        where = "images[:, None]" if channel_axis == 1 else "images[..., None]"
        return f"Images of one channel have an axis for it: pass {where}."
    if missing < 0 and len(wanted) == 2 and math.prod(size or 0 for size in shape[1:]) == wanted[1]:
        return "Pass images.reshape(len(images), -1)."
    if missing:
        return f"The images have {len(shape)} axes: reshape them."
    if len(wanted) == 2:
        return f"Pass rows of {wanted[1]} numbers."
    is_of_channels = wanted[channel_axis] not in (None, shape[channel_axis])
    return f"Convert the images, whose channels are {shape[channel_axis]}." if is_of_channels else "Resize the images."


def first_layer(layers: Mapping[str, Any], *, is_channels_last: bool) -> tuple[str, Shape, int] | None:
    """Return the name of a model's first layer with weights, the shape that it takes, and its axis of channels.

    Most models begin with the layer that was made first; where that is not so, what is said of it is still true.
    """
    for name, layer in layers.items():
        channels = getattr(layer, "in_channels", getattr(layer, "in_features", None))
        if not isinstance(channels, int):
            continue
        size = getattr(layer, "kernel_size", None)
        axes = len(size) if isinstance(size, (tuple, list)) else 0
        free: list[int | None] = [None] * axes
        shape = [None, *free, channels] if is_channels_last else [None, channels, *free]
        return name, shape, len(shape) - 1 if is_channels_last else 1
    return None


def _no_model(received: str, advice: str) -> ModelError:
    return ModelError(f"model must be a module, a layer or a function of tensors; received {received}. {advice}")


def _fits(shape: Shape, wanted: Shape) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(None in (size, want) or size == want for size, want in zip(shape, wanted, strict=True))


def _text(shape: Shape) -> str:
    sizes = ["any" if size is None else str(size) for size in shape[1:]]
    return f"(N, {', '.join(sizes)})"


def _transposed(array: Array, batch: str, order: Sequence[int]) -> str:
    axes = ", ".join(map(str, order))
    if _is_of(type(array), "tensorflow"):
        return f"tf.transpose(images{batch}, [{axes}])"
    if hasattr(array, "permute"):
        return f"images{batch}.permute({axes}), or of a NumPy array images{batch}.transpose({axes})"
    return f"images{batch}.transpose({axes})"


def _received(array: Array) -> str:
    """Return an array's shape and dtype, and where it is if that has to be the model's place."""
    place = f", {array.device}" if hasattr(array, "device") and _is_of(type(array), "torch") else ""
    return f"{tuple(array.shape)}, {_dtype(array)}{place}"


def _dtype(value: object) -> str:
    dtype = getattr(value, "dtype", "")
    return str(getattr(dtype, "name", dtype))


def _brief(thing: object) -> str:
    if isinstance(thing, type):
        return thing.__name__
    return repr(thing)[:80] if isinstance(thing, (str, os.PathLike, int, float)) else type(thing).__name__
