"""Captum's targets and neuron selectors, as labels."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from guided_backprop.arrays import Labels, Tensor, as_numpy
from guided_backprop.errors import LabelError

#: What Captum calls a target: a class id, what one image's output is indexed by, or one of these for each image.
Target = int | tuple[int, ...] | Sequence[int] | Sequence[tuple[int, ...]] | Tensor | None
#: What Captum calls a neuron selector: what the layer's output for one image is indexed by, or a function of all of it.
NeuronSelector = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]


def of_target(target: Target) -> Labels:
    """Return a target of Captum's as labels.

    Raises:
        LabelError: it is none.
    """
    if target is None:
        return None
    if isinstance(target, (int, tuple)):
        return _entry("target", target)
    is_list = isinstance(target, list)
    if is_list and any(isinstance(row, tuple) for row in target):
        return target
    ids = as_numpy(target)
    # One number is for all images, unless it is in a list.
    is_for_all = ids.size == 1 and not is_list
    if ids.dtype.kind not in "iu" or not (is_for_all or ids.ndim == 1):
        raise LabelError(
            "target must be a class id, one for each image, a tuple that indexes the output, or a list of tuples; "
            f"received target={target!r:.80}. Pass a class id."
        )
    return _entry("target", int(ids.item())) if is_for_all else ids


def of_neurons(selector: NeuronSelector, count: int) -> Labels:
    """Return a neuron selector of Captum's as labels.

    Raises:
        LabelError: it is none.
    """
    return partial(_selected, selector, count) if callable(selector) else _entry("neuron_selector", selector)


def _entry(name: str, given: int | tuple[int | slice, ...]) -> Labels:
    """Return what indexes the output for one image, as Python does, as a label."""
    index = given if isinstance(given, tuple) else (given,)
    # As an index, True and None add an axis.
    if any(isinstance(entry, bool) or not isinstance(entry, (int, np.integer, slice)) for entry in index):
        raise LabelError(f"{name} must be integers or slices; received {name}={given!r:.80}. Pass an integer.")
    return partial(_summed, name, index)


def _selected(selector: Callable[[Tensor], Tensor], count: int, output: Tensor) -> Tensor:
    """Return what a function selects of a layer's output, ``(N,)``."""
    selected = selector(output)
    numbers = selected.reshape(-1)
    if selected.ndim and len(numbers) == len(output):
        return numbers
    # One number for all images is all of theirs together. Of a part of the images it might be another one: it has not
    # their number then, and is refused.
    return (numbers / count).expand(count) if len(numbers) == 1 else selected


def _summed(name: str, index: tuple[int | slice, ...], output: Tensor) -> Tensor:
    """Return the sum of what is indexed in an output, ``(N,)``."""
    try:
        selected = output[(slice(None), *index)]
    except IndexError:
        selected = output[:0]
    if not selected.numel():
        raise LabelError(
            f"{name} must index the output for one image, {tuple(output.shape[1:])}; received {name}={index}. "
            "Pass integers and slices within."
        )
    return selected.reshape(len(output), -1).sum(1)
