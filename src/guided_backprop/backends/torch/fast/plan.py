"""How one model is run faster: what is folded, and how images lie in memory. Learned from one run on an example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from guided_backprop.arrays import Inputs, Outputs
from guided_backprop.backends.torch.fast.calls import tensors_of
from guided_backprop.backends.torch.fast.fold import Folded, Folds, Recorder
from guided_backprop.backends.torch.fast.once import Unlike

#: What runs a model.
Forward = Callable[[Inputs], Outputs]

#: From what runs a model to its gradients on some images; None if it has none.
Slope = Callable[[Callable[[Forward, Inputs], Outputs]], Sequence[torch.Tensor] | None]

# How far the outputs of a plan may be from the model's own, as a share of the largest; more is no rounding.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
# The same of gradients, as a share of their norm: where rounding opens a gate or closes it, a part of them changes.
_FLIPS = {torch.float64: 1e-6, torch.float32: 0.05}


@dataclass(frozen=True)
class Plan:
    """How one model is run faster.

    Attributes:
        folds: what is folded.
        is_channels_last: whether pictures lie in memory channels last, whatever their axes are.
    """

    folds: Folds
    is_channels_last: bool

    @classmethod
    def of(cls, forward: Forward, inputs: Inputs, slope: Slope, *, gates: bool) -> "Plan":
        """Return what pays and changes nothing but rounding, tried on these images; and whether ReLUs can be gated."""
        recorder = Recorder()
        with recorder:
            outputs = forward(inputs.map(torch.clone))
        folds = recorder.folds(outputs)
        folds = folds._replace(gates=folds.gates and gates)
        for plan in (cls(folds, True), cls(folds._replace(packs=False), True), cls(folds._replace(packs=False), False)):
            if plan._agrees(forward, inputs, outputs) and _are_alike(slope(plan.run), slope(_directly)):
                return plan
        return cls(Folds({}, pads=False, gates=False, packs=False), False)

    def run(self, forward: Forward, inputs: Inputs) -> Outputs:
        """Return the model's outputs; as it is, if it runs otherwise than on the example."""
        try:
            return self._folded(forward, inputs)
        except (Unlike, RuntimeError):
            # Some operations, such as view, depend on how values lie in memory.
            return forward(inputs)

    def _folded(self, forward: Forward, inputs: Inputs) -> Outputs:
        folded = Folded(self.folds)
        # Copies: should the run have to be done again, it begins with the same images.
        with folded:
            outputs = forward(inputs.map(self._copy))
        folded.finish(outputs)
        return outputs

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        is_turned = self.is_channels_last and tensor.ndim == 4
        return tensor.clone(memory_format=torch.channels_last if is_turned else torch.preserve_format)

    def _agrees(self, forward: Forward, inputs: Inputs, outputs: Outputs) -> bool:
        try:
            folded = list(tensors_of(self._folded(forward, inputs)))
        except (Unlike, RuntimeError):
            return False
        expected = list(tensors_of(outputs))
        return len(folded) == len(expected) and all(map(_is_close, folded, expected))


def _directly(forward: Forward, inputs: Inputs) -> Outputs:
    return forward(inputs)


def _are_alike(gradients: Sequence[torch.Tensor] | None, expected: Sequence[torch.Tensor] | None) -> bool:
    """Tell whether gradients are the same but for rounding; nothing is to be said of a model that has none."""
    if gradients is None or expected is None:
        return gradients is expected
    return all(
        bool((one - other).norm() <= _FLIPS.get(other.dtype, 0.2) * other.norm())
        for one, other in zip(gradients, expected, strict=True)
    )


def _is_close(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    if not expected.is_floating_point():
        return True
    tolerance = _ROUNDING.get(expected.dtype, 0.05)
    return torch.allclose(tensor, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
