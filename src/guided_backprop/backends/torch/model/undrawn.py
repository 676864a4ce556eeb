"""A run of a model of which no value counts: what draws random numbers gives zeros, and no generator is touched."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.utils._pytree import tree_map_only

from guided_backprop.backends.torch.dispatch import Dispatched
from guided_backprop.backends.torch.own import Arguments, Function, Named


class Undrawn(Dispatched):
    """Gives zeros instead of drawing, in place too.

    That is seen of PyTorch's operations alone; what NumPy or Python draw is drawn.
    """

    def __init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Function, types: Sequence[type], args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        """Run the operation, unless it draws."""
        operation: torch._ops.OpOverload = func  # type: ignore[assignment]
        named, arguments = dict(kwargs or {}), operation._schema.arguments
        usual = {argument.name: argument.default_value for argument in arguments}
        given = {**usual, **dict(zip(usual, args, strict=False)), **named}
        if torch.Tag.nondeterministic_seeded not in operation.tags or not _draws(given):
            return func(*args, **named)
        written = [argument.name for argument in arguments if argument.alias_info is not None]
        if written:
            for name in written:
                given[name].zero_()
            return given[written[0]]
        # Of the shapes that it would have; a generator is of a device.
        device = next(
            (value.device for value in given.values() if isinstance(value, torch.Tensor)), given.get("device")
        )
        instead = {name: value for name, value in (("device", "meta"), ("generator", None)) if name in usual}
        on_meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, named))
        empty = func(*on_meta[0], **{**on_meta[1], **instead})
        zeros: object = tree_map_only(torch.Tensor, partial(torch.zeros_like, device=device or "cpu"), empty)
        return zeros


def _draws(given: Named) -> bool:
    """Tell whether an operation that may draw does: dropout of nothing, and dropout that is off, do not."""
    is_on = given.get("train", given.get("training", True))
    return bool(is_on) and given.get("dropout_p", given.get("p", 1)) != 0
