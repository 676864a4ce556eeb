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
        favours_count: whether it is faster for the number of images that it is told to be opened for.
    """

    name: str
    favours_count = False

    @abstractmethod
    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None: ...

    @staticmethod
    def form(count: int) -> str | None:
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
        # Else its threads keep a processor each busy for 30 ms after a call, and what comes next does without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = outputs

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


class OpenVino(Engine):
    """A file in OpenVINO, in single precision.

    Args:
        path: the file; or what OpenVINO made of it for one number of images.
        outputs: what its results are called, in their order.
        threads: how many threads one call uses; 0 for as many as there are cores.
        count: the number of images that it is opened for, with which more is fused, so that it takes four fifths of the
            time; for others it is opened once more when they come.
        source: the file itself, for these.
    """

    favours_count = True

    def __init__(
        self,
        path: Path,
        outputs: Sequence[str],
        threads: int = 0,
        count: int | None = None,
        source: Path | None = None,
    ) -> None:
        runtime = required("openvino")
        self.name = f"openvino {runtime.__version__.split('-')[0]}"
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        self._core = runtime.Core()
        # A file that is mapped could not be replaced everywhere.
        self._core.set_property({"ENABLE_MMAP": False})
        self._outputs, self._source, self._opening = outputs, source or path, threading.Lock()
        # By the number of images; None for any.
        self._models = {count: self._opened(path, count)}

    def _opened(self, path: Path, count: int | None) -> "_Model":
        if path.suffix == _STORED:
            return _Model(self._core.import_model(io.BytesIO(path.read_bytes()), "CPU", self._options))
        model = self._core.read_model(str(path))
        if count is not None:
            shapes = {port: port.partial_shape for port in model.inputs}
            for shape in shapes.values():
                shape[0] = count
            model.reshape(shapes)
        return _Model(self._core.compile_model(model, "CPU", self._options))

    def _model(self, count: int) -> "_Model":
        known = self._models.get(count) or self._models.get(None)
        if known is not None:
            return known
        with self._opening:
            if None not in self._models:
                self._models[None] = self._opened(self._source, None)
        return self._models[None]

    @staticmethod
    def form(count: int) -> str:
        runtime = required("openvino")
        core = runtime.Core()
        about = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        about += [runtime.__version__, count]
        return f"openvino_{sha256(repr(about).encode()).hexdigest()[:16]}{_STORED}"

    def store(self, path: Path) -> None:
        first = next(iter(self._models.values()))
        path.write_bytes(first.compiled.export_model().getvalue())

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        given = dict(inputs)
        results = self._model(len(next(iter(given.values())))).run(given)
        return dict(zip(self._outputs, results, strict=True))


class _Model:
    """What OpenVINO compiled.

    Attributes:
        compiled: the same.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        # What runs it runs it once at a time; each call takes one, or makes one.
        self._free: list[Any] = []

    def run(self, inputs: dict[str, NumpyArray]) -> Sequence[NumpyArray]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        # Results are copied: the next run would write over them.
        results: Sequence[NumpyArray] = request.infer(inputs, share_inputs=True, share_outputs=False).to_tuple()
        self._free.append(request)
        return results


#: The engines by name.
ENGINES: Final[Mapping[EngineName, type[Engine]]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def installed() -> Sequence[EngineName]:
    """Return the names of the engines that are installed."""
    return [name for name in ENGINES if find_spec(name) is not None]
