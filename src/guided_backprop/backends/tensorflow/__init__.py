"""The TensorFlow backend: backend traces and runs, graph copies, relus recognises, gradients applies the rule."""

from guided_backprop.backends.tensorflow.backend import TensorFlowBackend

__all__ = ["TensorFlowBackend"]
