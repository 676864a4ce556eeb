"""torchvision's operators in Python: PyPI's package imports beside a PyTorch of another build once they are there.

Its compiled ones fit the PyTorch alone that they were built with. To be imported before torchvision, and before what
imports it. The operators' derivatives are those that torchvision registers itself, as with its own build.
"""

import sys
from collections.abc import Sequence
from types import ModuleType

import torch

_ALIGN = "float scale, SymInt height, SymInt width, {}int ratio, bool aligned) -> Tensor"
_SIZES = "SymInt count, SymInt channels, SymInt rows, SymInt columns, "
_OPERATORS = [
    "nms(Tensor boxes, Tensor scores, float threshold) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, {_ALIGN.format('')}",
    f"_roi_align_backward(Tensor gradient, Tensor rois, {_ALIGN.format(_SIZES)}",
]
# What no test calls: torchvision asks only whether it is there.
_NAMED = "qnms qroi_align roi_pool _roi_pool_backward ps_roi_align _ps_roi_align_backward ps_roi_pool"
_NAMED += " _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which boxes are left, the surest first, without those that overlap a surer one by more."""
    left, kept = scores.argsort(descending=True, stable=True), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        low, high = torch.maximum(boxes[left, :2], boxes[first, :2]), torch.minimum(boxes[left, 2:], boxes[first, 2:])
        both = (high - low).clamp(min=0).prod(1)
        left = left[~(both / (areas[left] + areas[first] - both) > threshold)]
    return torch.stack(kept) if kept else left


def shares(low: torch.Tensor, high: torch.Tensor, bins: int, size: int, ratio: int, *, aligned: bool) -> torch.Tensor:
    """Return how much each pixel along an axis counts in each bin of each region: ``(K, bins, size)``."""
    length = high - low if aligned else (high - low).clamp(min=1)
    at = low[:, None] + length[:, None] * (torch.arange(bins * ratio) + 0.5).to(low) / (bins * ratio)
    is_inside = (at >= -1) & (at <= size)
    weights = (1 - (at.clamp(0, size - 1)[..., None] - torch.arange(size)).abs()).clamp(min=0) * is_inside[..., None]
    return weights.reshape(len(low), bins, ratio, size).mean(2)


def _of_both(
    rois: torch.Tensor, scale: float, bins: Sequence[int], sizes: Sequence[int], *how: int
) -> list[torch.Tensor]:
    ratio, aligned = how
    left, top, right, bottom = (rois[:, 1:] * scale - 0.5 * aligned).unbind(1)
    rows = shares(top, bottom, bins[0], sizes[0], ratio, aligned=bool(aligned))
    return [rows, shares(left, right, bins[1], sizes[1], ratio, aligned=bool(aligned))]


def roi_align(features: torch.Tensor, rois: torch.Tensor, scale: float, *sizes: int) -> torch.Tensor:
    """Average bilinear samples in each bin of each region: it is linear in the features, axis by axis."""
    along = _of_both(rois, scale, sizes[:2], features.shape[2:], *sizes[2:])
    return torch.einsum("kih,kjw,kchw->kcij", *along, features[rois[:, 0].long()])


def roi_align_backward(gradient: torch.Tensor, rois: torch.Tensor, scale: float, *sizes: int) -> torch.Tensor:
    """Give each pixel what the bins that it counts in have."""
    along = _of_both(rois, scale, sizes[:2], sizes[4:6], *sizes[6:])
    per_region = torch.einsum("kih,kjw,kcij->kchw", *along, gradient)
    return per_region.new_zeros(sizes[2:6]).index_add(0, rois[:, 0].long(), per_region)


def _register() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        library.define(schema)
    for name in _NAMED.split():
        library.define(f"{name}(Tensor input) -> Tensor")
    for name, kernel in {"nms": nms, "roi_align": roi_align, "_roi_align_backward": roi_align_backward}.items():
        library.impl(name, kernel, "CPU")
    # What is left of an import that failed, as PyTorch's compiler tries one, would not be run again.
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    extension = ModuleType("torchvision.extension")
    extension.__dict__.update(
        _has_ops=lambda: True,
        _assert_has_ops=lambda: None,
        _load_library=lambda _name: False,
        _check_cuda_version=lambda: -1,
    )
    sys.modules["torchvision.extension"] = extension
    return library


# They are there as long as it is.
LIBRARY = None if "torchvision" in sys.modules else _register()
