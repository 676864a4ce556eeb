"""The recorded graph made smaller, exactly: what is constant is worked out, what scales a convolution folds into it.

Folding goes both ways: the scale of a batch-norm behind a convolution stands in front of that one's way back, so that
forward and backward pass share the folded weights.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from guided_backprop.backends.torch.export.gates import clamp_first, open_by_results

aten = torch.ops.aten

# What turns a matrix is left to the engine, which does so when it loads the file: so that it is there once.
_TURNS = frozenset({
    aten.t.default, aten.t_copy.default, aten.permute.default, aten.permute_copy.default,
    aten.transpose.int, aten.transpose_copy.int,
})  # fmt: skip
_SAME = frozenset({
    aten.detach.default, aten.alias.default, aten.detach_copy.default, aten.alias_copy.default,
})  # fmt: skip
_SMALL = 1 << 12


def simplify(module: GraphModule, answers: Sequence[int]) -> GraphModule:
    """Return an equal graph with fewer operations, of one without operations in place.

    Args:
        module: the graph.
        answers: which of its results are whether the others are right.
    """
    _assert_at_the_end(module, answers)
    _share_constants(module)
    # What several passes compute alike is one before anything is folded into it.
    module = GraphModule(module, fx_graph_cse(module.graph))
    _work_out(module)
    _fold(module)
    _work_out(module)
    _leave_out(module)
    open_by_results(module)
    clamp_first(module)
    return _tidied(module, fx_graph_cse(module.graph))


def part_of(module: GraphModule, results: slice) -> GraphModule:
    """Return a graph of some results alone."""
    graph = Graph()
    output = graph.graph_copy(module.graph, {})
    assert isinstance(output, tuple | list)
    graph.output(list(output[results]))
    return _tidied(module, graph)


def _tidied(module: GraphModule, graph: Graph) -> GraphModule:
    """Return a graph with what of a module it needs."""
    module = GraphModule(module, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def constant_of(module: GraphModule, node: object) -> torch.Tensor | None:
    """Return the value of a node that is a constant, or None."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, torch.Tensor) else None


def _share_constants(module: GraphModule) -> None:
    """Let each constant, and each value, be one node: of what works on values alone a view is no other."""
    first: dict[object, Node] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        other = first.setdefault(node.target, node)
        if other is not node:
            node.replace_all_uses_with(other)
            module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if node.target in _SAME:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


def _assert_at_the_end(module: GraphModule, answers: Sequence[int]) -> None:
    """Let what a model asserts of its tensors be said of the results: a graph raises no errors."""
    (output,) = module.graph.find_nodes(op="output")
    for node in list(module.graph.nodes):
        if node.target not in (aten._assert_async.default, aten._assert_async.msg):
            continue
        results = list(output.args[0])
        for place in answers:
            with module.graph.inserting_before(output):
                both = module.graph.call_function(aten.logical_and.default, (results[place], node.args[0]))
            both.meta["val"] = results[place].meta["val"]
            results[place] = both
        output.args = (results,)
        module.graph.erase_node(node)


def _work_out(module: GraphModule) -> None:
    """Replace what depends on constants alone by its value."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        known = {source: constant_of(module, source) for source in node.all_input_nodes}
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or any(one is None for one in known.values()):
            continue
        if node.target in _TURNS and value.ndim == 2 and value.numel() > _SMALL:
            continue
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        with torch.no_grad():
            _put(module, node, node.target(*args, **kwargs))
    module.graph.eliminate_dead_code()


def _leave_out(module: GraphModule) -> None:
    """Leave out what gives what it is given: padding by nothing, all of an axis, axes in their order."""
    for node in list(module.graph.nodes):
        if _is_nothing(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _is_nothing(node: Node) -> bool:
    arguments: Any = node.args
    if node.target == aten.constant_pad_nd.default:
        return list(arguments[1]) == [0] * len(arguments[1])
    if node.target in (aten.permute.default, aten.permute_copy.default):
        return list(arguments[1]) == list(range(len(arguments[1])))
    if node.target not in (aten.slice.Tensor, aten.slice_copy.Tensor):
        return False
    # What is not said is all of the first axis.
    given, unsaid = list(arguments), [None, 0, None, None, 1]
    _, axis, start, end, step = given + unsaid[len(given) :]
    size = arguments[0].meta["val"].shape[axis]
    # Of a size that is free this is not asked.
    is_to_end = end is None or (isinstance(end, int) and isinstance(size, int) and end >= size)
    return start in (0, None) and step == 1 and is_to_end


def _put(module: GraphModule, node: Node, value: torch.Tensor) -> None:
    constant = _constant(module, node, value)
    node.replace_all_uses_with(constant)
    module.graph.erase_node(node)


def _constant(module: GraphModule, before: Node, value: torch.Tensor) -> Node:
    """Put a constant in front of a node."""
    name = f"_worked_out{len(module._buffers)}"
    module.register_buffer(name, value.detach())
    with module.graph.inserting_before(before):
        constant = module.graph.get_attr(name)
    constant.meta["val"] = value
    return constant


def _fold(module: GraphModule) -> None:
    """Fold what multiplies or is added to a convolution's channels into it.

    In front first: what scales between two convolutions on the way back is what scaled behind the second of them on the
    way there, and belongs to that one's weights.
    """
    for fold in (_fold_in_front, _fold_behind):
        for node in list(module.graph.nodes):
            if node.target == aten.convolution.default:
                fold(module, node)


def _fold_behind(module: GraphModule, conv: Node) -> None:
    """Fold scale and shift behind a convolution into its weights and bias, if nothing else reads its values."""
    while len(users := [user for user in conv.users if user.target != aten.sym_size.int]) == 1:
        (user,) = users
        others = [source for source in user.args[:2] if source is not conv]
        value = constant_of(module, others[0]) if len(others) == 1 else None
        if user.target not in (aten.mul.Tensor, aten.add.Tensor) or user.kwargs or value is None:
            return
        channels = _by_channel(value, conv, axis=1)
        weight, bias = constant_of(module, conv.args[1]), constant_of(module, conv.args[2])
        if channels is None or weight is None or (conv.args[2] is not None and bias is None):
            return
        bias = torch.zeros_like(channels) if bias is None else bias
        if user.target == aten.mul.Tensor:
            weight = _scaled(weight, channels, conv, is_behind=True)
            _set(module, conv, 1, weight)
            _set(module, conv, 2, bias * channels if conv.args[2] is not None else None)
        else:
            _set(module, conv, 2, bias + channels)
        user.replace_all_uses_with(conv)
        module.graph.erase_node(user)


def _fold_in_front(module: GraphModule, conv: Node) -> None:
    """Fold a scale of the channels that go into a convolution into its weights."""
    source = conv.args[0]
    if not isinstance(source, Node) or source.target != aten.mul.Tensor or source.kwargs:
        return
    for x, scale in (source.args[:2], source.args[1::-1]):
        value, weight = constant_of(module, scale), constant_of(module, conv.args[1])
        if value is None or weight is None or not isinstance(x, Node):
            continue
        channels = _by_channel(value, source, axis=1)
        if channels is not None:
            _set(module, conv, 1, _scaled(weight, channels, conv, is_behind=False))
            conv.replace_input_with(source, x)
            return


def _by_channel(value: torch.Tensor, like: Node, axis: int) -> torch.Tensor | None:
    """Return a constant as one number for each channel of a node's result, if it is that."""
    shape = like.meta["val"].shape
    sizes = [1] * (len(shape) - value.ndim) + list(value.shape)
    if len(sizes) != len(shape) or any(size != 1 for place, size in enumerate(sizes) if place != axis):
        return None
    return value.reshape(-1).expand(int(shape[axis]))


def _scaled(weight: torch.Tensor, channels: torch.Tensor, conv: Node, *, is_behind: bool) -> torch.Tensor:
    """Return a convolution's weights times a number for each channel that comes out of it, or goes into it."""
    transposed, groups = conv.args[6], conv.args[8]
    assert isinstance(groups, int)
    rest = [1] * (weight.ndim - 2)
    if is_behind != bool(transposed):
        # These channels lie along axis 0, the groups one after the other.
        return weight * channels.reshape(-1, 1, *rest)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * channels.reshape(groups, 1, -1, *rest)).reshape(weight.shape)


def _set(module: GraphModule, node: Node, place: int, value: torch.Tensor | None) -> None:
    constant = None if value is None else _constant(module, node, value)
    node.args = (*node.args[:place], constant, *node.args[place + 1 :])


def written_constants(module: GraphModule) -> Iterator[str]:
    """Yield the names of constants that operations write to: buffers that change in the forward pass."""
    for node in module.graph.nodes:
        for written in _written(node):
            root = written
            while root.op == "call_function" and _gives_view(root):
                root = root.all_input_nodes[0]
            if root.op == "get_attr":
                yield str(root.target)


def random_operations(module: GraphModule) -> Iterator[str]:
    """Yield the names of operations that draw random numbers."""
    for node in module.graph.nodes:
        tags: Iterable[object] = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            yield str(node.target)


def _written(node: Node) -> Iterator[Node]:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return
    for argument, given in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, Node):
            yield given


def _gives_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
