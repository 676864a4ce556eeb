"""An ONNX model of today as one of opset 17, the latest that onnx2torch knows.

Most operations of later opsets compute what they did before and take more types, or more that nobody has to say. So a
model is called one of the older opset, and what is said otherwise in it is rewritten: axes that became an input, and
what says no more than the older default does. What that would miss shows when the outputs are compared.
"""

from typing import Any

#: The latest opset whose operations onnx2torch knows.
OPSET = 17
# What later opsets can say, and what is meant if they say nothing.
_LATER: dict[str, dict[str, object]] = {
    "Cast": {"saturate": 1, "round_mode": b"up"},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
}


def as_older(model: Any, onnx: Any) -> Any:
    """Return a model, as onnx loads it, as one of an older opset; itself if it is one.

    Args:
        model: an ``onnx.ModelProto``, which is left as it is.
        onnx: the package.
    """
    if all(one.version <= OPSET for one in model.opset_import if one.domain in ("", "ai.onnx")):
        return model
    older = onnx.ModelProto()
    older.CopyFrom(model)
    for one in older.opset_import:
        if one.domain in ("", "ai.onnx"):
            one.version = OPSET
    constants = _constants(older.graph, onnx)
    for node in older.graph.node:
        _rewrite(node, constants, onnx)
    return older


def _constants(graph: Any, onnx: Any) -> dict[str, Any]:
    """Return the arrays of a graph that are known, by their names."""
    constants = {held.name: onnx.numpy_helper.to_array(held) for held in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    return constants


def _rewrite(node: Any, constants: dict[str, Any], onnx: Any) -> None:
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
        axes = constants.get(node.input[1])
        if axes is not None:
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("axes", [int(axis) for axis in axes]))
    kept = [one for one in node.attribute if not _is_needless(node, one, constants, onnx)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_needless(node: Any, attribute: Any, constants: dict[str, Any], onnx: Any) -> bool:
    """Tell whether an attribute that is new says what is meant without it."""
    said = onnx.helper.get_attribute_value(attribute)
    match node.op_type, attribute.name:
        case "Reshape", "allowzero":
            # Whether 0 is a size, or the one that was there before, matters only where there is a 0.
            return not said or 0 not in constants.get(node.input[1], [0])
        case "AveragePool", "dilations":
            return set(said) == {1}
        case "Split", "num_outputs":
            # In equal parts, one for each output, as it was without sizes.
            return True
        case operation, name:
            return name in _LATER.get(operation, {}) and _LATER[operation][name] == said
    return False
