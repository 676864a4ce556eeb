"""From a traced function to one flat graph that is ours: nested calls inlined, functions copied and renamed.

Nothing of the user's is edited: the function definitions here are copies. What remains nested are the
bodies of ``cond``, ``while`` and ``case``, whose gradients TensorFlow builds from their definitions.
"""

import hashlib
import itertools
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry

from guided_backprop.backends.tensorflow.graph.compiled import is_compiled_whole, mark_compiled, run_compiled

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Where an inlined node came from, for gradients that refer to the tensors around it by name.
PREFIX = "_guided_backprop_prefix"

# Functions are known by name in the whole process: no name is given twice.
_NUMBERS = itertools.count()
# What holds functions and may be left out, and what may not.
_STATEFUL = {"StatelessWhile": "While", "StatelessIf": "If", "StatelessCase": "Case"}


@dataclass
class Traced:
    """One function as a flat definition.

    Attributes:
        definition: the function; no node of it is a call.
        nested: the functions that its control flow uses, each used once, by name.
        captured: what the function reads besides the images, in the order of its further arguments.
        gradients: the custom gradients that were registered for it alone.
        convolved: the shapes of what its convolutions take, channels behind the batch, 0 for a free size.
    """

    definition: FunctionDef
    nested: dict[str, FunctionDef]
    captured: list[tf.Tensor]
    gradients: frozenset[str] = frozenset()
    convolved: Sequence[Sequence[int]] = ()

    def digest(self) -> Hashable:
        """Return what is equal for two traces that are alike, as long as one of them lives."""
        digest = hashlib.sha256(self.definition.SerializeToString(deterministic=True))
        for name, function in self.nested.items():
            digest.update(name.encode() + function.SerializeToString(deterministic=True))
        return digest.digest(), tuple(map(id, self.captured))


@dataclass
class _Inliner:
    library: Mapping[str, FunctionDef]
    nested: dict[str, FunctionDef] = field(default_factory=dict)

    def flatten(self, definition: FunctionDef, where: str = "", *, compiled: bool = False) -> FunctionDef:
        """Return a copy of ``definition`` without calls; its control flow uses copies of its own.

        Where it is ``compiled`` that is written on what has no other way to run.
        """
        flat = FunctionDef()
        flat.CopyFrom(definition)
        del flat.node_def[:]
        renamed: dict[str, str] = {}
        controls: dict[str, list[str]] = {}
        for node in definition.node_def:
            called = _called(node, self.library)
            if called is None:
                copy = flat.node_def.add()
                copy.CopyFrom(node)
                copy.attr.pop("_class", None)
                if compiled:
                    mark_compiled(copy)
                self._copy_functions(copy, f"{where}{node.name}", compiled=compiled)
                continue
            function = self.library[called]
            whole = compiled or is_compiled_whole(node) or is_compiled_whole(function)
            body = self.flatten(function, f"{where}{node.name}/", compiled=whole)
            controls[node.name] = _inline(flat, node, body, renamed)
        _rewire(flat, renamed, controls)
        return flat

    def _copy_functions(self, node: NodeDef, where: str, *, compiled: bool) -> None:
        for name in sorted(node.attr):
            value = node.attr[name]
            functions = [value.func] if value.WhichOneof("value") == "func" else list(value.list.func)
            for index, function in enumerate(functions):
                if function.name in self.library:
                    copy = self.flatten(self.library[function.name], f"{where}/{name}{index}/", compiled=compiled)
                    # Alike in two traces of one model; new names are given to each copy that TensorFlow gets to know.
                    function.name = copy.signature.name = f"guided_backprop_function_of_{len(self.nested)}"
                    self.nested[function.name] = copy


def _called(node: NodeDef, library: Mapping[str, FunctionDef]) -> str | None:
    name = str(node.attr["f"].func.name) if node.op in CALLS else str(node.op)
    return name if name in library else None


def _inline(flat: FunctionDef, call: NodeDef, body: FunctionDef, renamed: dict[str, str]) -> list[str]:
    """Put the nodes of ``body`` in the place of ``call``; return the nodes that stand for its completion."""
    prefix = f"{call.name}/"
    inputs = [ref for ref in call.input if not ref.startswith("^")]
    waits = [ref for ref in call.input if ref.startswith("^")]
    arguments = {arg.name: ref for arg, ref in zip(body.signature.input_arg, inputs, strict=True)}

    def outer(ref: str) -> str:
        if ref.startswith("^"):
            return ref if ref[1:] in arguments else f"^{prefix}{ref[1:]}"
        return str(arguments.get(ref.partition(":")[0], prefix + ref))

    for arg in body.signature.input_arg:
        if arg.type not in (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum):
            # Kept under its name, for custom gradients that refer to the argument.
            copy = flat.node_def.add(name=prefix + arg.name, op="Identity", input=[arguments[arg.name]])
            copy.attr["T"].type = arg.type
    for node in body.node_def:
        copy = flat.node_def.add()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        del copy.input[:]
        kept = [outer(ref) for ref in node.input if not (ref.startswith("^") and ref[1:] in arguments)]
        copy.input.extend(kept)
        if not any(ref.lstrip("^").startswith(prefix) for ref in kept):
            copy.input.extend(waits)
        copy.attr[PREFIX].s = prefix.encode() + (node.attr[PREFIX].s if PREFIX in node.attr else b"")
    for index, arg in enumerate(body.signature.output_arg):
        target = outer(body.ret[arg.name])
        renamed[f"{call.name}:output:{index}"] = target
        renamed[f"{call.name}:{arg.name}:0"] = target
    return [f"^{prefix}{node}" for node in body.control_ret.values()]


@dataclass
class _Wiring:
    """What stands for a call that was inlined: for what it returned, and for its completion."""

    renamed: Mapping[str, str]
    controls: Mapping[str, list[str]]

    def target(self, ref: str) -> str:
        """Return the reference behind calls."""
        while ref in self.renamed:
            ref = self.renamed[ref]
        return ref

    def resolved(self, refs: Iterable[str]) -> Iterator[str]:
        """Iterate over what a node waits for and reads."""
        for ref in refs:
            if not ref.startswith("^"):
                yield self.target(ref)
            elif ref[1:] in self.controls:
                yield from self.resolved(self.controls[ref[1:]])
            else:
                yield ref


def _rewire(flat: FunctionDef, renamed: Mapping[str, str], controls: Mapping[str, list[str]]) -> None:
    wiring = _Wiring(renamed, controls)
    for node in flat.node_def:
        inputs = list(dict.fromkeys(ref for ref in wiring.resolved(node.input) if ref.startswith("^")))
        data = [ref for ref in wiring.resolved(node.input) if not ref.startswith("^")]
        del node.input[:]
        node.input.extend(data + inputs)
    for name in list(flat.ret):
        flat.ret[name] = wiring.target(flat.ret[name])
    # A call that had to run is now the nodes inside it that had to.
    for name, node_name in list(flat.control_ret.items()):
        if node_name in controls:
            del flat.control_ret[name]
            for index, ref in enumerate(wiring.resolved([f"^{node_name}"])):
                flat.control_ret[f"{name}_{index}"] = ref[1:]
    del flat.signature.control_output[:]
    # In one order, so that two traces of one model are alike.
    flat.signature.control_output.extend(sorted(flat.control_ret))


def graph_of(traced: Traced) -> tuple[GraphDef, dict[str, str]]:
    """Return the traced function as a graph to import, and the names in it of what its nodes return."""
    graph_def = GraphDef()
    graph_def.versions.producer = tf.version.GRAPH_DEF_VERSION
    graph_def.library.function.extend(traced.nested.values())
    flat: dict[str, str] = {}
    for arg in traced.definition.signature.input_arg:
        flat[arg.name] = f"{arg.name}:0"
        graph_def.node.add(name=arg.name, op="Placeholder").attr["dtype"].type = arg.type
    for node in traced.definition.node_def:
        position = 0
        for output in op_def_registry.get(node.op).output_arg:
            for index in range(_length(node, output)):
                flat[f"{node.name}:{output.name}:{index}"] = f"{node.name}:{position}"
                position += 1
    for node in traced.definition.node_def:
        copy = graph_def.node.add()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(flat.get(ref, ref) for ref in node.input)
    run_compiled(graph_def)
    return graph_def, flat


def made_by(definition: FunctionDef, name: str) -> str:
    """Return the tensor that a function returns under a name, without the copies made to return it."""
    made = {node.name: node for node in definition.node_def}
    ref = str(definition.ret[name])
    while (node := made.get(ref.partition(":")[0])) is not None and node.op == "Identity":
        ref = str(node.input[0])
    return ref


def renamed(graph_def: GraphDef) -> GraphDef:
    """Return a copy whose functions have new names: TensorFlow derives other functions and names from them."""
    copy = GraphDef()
    copy.CopyFrom(graph_def)
    names = {
        function.signature.name: f"guided_backprop_function_{next(_NUMBERS)}" for function in copy.library.function
    }
    for function in copy.library.function:
        function.signature.name = names[function.signature.name]
    for node in (*copy.node, *(node for function in copy.library.function for node in function.node_def)):
        for value in node.attr.values():
            for called in [value.func] if value.WhichOneof("value") == "func" else value.list.func:
                called.name = names.get(called.name, called.name)
    return copy


def let_gradients_pass(graph_def: GraphDef) -> None:
    """Let gradients pass what stops them in a graph."""
    for node in (*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)):
        node.op = "Identity" if node.op == "StopGradient" else node.op


def let_run(graph_def: GraphDef, functions: set[str]) -> None:
    """Say of what holds these functions that it does more than give out values, so that nothing of it is left out."""
    if not functions:
        return
    for node in (*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)):
        node.op = _STATEFUL.get(node.op, node.op)
    for function in graph_def.library.function:
        for node in function.node_def:
            if node.op in _STATEFUL.values():
                function.control_ret[node.name] = node.name
                if node.name not in function.signature.control_output:
                    function.signature.control_output.append(node.name)
                function.signature.is_stateful = True


def keep_functions(graph_def: GraphDef, user: object) -> None:
    """Let TensorFlow know the functions of a graph for as long as ``user`` lives.

    It makes itself known what a gradient is built through, and nothing that lies beside it.
    """
    known = context.context()
    for function in graph_def.library.function:
        name = function.signature.name
        known.add_function_def(function)
        weakref.finalize(user, known.remove_function, name).atexit = False


def _length(node: NodeDef, output: OpDef.ArgDef) -> int:
    if output.number_attr:
        return int(node.attr[output.number_attr].i)
    return len(node.attr[output.type_list_attr].list.type) if output.type_list_attr else 1


def flattened(definition: FunctionDef, library: Mapping[str, FunctionDef], captured: Sequence[tf.Tensor]) -> Traced:
    """Return a function without calls; ``library`` has those that it uses."""
    inliner = _Inliner(library)
    flat = inliner.flatten(definition)
    flat.signature.name = "model"
    return Traced(flat, inliner.nested, list(captured))
