"""The graphs of several methods of one model, with each weight stored once for all of them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guided_backprop.arrays import Images
from guided_backprop.export.extra import package
from guided_backprop.methods.compare import compare
from guided_backprop.methods.export import Exported, export_together
from guided_backprop.methods.method import Method

# Smaller constants stay in the graph: shapes are inferred from them.
_LEAST: Final = 1024


@dataclass(frozen=True)
class Graphs:
    """Explanations of one model as graphs.

    Attributes:
        files: a file of ONNX for each method, by the method's name, without its weights.
        weights: the weights of all of them.
        place: what the files call the file of the weights.
        exported: what was measured of each.
    """

    files: Mapping[str, bytes]
    weights: bytes
    place: str
    exported: Sequence[Exported]


def graphs(methods: Sequence[Method], images: Images, place: str = "weights.bin") -> Graphs:
    """Export methods that differ in their rule alone, and take the weights out of their graphs.

    Raises:
        GuidedBackpropError: all that :meth:`Method.export` raises.
    """
    weights, offsets = bytearray(), dict[str, tuple[int, int]]()
    files = {}
    onnx = package("onnx")
    with tempfile.TemporaryDirectory() as name:
        paths = {Path(name) / f"{method.name}.onnx": method for method in methods}
        exported = export_together(paths, images, compare)
        for path, method in paths.items():
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                raw = tensor.raw_data
                if len(raw) < _LEAST:
                    continue
                # Constants are called by their values: what has one name is one constant.
                if tensor.name not in offsets:
                    offsets[tensor.name] = len(weights), len(raw)
                    weights += raw
                offset, length = offsets[tensor.name]
                onnx.external_data_helper.set_external_data(tensor, place, offset, length)
                tensor.ClearField("raw_data")
            files[method.name] = model.SerializeToString()
    return Graphs(files, bytes(weights), place, exported)
