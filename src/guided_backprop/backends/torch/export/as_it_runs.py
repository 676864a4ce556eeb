"""What a model's graph is made of while it is traced: the nodes that a run of the model has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from guided_backprop.backends.torch.export.asking import Asking
from guided_backprop.backends.torch.own import Arguments, Function, Named
from guided_backprop.errors import ModelError


class AsItRuns(TorchFunctionMode):
    """Runs in C++ what torch would run in Python for a trace's sake: there it is made of other nodes.

    Args:
        asking: what is asked of the number of images; what asks for one number is refused by name.
    """

    def __init__(self, asking: Asking) -> None:
        super().__init__()
        self._asking = asking

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        name = getattr(func, "__name__", "")
        if name in _RECURRENT:
            raise ModelError(
                f"model must have no recurrent layer to be exported; received {name}, which reads the number of "
                "images. Write it by its cell, step by step."
            )
        result = _run(name, func, args, kwargs or {})
        self._asking.refuse(name)
        return result


def _run(name: str, func: Function, args: Arguments, kwargs: Named) -> object:
    if name == "__getitem__" and isinstance(args[1], tuple) and all(map(_is_index, args[1])):
        return _indexed(args[0], args[1])
    if name in _IN_WORDS:
        return _IN_WORDS[name](*args, **kwargs)
    if name == "interpolate":
        func = _interpolated
    elif name not in _IN_PYTHON:
        return func(*args, **kwargs)
    with torch._C._DisablePythonDispatcher():
        return func(*args, **kwargs)


# What has two forms, beside what resizes.
_IN_PYTHON: Final = frozenset("dropout dropout_ feature_dropout alpha_dropout hardshrink softshrink".split())
_RECURRENT: Final = frozenset({"gru", "lstm", "rnn_relu", "rnn_tanh"})
_BASIC: Final = (int, slice, torch.SymInt)
_RESIZERS: Final = {"nearest-exact": "_upsample_nearest_exact", "nearest": "upsample_nearest"}


def _is_basic(part: object) -> bool:
    return part is None or part is Ellipsis or (isinstance(part, _BASIC) and not isinstance(part, bool))


def _is_index(part: object) -> bool:
    return _is_basic(part) or _is_list(part)


def _is_list(part: object) -> bool:
    """Tell whether a part lists places along one axis."""
    if isinstance(part, torch.Tensor):
        return part.ndim == 1 or (part.ndim > 1 and part.dtype != torch.bool)
    return isinstance(part, list) and bool(part) and all(isinstance(one, int) for one in part)


def _indexed(x: torch.Tensor, index: Sequence[Any]) -> torch.Tensor:
    """Do as C++ does with values: to take all of an axis is no operation. Of a size that is free it makes one."""
    rest = x.ndim - sum(part is not None and part is not Ellipsis for part in index)
    y, axis = x, 0
    listed: list[Any] = []
    for part in index:
        if isinstance(part, int | torch.SymInt):
            y = y.select(axis, part)
            continue
        if part is None:
            y = y.unsqueeze(axis)
        elif _is_list(part):
            places = part if isinstance(part, torch.Tensor) else torch.tensor(part, device=x.device)
            listed += [*[None] * (axis - len(listed)), places]
        elif part is not Ellipsis and not _is_all(part, y.shape[axis]):
            y = torch.ops.aten.slice.Tensor(y, axis, part.start, part.stop, 1 if part.step is None else part.step)
        axis += rest if part is Ellipsis else 1
    if listed:
        y = torch.ops.aten.index.Tensor(y, listed)
    return torch.ops.aten.alias.default(x) if y is x else y


def _is_all(part: slice, size: Any) -> bool:
    """Tell whether a slice takes all of an axis, as far as that is known."""
    begins = part.start is None or (isinstance(part.start, int) and part.start == 0)
    ends = part.stop is None or statically_known_true(size <= part.stop)
    return begins and ends and part.step in (None, 1)


def _interpolated(  # noqa: PLR0917 - as torch has them
    x: torch.Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> torch.Tensor:
    """Do as ``interpolate``, and work out the size here: C++ would read the number of images to do so."""
    if mode == "area":
        return F.interpolate(x, size, scale_factor, mode)
    axes = x.ndim - 2
    factors = [scale_factor] * axes if isinstance(scale_factor, int | float) else scale_factor
    size = [size] * axes if isinstance(size, int) else size
    if size is None:
        size = [_scaled(length, factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    factors = [None] * axes if factors is None or recompute_scale_factor else [float(factor) for factor in factors]
    corners = () if mode in _RESIZERS else (bool(align_corners),)
    name = f"{_RESIZERS.get(mode, f'upsample_{mode}')}{axes}d"
    resized: torch.Tensor = getattr(torch.ops.aten, f"_{name}_aa" if antialias else name).default(
        x, size, *corners, *factors
    )
    return resized


def _scaled(length: Any, factor: float) -> Any:
    """Return a size times a factor: a whole one leaves a size that varies one of whole numbers."""
    return length * int(factor) if float(factor).is_integer() else int(length * factor)


# What C++ does by sizes that have to be numbers, by the same operations.


def _kron(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as it is called
    axes = max(input.ndim, other.ndim)
    sizes = [[1] * (axes - one.ndim) + list(one.shape) for one in (input, other)]
    pairs = list(zip(*sizes, strict=True))
    spread = input.reshape([size for one, _ in pairs for size in (one, 1)])
    product = spread * other.reshape([size for _, one in pairs for size in (1, one)])
    joined: torch.Tensor = torch.ops.aten._unsafe_view.default(product, [one * size for one, size in pairs])
    return joined


def _take_along_dim(input: torch.Tensor, indices: torch.Tensor, dim: int | None = None) -> torch.Tensor:  # noqa: A002
    if dim is None:
        return input.reshape(-1).gather(0, indices.reshape(-1))
    dim %= input.ndim
    pairs = enumerate(zip(input.shape, indices.shape, strict=True))
    sizes = [size if axis == dim or (isinstance(many, int) and many == 1) else many for axis, (many, size) in pairs]
    # Along the axis each has its own size.
    around = [*sizes[:dim], input.shape[dim], *sizes[dim + 1 :]]
    return input.expand(around).gather(dim, indices.expand(sizes))


_IN_WORDS: Final[Mapping[str, Callable[..., torch.Tensor]]] = {"kron": _kron, "take_along_dim": _take_along_dim}
