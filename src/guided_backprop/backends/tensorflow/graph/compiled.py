"""Convolutions that a model has XLA compile, as TensorFlow's own kernels are not for all of them on every processor.

So Keras does with those in groups, and with those in three dimensions whose channels come first. In two dimensions
those in groups run by themselves; all others are calls again, each of a function that is one convolution.
"""

from typing import Final

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.eager.polymorphic_function.attributes import XLA_COMPILE

#: What may be compiled alone.
CONVOLUTIONS: Final = frozenset({"Conv2D", "Conv3D"})
#: Where an inlined convolution has to be compiled; then which one it is.
COMPILED: Final = "_guided_backprop_compiled"
_SHAPES: Final = "_output_shapes"
#: What it reads in its function.
ARGUMENTS: Final = "images", "weights"


def is_compiled_whole(called: NodeDef | FunctionDef) -> bool:
    """Tell whether a function is compiled, or what is called by a node."""
    return XLA_COMPILE in called.attr and called.attr[XLA_COMPILE].b


def mark_compiled(node: NodeDef) -> None:
    """Write on a convolution out of such a function that it was compiled."""
    if node.op in CONVOLUTIONS:
        node.attr[COMPILED].s = b"compiled"


def run_compiled(graph_def: GraphDef) -> None:
    """Let run what was compiled, in a graph and in the functions of its control flow."""
    functions = list(graph_def.library.function)
    for nodes, output in [(graph_def.node, ""), *((function.node_def, ":output:0") for function in functions)]:
        for node in [node for node in nodes if COMPILED in node.attr]:
            if node.op == "Conv2D" and node.attr["data_format"].s in (b"", b"NHWC"):
                nodes.extend(_kept_apart(node, output))
            else:
                name = f"guided_backprop_compiled_{len(graph_def.library.function)}"
                graph_def.library.function.append(_as_call(node, name))


def _kept_apart(node: NodeDef, output: str) -> list[NodeDef]:
    """Make of a convolution that is there in groups what hands its result on; return the convolution.

    Else TensorFlow makes one operation of it and of the bias behind it, and has no kernel of that in groups. What hands
    on has to know a shape, and stays away where nobody does.
    """
    shapes = node.attr[_SHAPES].list.shape
    if not shapes or shapes[0].unknown_rank:
        return []
    convolution = NodeDef()
    convolution.CopyFrom(node)
    convolution.name = f"{node.name}/apart"
    del node.input[:]
    node.attr.clear()
    node.op = "EnsureShape"
    node.input.append(f"{convolution.name}{output}")
    node.attr["T"].CopyFrom(convolution.attr["T"])
    node.attr["shape"].shape.CopyFrom(convolution.attr[_SHAPES].list.shape[0])
    return [convolution]


def _as_call(node: NodeDef, name: str) -> FunctionDef:
    """Make a node a call; return the function of this name that is called."""
    function = FunctionDef()
    function.signature.name = name
    for argument in ARGUMENTS:
        function.signature.input_arg.add(name=argument).type = node.attr["T"].type
    function.signature.output_arg.add(name="result").type = node.attr["T"].type
    inside = function.node_def.add(name="convolution", op=node.op, input=ARGUMENTS)
    for key in [key for key in node.attr if not key.startswith("_")]:
        inside.attr[key].CopyFrom(node.attr[key])
        del node.attr[key]
    function.ret["result"] = "convolution:output:0"
    kind = inside.attr["T"].type
    node.op, node.attr[COMPILED].s = "PartitionedCall", inside.SerializeToString()
    node.attr["f"].func.name = name
    node.attr["Tin"].list.type.extend([kind, kind])
    node.attr["Tout"].list.type.append(kind)
    node.attr[XLA_COMPILE].b = function.attr[XLA_COMPILE].b = True
    return function
