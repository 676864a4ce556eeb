"""Writing ONNX by hand: operations by name, constants once each, and what the file says of itself."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from guided_backprop.arrays import NumpyArray
from guided_backprop.export.extra import package

#: The version of ONNX's operations, and of its format: what engines of the last two years read.
OPSET, FORMAT = 18, 9
# Constants of so many numbers are stored in half precision, if any are: of fewer little is gained.
_LARGE: Final = 256


class Port(NamedTuple):
    """An input or an output of the file.

    Attributes:
        name: how it is called.
        dtype: of its numbers.
        sizes: along each axis; a word for a size that is free.
    """

    name: str
    dtype: np.dtype[Any]
    sizes: Sequence[int | str]


class OnnxFile:
    """A graph that grows operation by operation: values are known by their names.

    Args:
        is_half: whether large constants are stored in half precision, and cast in the graph: engines do so at once.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.export.onnx_file import OnnxFile
        >>> graph = OnnxFile()
        >>> doubled = graph.add("Mul", "images", graph.constant(np.float32(2)))
        >>> graph.add("Relu", doubled)
        'Relu_2'
    """

    def __init__(self, *, is_half: bool = False) -> None:
        self._onnx = package("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._known: set[str] = set()
        self._count, self._is_half = 0, is_half

    def add(self, operation: str, *operands: str, name: str = "", **attributes: Any) -> str:
        """Add an operation of one result; return what that is called. An operand that is left out is ""."""
        self._count += 1
        name = name or f"{operation}_{self._count}"
        self._nodes.append(self._onnx.helper.make_node(operation, list(operands), [name], name, **attributes))
        return name

    def add_several(self, count: int, operation: str, *operands: str, **attributes: Any) -> list[str]:
        """Add an operation of several results; return what these are called."""
        self._count += 1
        names = [f"{operation}_{self._count}_{place}" for place in range(count)]
        self._nodes.append(self._onnx.helper.make_node(operation, list(operands), names, names[0], **attributes))
        return names

    def constant(self, value: NumpyArray | np.generic, *, is_shared: bool = True) -> str:
        """Add a constant, unless there is an equal one; return what it is called."""
        array = np.asarray(value)
        name = self.name_of(array)
        if not is_shared:
            name += "_own"
        if name in self._known:
            return name
        self._known.add(name)
        if self._is_half and array.dtype == np.float32 and array.size >= _LARGE:
            self._cast(array, name)
        else:
            # Not ascontiguousarray, which makes an axis of none.
            self._constants[name] = self._onnx.numpy_helper.from_array(array.copy("C"), name)
        return name

    def has(self, value: NumpyArray) -> bool:
        """Tell whether there is an equal constant."""
        return self.name_of(value) in self._known

    def _cast(self, array: NumpyArray, name: str) -> None:
        """Store an array in half precision, and call what it is cast to by a name."""
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        stored = f"{name}_half"
        self._constants[stored] = self._onnx.numpy_helper.from_array(half.copy("C"), stored)
        self._nodes.append(
            self._onnx.helper.make_node("Cast", [stored], [name], name, to=self.code(np.dtype(np.float32)))
        )

    def name_of(self, value: NumpyArray) -> str:
        """Return what a constant is called: by its values, so that the same graph is the same file."""
        digest = sha256(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
        return f"constant_{digest.hexdigest()[:24]}"

    def integers(self, *numbers: int) -> str:
        """Add a constant of integers along one axis, as sizes and axes are given."""
        return self.constant(np.array(numbers, np.int64))

    def code(self, dtype: np.dtype[Any]) -> int:
        """Return ONNX's number for a kind of numbers."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(dtype))

    def write(self, path: Path, inputs: Sequence[Port], outputs: Sequence[Port], metadata: Mapping[str, str]) -> None:
        """Write the file, after ONNX checked that it is one."""
        helper = self._onnx.helper
        ports = [
            [helper.make_tensor_value_info(port.name, self.code(port.dtype), list(port.sizes)) for port in side]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "explanation", *ports, list(self._constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT, producer_name="guided-backprop"
        )
        helper.set_model_props(model, dict(metadata))
        self._onnx.checker.check_model(model)
        self._onnx.save(model, path)
