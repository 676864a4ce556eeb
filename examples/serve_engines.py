"""An exported graph in the engines that serve.py may run it in: each opens a file, and says what its ports are."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Port(NamedTuple):
    """An input or an output: its kind of numbers, and its sizes, -1 for those that are free."""

    kind: np.dtype
    sizes: list[int]


class Opened(NamedTuple):
    """A file that is open in an engine: its ports, what it says of itself, and what runs it, for threads at once."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    about: Mapping[str, str]
    run: Callable[[Arrays], Sequence[np.ndarray]]


def in_onnxruntime(path: Path) -> Opened:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def port(one: Any) -> Port:
        word = one.type.removeprefix("tensor(").removesuffix(")")
        kind = np.dtype({"float": "f4", "bool": "?"}.get(word, word))
        return Port(kind, [size if isinstance(size, int) else -1 for size in one.shape])

    ports = [{one.name: port(one) for one in side} for side in (session.get_inputs(), session.get_outputs())]
    return Opened(*ports, session.get_modelmeta().custom_metadata_map, partial(session.run, None))


def in_openvino(path: Path) -> Opened:
    # Else it tells its makers over the network that it was imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    model = openvino.Core().read_model(path)
    # In single precision, which is not what it takes everywhere by itself.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request, turn = compiled.create_infer_request(), Lock()

    def port(one: Any) -> Port:
        sizes = [size.get_length() if size.is_static else -1 for size in one.get_partial_shape()]
        return Port(one.get_element_type().to_dtype(), sizes)

    def run(given: Arrays) -> Sequence[np.ndarray]:
        with turn:
            return request.infer(given).to_tuple()

    ports = [{one.get_any_name(): port(one) for one in side} for side in (model.inputs, model.outputs)]
    about = {name: model.get_rt_info(["framework", name]).astype(str) for name in model.get_rt_info("framework").value}
    return Opened(*ports, about, run)


ENGINES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}
