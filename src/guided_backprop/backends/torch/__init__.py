"""The PyTorch backend: backend runs, nodes recognises, editor applies the rule, audit and eager see to the rest."""

from guided_backprop.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
