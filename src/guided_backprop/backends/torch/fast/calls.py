"""The calls that have another form in an optimised model: what each function was called with, by name."""

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Final, NamedTuple, Self

import torch
from torch.nn import functional

from guided_backprop.backends.torch.fast.once import are_constant
from guided_backprop.backends.torch.own import Arguments, Function, Named

#: A width for all axes, or for each.
Width = int | Sequence[int]
#: The widths of padding at both sides of both axes.
Sides = tuple[tuple[int, int], tuple[int, int]]

_AXES: Final[dict[Function, int]] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
#: Every function that :meth:`Convolution.of` may take.
CONVOLUTIONS: Final = _AXES.keys()

_UNCAPPED: Final[Named] = {"min_val": 0.0, "max_val": None, "inplace": False}
# Each function that may be a ReLU: its parameters in their order, and the bounds that it has unless they are given.
_BOUNDS: Final[dict[Function, tuple[tuple[str, ...], Named]]] = {
    **dict.fromkeys((functional.relu, torch.relu, torch.Tensor.relu), (("input", "inplace"), _UNCAPPED)),
    **dict.fromkeys((torch.relu_, torch.Tensor.relu_), (("input",), _UNCAPPED | {"inplace": True})),
    functional.relu6: (("input", "inplace"), _UNCAPPED | {"max_val": 6.0}),
    functional.hardtanh: (
        ("input", "min_val", "max_val", "inplace"),
        {"min_val": -1.0, "max_val": 1.0, "inplace": False},
    ),
}
#: Every function that :meth:`Rectification.of` may take.
RELUS: Final = _BOUNDS.keys()


class Convolution(NamedTuple):
    """A call of a convolution; its stride, padding and dilation are given for each axis."""

    function: Function
    images: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, function: Function, arguments: Arguments, named: Named) -> Self | None:
        """Return the call; None if it is none of a convolution, or pads by a word."""
        return cls._bound(function, *arguments, **named) if function in _AXES else None

    @classmethod
    def _bound(  # noqa: PLR0917 - as torch has them
        cls,
        function: Function,
        input: torch.Tensor,  # noqa: A002 - torch's name
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Width = 1,
        padding: Width | str = 0,
        dilation: Width = 1,
        groups: int = 1,
    ) -> Self | None:
        if isinstance(padding, str):
            return None
        axes = _AXES[function]
        stride, padding, dilation = _along(axes, stride), _along(axes, padding), _along(axes, dilation)
        return cls(function, input, weight, bias, stride, padding, dilation, groups)

    def run(self) -> torch.Tensor:
        """Return what the function itself returns."""
        result: torch.Tensor = self.function(*self[1:])
        return result

    def weighing(self, weight: torch.Tensor, bias: torch.Tensor | None) -> "Convolution":
        """Return a call with these weights."""
        return Convolution(self.function, self.images, weight, bias, *self[4:])

    def padding_by(self, images: torch.Tensor, sides: Sides) -> tuple[Self, tuple[int, int, int, int]]:
        """Return a call that pads these images itself, and the zeros around its kernel.

        A convolution pads opposite sides alike. Where one is to be wider, both are, and a kernel that is wider by as
        many zeros leaves out what is too much.
        """
        widths = [(pad + low, pad + high) for pad, (low, high) in zip(self.padding, sides, strict=True)]
        (top, bottom), (left, right) = widths
        taps = max(0, right - left), max(0, left - right), max(0, bottom - top), max(0, top - bottom)
        if any(taps) and self.dilation != (1, 1):
            (top, bottom), (left, right) = sides
            return self._replace(images=functional.pad(images, (left, right, top, bottom))), (0, 0, 0, 0)
        return self._replace(images=images, padding=tuple(map(max, widths))), taps


def _along(axes: int, given: Width) -> tuple[int, ...]:
    """Return a width for each axis."""
    if isinstance(given, int):
        return (given,) * axes
    return tuple(given) * axes if len(given) == 1 else tuple(given)


class Norm(NamedTuple):
    """The arguments of one call of batch-norm, but for its input."""

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def is_scaling(self) -> bool:
        """Whether it is one factor and one summand for each channel, whatever the batch is."""
        return not self.training and self.running_mean is not None and self.running_var is not None

    @property
    def is_constant(self) -> bool:
        """Whether these factors do not depend on the images."""
        return self.is_scaling and are_constant(*self.tensors)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Statistics, weight and bias."""
        return self.running_mean, self.running_var, self.weight, self.bias

    def is_same(self, other: "Norm") -> bool:
        """Tell whether another call has the same arguments, the same tensors being the same objects."""
        return self.eps == other.eps and all(map(is_, self.tensors, other.tensors))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Return what batch-norm returns."""
        return functional.batch_norm(x, *self)

    def scale(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the factor of each channel, in this dtype or a wider one; for one that is only scaling."""
        assert self.running_var is not None
        scale = torch.rsqrt(self.running_var.to(torch.promote_types(dtype, torch.float32)) + self.eps)
        return scale if self.weight is None else scale * self.weight

    def folded(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of a convolution that does the same as one followed by this, if it is only scaling."""
        assert self.running_mean is not None
        scale = self.scale(weight.dtype)
        shift = -self.running_mean * scale if bias is None else (bias - self.running_mean) * scale
        shift = shift if self.bias is None else shift + self.bias
        scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        return scaled.to(weight.dtype), shift.to(weight.dtype)


class Normalisation(NamedTuple):
    """A call of batch-norm."""

    x: torch.Tensor
    norm: Norm

    @classmethod
    def of(cls, function: Function, arguments: Arguments, named: Named) -> Self | None:
        """Return the call; None if it is none of batch-norm."""
        if function is not functional.batch_norm:
            return None
        if arguments:
            return cls(arguments[0], Norm(*arguments[1:], **named))
        rest = dict(named)
        return cls(rest.pop("input"), Norm(**rest))


class Padding(NamedTuple):
    """A call that puts zeros around pictures."""

    images: torch.Tensor
    sides: Sides

    @classmethod
    def of(cls, function: Function, arguments: Arguments, named: Named) -> Self | None:
        """Return the call; None if it is none, or one that pads with something else, or other axes."""
        if function is not functional.pad:
            return None
        options: Named = {"mode": "constant", "value": None}
        options |= dict(zip(("input", "pad", "mode", "value"), arguments, strict=False)) | named
        images, widths = options["input"], tuple(options["pad"])
        is_zero = options["mode"] == "constant" and not options["value"]
        if not is_zero or images.ndim != 4 or len(widths) != 4 or min(widths) < 0:
            return None
        left, right, top, bottom = widths
        return cls(images, ((top, bottom), (left, right)))


class Rectification(NamedTuple):
    """A call of a ReLU."""

    x: torch.Tensor
    cap: float | None
    is_in_place: bool

    @classmethod
    def of(cls, function: Function, arguments: Arguments, named: Named) -> Self | None:
        """Return the call; None if it is none of a ReLU, or one that can't be gated."""
        if function not in _BOUNDS:
            return None
        names, bounds = _BOUNDS[function]
        given = bounds | dict(zip(names, arguments, strict=False)) | named
        x, cap = given["input"], given["max_val"]
        # In a narrow dtype the result of a cap may be less than the cap, and look open.
        is_sharp = cap is None or (cap > 0 and x.dtype in (torch.float32, torch.float64))
        if given["min_val"] != 0 or not is_sharp or not is_plain(x):
            return None
        return cls(x, None if cap is None else float(cap), bool(given["inplace"]))


def is_plain(x: torch.Tensor) -> bool:
    """Tell whether a tensor is one that a function of ours can take."""
    return type(x) is torch.Tensor and x.is_floating_point() and not x.is_leaf and not x._is_view()


def tensors_of(nested: object) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in nested lists, tuples and dictionaries."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from tensors_of(list(nested.values()))
    elif isinstance(nested, (list, tuple)):
        for part in nested:
            yield from tensors_of(part)
