"""Runs an exported file in the engines that it is for."""

import io
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, Protocol

from guided_backprop.arrays import NumpyArray
from guided_backprop.export.extra import package
from guided_backprop.extras import imported

EngineName = Literal["onnxruntime", "openvino"]
_REPORTER: Final = "openvino_telemetry"
# What a file of OpenVINO's own form ends in.
_STORED: Final = ".blob"
_IMPORTING: Final = threading.Lock()


def required(name: EngineName) -> ModuleType:
    """Return an engine's package.

    Raises:
        MissingExtraError: it is not installed.
    """
    if name == "onnxruntime":
        return package(name)
    with _unreported():
        return imported(name, who=f"engine={name!r} needs", install=f"'guided-backprop[{name}]'")


@contextmanager
def _unreported() -> Iterator[None]:
    """Let OpenVINO be imported without what reports that it was: it tells its makers unasked, from a forked process.

    It goes on without that package where there is none. Who has imported it himself has decided.
    """
    with _IMPORTING:
        is_hidden = not {_REPORTER, "openvino"} & sys.modules.keys()
        if is_hidden:
            sys.modules[_REPORTER] = None  # type: ignore[assignment]  # Python's word for what can't be imported
        try:
            yield
        finally:
            if is_hidden:
                del sys.modules[_REPORTER]


class Runner(Protocol):
    """What runs a graph.

    Attributes:
        name: what is said of it: the engine's name and version.
    """

    name: str

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Return all results by name; threads may call this at once."""

    def outputs_of(self, inputs: Mapping[str, NumpyArray]) -> NumpyArray:
        """Return the model's outputs, whatever the labels say."""


class Engine(ABC):
    """A file that is open in an engine, on the processor.

    Args:
        path: the file.
        outputs: what its results are called, in their order.
        threads: how many threads one call uses; 0 for as many as there are cores.

    Raises:
        MissingExtraError: the engine is not installed.

    Attributes:
        name: the engine's name and version.
    """

    name: str

    @abstractmethod
    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None: ...

    @staticmethod
    def form() -> str | None:
        """Return what a file is called that this engine, on this processor, opens faster; None if there is none."""
        return None

    def store(self, path: Path) -> None:
        """Write that file.

        Raises:
            NotImplementedError: the engine has none.
        """
        raise NotImplementedError

    @abstractmethod
    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Return all results by name; threads may call this at once."""

    def outputs_of(self, inputs: Mapping[str, NumpyArray]) -> NumpyArray:
        """Return the model's outputs, whatever the labels say."""
        return self.run(inputs)["outputs"]


class OnnxRuntime(Engine):
    """A file in ONNX Runtime."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None:
        runtime = required("onnxruntime")
        self.name = f"onnxruntime {runtime.__version__}"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Errors are raised as well; what else it says is of no use to whoever calls this.
        options.log_severity_level = 4
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = outputs

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


class OpenVino(Engine):
    """A file in OpenVINO, in single precision."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None:
        runtime = required("openvino")
        self.name = f"openvino {runtime.__version__.split('-')[0]}"
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        core = runtime.Core()
        # A file that is mapped could not be replaced everywhere.
        core.set_property({"ENABLE_MMAP": False})
        if path.suffix == _STORED:
            self._model = core.import_model(io.BytesIO(path.read_bytes()), "CPU", options)
        else:
            self._model = core.compile_model(core.read_model(str(path)), "CPU", options)
        self._outputs = outputs
        # What runs it runs it once at a time; each call takes one, or makes one.
        self._free: list[Any] = []

    @staticmethod
    def form() -> str:
        runtime = required("openvino")
        core = runtime.Core()
        about = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        return f"openvino_{sha256(repr([runtime.__version__, *about]).encode()).hexdigest()[:16]}{_STORED}"

    def store(self, path: Path) -> None:
        path.write_bytes(self._model.export_model().getvalue())

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._model.create_infer_request()
        # Results are copied: the next run would write over them.
        results = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        self._free.append(request)
        return dict(zip(self._outputs, results.to_tuple(), strict=True))


#: The engines by name.
ENGINES: Final[Mapping[EngineName, type[Engine]]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def installed() -> Sequence[EngineName]:
    """Return the names of the engines that are installed."""
    return [name for name in ENGINES if find_spec(name) is not None]
