"""Runs an exported file in the engine that it is for."""

from collections.abc import Mapping
from pathlib import Path

from guided_backprop.arrays import NumpyArray
from guided_backprop.export.extra import package


class OnnxRuntime:
    """A file in ONNX Runtime, on the processor.

    Args:
        path: the file.
        threads: how many threads one call uses; 0 for as many as there are cores.

    Attributes:
        name: the engine's name and version.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        runtime = package("onnxruntime")
        self.name = f"onnxruntime {runtime.__version__}"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Errors are raised as well; what else it says is of no use to whoever calls this.
        options.log_severity_level = 4
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [port.name for port in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Return all results by name; threads may call this at once."""
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
