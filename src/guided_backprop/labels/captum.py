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


def of_target(target: Target, count: int) -> Labels:
    """Return a target of Captum's as labels."""
    is_list = isinstance(target, list)
    if target is None or isinstance(target, (int, tuple)):
        return target
    if is_list and any(isinstance(row, tuple) for row in target):
        return target
    ids = as_numpy(target)
    # One number is for all images, unless it is in a list.
    if ids.size == 1 and not is_list:
        ids = np.repeat(ids, count)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise LabelError(
            "target must be a class id, one for each image, a tuple that indexes the output, or a list of tuples; "
            f"received target={target!r:.80}. Pass a class id."
        )
    return ids


def of_neurons(selector: NeuronSelector, count: int) -> Labels:
    """Return a neuron selector of Captum's as labels."""
    if callable(selector):
        return partial(_selected, selector, count)
    index = selector if isinstance(selector, tuple) else (selector,)
    return partial(_summed, index) if any(isinstance(entry, slice) for entry in index) else selector


def _selected(selector: Callable[[Tensor], Tensor], count: int, output: Tensor) -> Tensor:
    """Return what a function selects of a layer's output, ``(N,)``."""
    selected = selector(output)
    numbers = selected.reshape(-1)
    if selected.ndim and len(numbers) == len(output):
        return numbers
    # One number for all images is all of theirs together; of a part of the images it might be another one.
    is_for_all = len(numbers) == 1 and len(output) == count
    return (numbers / count).expand(count) if is_for_all else selected


def _summed(index: tuple[int | slice, ...], output: Tensor) -> Tensor:
    """Return the sum of the neurons that integers and slices select, ``(N,)``."""
    try:
        selected = output[(slice(None), *index)]
    except IndexError:
        selected = output[:0]
    if not selected.numel():
        raise LabelError(
            f"neuron_selector must index the layer's output, {tuple(output.shape[1:])}; received "
            f"neuron_selector={index}. Pass integers and slices within."
        )
    return selected.reshape(len(output), -1).sum(1)
