"""Where a tensor's numbers lie, and how often they were changed there: views share what is noted of their memory."""

import torch

#: Where a view lies in its storage.
Place = tuple[int, tuple[int, ...], tuple[int, ...]]


def place_of(tensor: torch.Tensor) -> Place:
    """Return where a view lies in its storage."""
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def memory_of(tensor: torch.Tensor) -> tuple[int, bool]:
    """Return which memory a tensor lies in, and whether there are numbers: their bits are noted apart from them."""
    return tensor.untyped_storage()._cdata, is_of_numbers(tensor)


def shares_memory(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Tell whether a result is a view, of numbers where these are numbers: their bits are something else."""
    return result.layout is torch.strided is tensor.layout and memory_of(result) == memory_of(tensor)


def is_of_numbers(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds numbers that a gradient may pass."""
    return tensor.is_floating_point() or tensor.is_complex()


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place; of what is made in inference mode nobody counts it."""
    return 0 if tensor.is_inference() else int(tensor._version)
