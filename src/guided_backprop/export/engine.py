"""Runs an exported file in the engines that it is for."""

import io
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, NamedTuple, Protocol

from guided_backprop.arrays import NumpyArray
from guided_backprop.export.extra import package
from guided_backprop.export.pieces import Pieces, cut
from guided_backprop.extras import imported

EngineName = Literal["onnxruntime", "openvino"]
_REPORTER: Final = "openvino_telemetry"
# What a file of OpenVINO's own form ends in; its first bytes say how many images it is for.
_STORED: Final = ".blob"
_HEAD: Final = 4
# How many seconds pieces that run at once take so that their calls, some 50 microseconds each, are nothing beside.
_LONG: Final = 2e-3
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


class Fixed(NamedTuple):
    """For which batches a file is opened.

    Attributes:
        images: how many these have.
        file: the file itself, for others.
        apart: whether what it gives for an image depends on that image alone, so that a batch may be cut.
    """

    images: int
    file: Path
    apart: bool


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
        path: the file; or what OpenVINO stored of it for one number of images.
        outputs: what its results are called, in their order.
        threads: how many threads one call uses; 0 for as many as there are cores.
        fixed: the number of images that it is opened for, with which more is fused; for others it is opened once more
            when they come.
    """

    favours_count = True

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0, fixed: Fixed | None = None) -> None:
        runtime = required("openvino")
        self.name = f"openvino {runtime.__version__.split('-')[0]}"
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        self._threads = threads or os.cpu_count() or 1
        self._core = runtime.Core()
        # A file that is mapped could not be replaced everywhere.
        self._core.set_property({"ENABLE_MMAP": False})
        self._outputs, self._opening = outputs, threading.Lock()
        self._file, self._apart = (path, False) if fixed is None else (fixed.file, fixed.apart)
        # For the number of images that was told, and for any.
        self._opened = [self._open(path, None) if fixed is None else self._open_for(path, fixed.images)]

    def _open_for(self, path: Path, count: int) -> Pieces:
        """Open a file for a number of images: in pieces, unless these are so short that their calls count."""
        if path.suffix == _STORED:
            stored = path.read_bytes()
            return self._open(stored[_HEAD:], int.from_bytes(stored[:_HEAD]) or None, count)
        size, streams = cut(count, self._threads) if self._apart else (count, 1)
        pieces = self._open(path, size, count)
        if size == count or (took := pieces.seconds()) > _LONG:
            return pieces
        whole = self._open(path, count, count)
        return whole if whole.seconds() * size * streams < took * count else pieces

    def _open(self, graph: Path | bytes, size: int | None, count: int = 1) -> Pieces:
        options = self._options
        streams = 1 if size is None or size == count else cut(count, self._threads)[1]
        if streams > 1:
            options = {**options, "NUM_STREAMS": str(streams)}
        if isinstance(graph, bytes):
            return Pieces(self._core.import_model(io.BytesIO(graph), "CPU", options), size, streams)
        model = self._core.read_model(str(graph))
        if size is not None:
            shapes = {port: port.partial_shape for port in model.inputs}
            for shape in shapes.values():
                shape[0] = size
            model.reshape(shapes)
        return Pieces(self._core.compile_model(model, "CPU", options), size, streams)

    def _for(self, count: int) -> Pieces:
        for known in self._opened:
            if known.size in (None, count) or (self._apart and known.takes(count)):
                return known
        with self._opening:
            if len(self._opened) == 1:
                self._opened.append(self._open(self._file, None))
        return self._opened[1]

    @staticmethod
    def form(count: int) -> str:
        runtime = required("openvino")
        core = runtime.Core()
        about = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        about += [runtime.__version__, count]
        return f"openvino_{sha256(repr(about).encode()).hexdigest()[:16]}{_STORED}"

    def store(self, path: Path) -> None:
        first = self._opened[0]
        path.write_bytes((first.size or 0).to_bytes(_HEAD) + first.compiled.export_model().getvalue())

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        results = self._for(len(next(iter(inputs.values())))).run(inputs)
        return dict(zip(self._outputs, results, strict=True))


#: The engines by name.
ENGINES: Final[Mapping[EngineName, type[Engine]]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def installed() -> Sequence[EngineName]:
    """Return the names of the engines that are installed."""
    return [name for name in ENGINES if find_spec(name) is not None]
