"""Data sets, loaders, iterables of batches and lists: read batch by batch, or put together to what a model is given."""

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from guided_backprop.arrays import Images, Inputs, Labels, NumpyArray, as_numpy
from guided_backprop.backends import framework_of, framework_of_array
from guided_backprop.backends.refusals import reason_of
from guided_backprop.errors import ImageError, LabelError, OptionError
from guided_backprop.subject import Subject

#: How many single images of a data set are explained at once, where nothing says it.
BATCH_SIZE = 32
#: A data set, a loader or another iterable: what it holds is asked, not what it is.
Data = Any


class Batch(NamedTuple):
    """Images and their labels, as ``explain`` takes them; no labels mean the class with the highest score."""

    images: Images
    labels: Labels


def given(subject: Subject, images: Images, labels: Labels) -> Batch:
    """Return images and labels for one call: data put together, and a list as the inputs or the images that it is.

    Raises:
        ImageError: data is empty, never ends, or holds something else than batches; a list can mean two things.
        OptionError: labels are given, and the data has its own.
    """
    if not is_data(images):
        return Batch(_of_list(subject, images), labels)
    batches = list(batches_of(subject, None, images))
    if not batches:
        raise ImageError("data must hold images; received none. A generator can be read once: make it anew.")
    inputs = [Inputs.of(batch.images) for batch in batches]
    if len({(one.form, _kind(one)) for one in inputs}) > 1:
        raise ImageError(
            "batches that are put together must be alike; received several shapes, dtypes or kinds. Explain them one "
            "after the other: for explanations in method.explain_batches(data)."
        )
    first, *others = inputs
    backend = subject.backend(first)
    backend.network.check_inputs(first)
    together = first.map(lambda *arrays: backend.concatenate(arrays), *others).images
    if batches[0].labels is None:
        return Batch(together, labels)
    if labels is not None:
        raise _given_twice()
    return Batch(together, np.concatenate([batch.labels for batch in batches]))


def batches_of(subject: Subject, size: int | None, data: Data, labels: Labels = None) -> Iterator[Batch]:
    """Read data batch by batch, in the arrays of the subject's framework.

    Args:
        subject: the model.
        size: how many single images are one batch.
        data: batches; or a data set of single images, of PyTorch, or of TensorFlow if it can be told.
        labels: those of every batch, if the data has none.

    Raises:
        ImageError: data is one batch, never ends, or holds something else than batches.
        OptionError: labels are given, and the data has its own.
    """
    if not is_data(data):
        raise ImageError(
            f"data must be an iterable of batches; received {type(data).__name__}. Pass a loader, or a generator, as "
            "(images[start : start + 32] for start in range(0, len(images), 32)); explain(images) takes all at once."
        )
    return _read(subject, data, labels, size or BATCH_SIZE)


def is_data(images: Images) -> bool:
    """Tell whether this holds batches, or single images, and is none of them itself."""
    if isinstance(images, list):
        return bool(images) and all(isinstance(pair, tuple) for pair in images)
    # An array first: to ask whether it is a mapping, or a path, takes longer.
    if hasattr(images, "shape") or isinstance(images, (tuple, Mapping, Inputs, str, bytes, os.PathLike)):
        return False
    return hasattr(images, "__iter__") or _is_sequence(images)


def _read(subject: Subject, data: Data, labels: Labels, size: int) -> Iterator[Batch]:
    for batch in map(_batch, _batches(subject, data, size)):
        if batch.labels is not None and labels is not None:
            raise _given_twice()
        inputs = Inputs.of(_of_list(subject, batch.images))
        for array in inputs.arrays:
            if not hasattr(array, "shape"):
                raise ImageError(
                    f"data must hold arrays, a batch each; received {type(array).__name__}. Preprocess images as for "
                    "the model, and batch them."
                )
        framework = framework_of(subject.model, *inputs.arrays)
        # Keras reads the data of any framework, whatever it runs on.
        images = inputs.map(lambda array, own=framework: array if _is_of(array, own) else as_numpy(array)).images
        yield Batch(images, labels if batch.labels is None else _numbers(batch.labels))


def _batches(subject: Subject, data: Data, size: int) -> Iterator[Any]:
    """Return the batches that data holds, each with or without labels."""
    torch, tensorflow = sys.modules.get("torch"), sys.modules.get("tensorflow")
    if torch is not None and isinstance(data, torch.utils.data.Dataset):
        return _collated(data, size, torch.utils.data)
    if tensorflow is not None and isinstance(data, tensorflow.data.Dataset):
        if int(data.cardinality()) == tensorflow.data.INFINITE_CARDINALITY:
            raise ImageError("data must end; received a data set that is repeated without end. Pass data.take(10).")
        return iter(data.batch(size) if _is_of_single_images(subject, data.element_spec) else data)
    # Keras' own data sets may go round without end if they are iterated over.
    return map(data.__getitem__, range(len(data))) if _is_sequence(data) else iter(data)


def _is_of_single_images(subject: Subject, element: Any) -> bool:
    """Tell whether a TensorFlow data set was not batched, by its labels, or by how many axes the model says to want."""
    images, *labels = element if isinstance(element, tuple) and len(element) == 2 else (element,)
    if labels and getattr(getattr(labels[0], "shape", None), "rank", None) == 0:
        return True
    inputs = Inputs.of(images)
    if subject.is_optimized or framework_of(subject.model, *inputs.arrays) is None:
        return False
    wanted, ranks = subject.backend(inputs).network.input_shapes() or (), [spec.shape.rank for spec in inputs.arrays]
    return len(wanted) == len(ranks) and all(rank == len(one) - 1 for rank, one in zip(ranks, wanted, strict=True))


def _collated(data: Data, size: int, library: ModuleType) -> Iterator[Any]:
    """Yield batches of the single images of a PyTorch data set, as its own loader puts them together."""
    singles = iter(data) if isinstance(data, library.IterableDataset) else map(data.__getitem__, range(len(data)))
    while rows := list(islice(singles, size)):
        try:
            yield library.default_collate(rows)
        except (TypeError, RuntimeError) as error:
            raise ImageError(
                "images of a data set must be tensors of one shape; received "
                f"{type(error).__name__}: {reason_of(error):.200} Give the data set the model's preprocessing as its "
                "transform, or pass a DataLoader with a collate_fn."
            ) from error


def _is_sequence(data: Data) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _batch(element: Any) -> Batch:
    """Return what data holds at one place: images, alone or in front of their labels."""
    if not isinstance(element, (tuple, list)):
        return Batch(element, None)
    if len(element) not in (1, 2):
        raise ImageError(
            f"data must hold batches of images, or (images, labels); received {len(element)} parts. Say which are "
            "inputs of the model, and which labels: (((first, second), labels) for first, second, labels in data)."
        )
    images, labels = element if len(element) == 2 else (element[0], None)
    if labels is not None and not isinstance(labels, (Mapping, list, tuple)) and np.ndim(labels) == 0:
        raise ImageError(
            "data must hold batches; received single images, each with its label. Batch them: data.batch(32) in "
            "TensorFlow, DataLoader(data, batch_size=32) in PyTorch."
        )
    return Batch(images, labels)


def _numbers(labels: Any) -> NumpyArray:
    """Return the labels that come with a batch; those of Keras' data sets have an axis of one."""
    try:
        numbers = as_numpy(labels)
    except (TypeError, ValueError):
        numbers = np.array(None)
    if numbers.dtype.kind not in "iuf" or numbers.ndim == 0:
        raise LabelError(
            f"labels that come with data must be numbers; received {type(labels).__name__}. Leave them out, and pass "
            "your own: explain((images for images, _ in data), labels)."
        )
    if numbers.dtype.kind == "f" and not np.isin(numbers, (0, 1)).all():
        raise LabelError(
            "labels that come with data must be class ids, or one-hot rows; received other numbers, which may be a "
            "regression's targets or weights of the outputs. Pass the images alone, and weights as labels: "
            "explain((images for images, _ in data), weights)."
        )
    is_column = numbers.dtype.kind in "iu" and numbers.ndim == 2 and numbers.shape[1] == 1
    return numbers[:, 0] if is_column else numbers


def _of_list(subject: Subject, images: Images) -> Images:
    """Return a list of arrays as the tuple of inputs, or the batch of images, that it is for the model.

    Raises:
        ImageError: it could be both, or the images are not alike.
    """
    if not isinstance(images, list) or not images or not all(hasattr(array, "shape") for array in images):
        return images
    backend = subject.backend(tuple(images))
    counts, wanted = backend.network.input_counts(), backend.network.input_shapes()
    if counts.start > 1:
        return tuple(images)
    shapes = [tuple(array.shape) for array in images]
    received = f"a list of {len(images)} arrays of shape {', '.join(map(str, dict.fromkeys(shapes)))}"
    if wanted is not None and all(len(shape) == len(wanted[0]) for shape in shapes):
        # As long as the model's own input, so each is a batch.
        return backend.concatenate(images)
    if len(images) in counts and (len(images) > 1 or counts.stop == sys.maxsize):
        raise ImageError(
            f"a list could be several inputs or several images of this model; received {received}. Pass a tuple of "
            "inputs, or the images stacked: np.stack(images), torch.stack(images)."
        )
    if len({(type(array), shape, array.dtype) for array, shape in zip(images, shapes, strict=True)}) > 1:
        raise ImageError(
            f"images in a list must be alike; received {received}. Resize them to one size; if these are images and "
            "their labels, pass two arguments: explain(*batch)."
        )
    return backend.concatenate([array[None] for array in images])


def _kind(inputs: Inputs) -> tuple[object, ...]:
    return tuple((type(array), tuple(array.shape[1:]), array.dtype) for array in inputs.arrays)


def _is_of(array: Any, framework: str | None) -> bool:
    return isinstance(array, np.ndarray) or framework_of_array(array) in (None, framework)


def _given_twice() -> OptionError:
    return OptionError(
        "labels must come once; received labels, and data with labels. Pass the images alone: "
        "explain((images for images, _ in data), labels)."
    )
