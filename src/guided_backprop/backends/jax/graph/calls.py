"""What a call in a jaxpr is: which function it is of, whether JAX's own, and which line of the model asked for it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import core

from guided_backprop.backends.jax.graph.operations import JITTED

Jaxpr = core.Jaxpr | core.ClosedJaxpr

_OF_JAX = str(Path(jax.__file__).parent)
_NOT_THE_MODELS = (_OF_JAX, str(Path(__file__).parents[3]))


def line_of(eqn: core.JaxprEqn) -> str:
    """Return the line of the model's code that asked for an equation, the last one of neither JAX nor this library."""
    traceback = eqn.source_info.traceback
    frames: Sequence[Any] = traceback.frames if traceback is not None else ()
    own = (frame for frame in frames if not frame.file_name.startswith(_NOT_THE_MODELS))
    return next((f"{frame.file_name.rpartition('/')[2]}:{frame.line_num}" for frame in own), "")


def source_of(jaxpr: Any) -> str:
    """Return the function that a jaxpr is of, ``name at file:line``; empty where this version of JAX does not say."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return str(getattr(info, "func_src_info", None) or "")


def loop_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many inputs of a ``scan`` stay as they are, and how many it carries from turn to turn."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # Since JAX 0.11 the inputs lie in a tree of these two and of what is read turn by turn.
    constants, carried, _ = map(len, params["ft_in"].unpack())
    return constants, carried


def is_of_jax(jaxpr: Jaxpr) -> bool:
    """Tell whether a jaxpr is of a function of JAX's own."""
    return source_of(jaxpr).partition(" at ")[2].startswith(_OF_JAX)


def custom_name_of_jax(eqn: core.JaxprEqn) -> str | None:
    """Return which function a custom one of JAX's own is, by its row, as ``logaddexp``; or None."""
    jaxpr = eqn.params.get("call_jaxpr") if eqn.primitive.name == "custom_jvp_call" else None
    name = source_of(jaxpr).partition(" at ")[0].rpartition(".")[2]
    return JITTED.get(name) if jaxpr is not None and is_of_jax(jaxpr) else None


def jitted_name(eqn: core.JaxprEqn) -> str | None:
    """Return which function of jax.nn a jitted call is, by its row; or None: a name alone may be the user's own."""
    name = eqn.params.get("name")
    if name not in JITTED:
        return None
    original: Callable[..., Any] | None = getattr(jax.nn, name, getattr(jax.numpy, name, None))
    if original is None:
        return None
    shapes: list[Any] = [atom.aval for atom in eqn.invars]
    operands = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)  # type: ignore[no-untyped-call]
        for aval in shapes
    ]
    try:
        traced = jax.make_jaxpr(original)(*operands)
    except (TypeError, ValueError):
        return None
    expected = traced.jaxpr.eqns[0] if len(traced.jaxpr.eqns) == 1 else None
    if expected is None or "jaxpr" not in expected.params:
        return None
    return JITTED[name] if _text(expected.params["jaxpr"]) == _text(eqn.params["jaxpr"]) else None


def _text(closed: Jaxpr) -> str:
    return str(closed).replace("weak_type=True", "weak_type=False")
