"""What a torch model is given, and what it gives back: images of any kind as tensors, leaves of a graph, and back."""

import math

import numpy as np
import torch

from guided_backprop.arrays import Array, Model, Tensor


def leaf_of(images: torch.Tensor) -> torch.Tensor:
    """Return what a graph begins with: the same values, with a gradient."""
    leaf = images.detach()
    return (leaf.clone() if leaf.is_inference() else leaf).requires_grad_()


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether no value is NaN or infinite."""
    # One sum says it of all values, unless they add up to infinity; to look at each takes thirty times as long.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def as_tensor(images: Array) -> torch.Tensor:
    """Return images as a tensor, which shares the memory of an array where it can."""
    if isinstance(images, torch.Tensor):
        return images
    # torch shares the memory of an array only if it is writeable, in native byte order and not reversed.
    native = np.ascontiguousarray(images, images.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def placed(model: Model, images: Array) -> torch.Tensor:
    """Return images as a tensor: an array, which is nowhere, lies where the model's weights do."""
    tensor = as_tensor(images)
    if isinstance(images, torch.Tensor) or not isinstance(model, torch.nn.Module):
        return tensor
    weight = next(model.parameters(), tensor)
    return tensor.to(weight.device)


def like(gradient: torch.Tensor, images: Tensor) -> Array:
    """Return the gradient as the kind, and in the memory layout, of the images."""
    if isinstance(images, np.ndarray):
        return gradient.cpu().numpy().astype(images.dtype, copy=False)
    if gradient.stride() == images.stride():
        return gradient
    return torch.empty_like(images, requires_grad=False).copy_(gradient)
