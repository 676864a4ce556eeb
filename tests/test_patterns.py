"""Composite activations written out, in a graph of no framework; and that what is nearly one is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends.curves import Curve, is_partly_relu
from guided_backprop.backends.operations import NONLINEARITIES, Kind, Operation, Table
from guided_backprop.backends.patterns import PATTERNS, Slopes, composites, match_of


@dataclass(eq=False)
class Expression:
    """A value of a graph, written with operators; a number stays a number."""

    word: str = ""
    operands: "tuple[Expression | float, ...]" = ()
    weight: float | None = None
    users: "list[Expression]" = field(default_factory=list)

    def __post_init__(self) -> None:
        for operand in self.operands:
            if isinstance(operand, Expression):
                operand.users.append(self)

    def __add__(self, other: "Expression | float") -> "Expression":
        return op("add", self, other)

    def __sub__(self, other: "Expression | float") -> "Expression":
        return op("sub", self, other)

    def __mul__(self, other: "Expression | float") -> "Expression":
        return op("mul", self, other)

    def __rmul__(self, other: float) -> "Expression":
        return op("mul", other, self)

    def __truediv__(self, other: "Expression | float") -> "Expression":
        return op("div", self, other)

    def __neg__(self) -> "Expression":
        return op("neg", self)


def op(word: str, *operands: "Expression | float") -> Expression:
    return Expression(word, tuple(float(each) if isinstance(each, int) else each for each in operands))


class Graph:
    """All values that lead to one."""

    def __init__(self, last: Expression) -> None:
        self.values: list[Expression] = []
        stack = [last]
        while stack:
            value = stack.pop()
            if value not in self.values:
                self.values.append(value)
                stack.extend(each for each in value.operands if isinstance(each, Expression))

    def made(self, value: Expression) -> "tuple[str, Sequence[Expression | float]] | None":
        return (value.word, value.operands) if value.word else None

    def constant(self, value: Expression) -> float | None:
        return value.weight

    number = constant

    def users(self, value: Expression) -> Sequence[Expression]:
        return value.users


def found(build: Callable[[Expression], Expression]) -> list[str]:
    graph = Graph(build(Expression()))
    return sorted(match.name for match in composites(graph, graph.values).values())


def chosen(
    comparison: str, x: Expression, bound: float, one: "Expression | float", other: "Expression | float"
) -> Expression:
    return op("where", op(comparison, x, bound), one, other)


def relu6(x: Expression) -> Expression:
    return op("relu6", x)


def relu1(x: Expression) -> Expression:
    return op("relu1", x)


def softmax(x: Expression) -> Expression:
    powers = op("exp", x)
    return powers / op("broadcast", op("sum", powers))


SLOPE = Expression(weight=float("nan"))
COMPOSITES: dict[str, tuple[str, Callable[[Expression], Expression]]] = {
    "silu": ("silu", lambda x: x * op("sigmoid", x)),
    "silu, quick GELU": ("silu", lambda x: op("sigmoid", 1.702 * x) * x),
    "gelu": ("gelu", lambda x: 0.5 * x * (op("erf", x / 1.414) + 1.0)),
    "gelu, in another order": ("gelu", lambda x: x * (op("erf", x * 0.707) * 0.5 + 0.5)),
    "gelu by tanh": ("gelu", lambda x: (0.5 * x) * (op("tanh", (x + op("pow", x, 3.0) * 0.044) * 0.8) + 1.0)),
    "mish": ("mish", lambda x: x * op("tanh", op("softplus", x))),
    "mish by logarithm": ("mish", lambda x: x * op("tanh", op("log", op("exp", x) + 1.0))),
    "hard-sigmoid": ("hardsigmoid", lambda x: relu6(x + 3.0) / 6.0),
    "hard-sigmoid of a shifted value": ("hardsigmoid", lambda x: relu6((x / 10.0 - 2.5) + 3.0) / 6.0),
    "hard-sigmoid by a product": ("hardsigmoid", lambda x: relu6(x + 3.0) * (1 / 6)),
    "hard-swish": ("hardswish", lambda x: x * (relu6(x + 3.0) * (1 / 6))),
    "hard-swish, divided at last": ("hardswish", lambda x: x * relu6(x + 3.0) / 6.0),
    "hard-swish of an operation": ("hardswish", lambda x: x * op("hardsigmoid", x)),
    "hard-sigmoid, the older one": ("hardsigmoid", lambda x: relu1(0.2 * x + 0.5)),
    "hard-sigmoid, by its formula": ("hardsigmoid", lambda x: relu1(x / 6.0 + 0.5)),
    "hard-swish by that formula": ("hardswish", lambda x: x * relu1((1 / 6) * x + 0.5)),
    "hard-swish by the older one": ("hardswish", lambda x: x * relu1(0.2 * x + 0.5)),
    "leaky ReLU of what lies below 0": ("leaky_relu", lambda x: op("relu", x) + 0.1 * op("minimum", x, 0.0)),
    "PReLU of what lies below 0": ("prelu", lambda x: op("relu", x) + SLOPE * op("minimum", 0.0, x)),
    "what lies below 0, subtracted": ("leaky_relu", lambda x: op("relu", x) - -0.1 * op("minimum", x, 0.0)),
    "PReLU, what is below subtracted": ("prelu", lambda x: op("relu", x) - SLOPE * op("minimum", x, 0.0)),
    "PReLU by a magnitude": ("prelu", lambda x: op("relu", x) + (SLOPE * (x - op("abs", x))) * 0.5),
    "PReLU by half of a magnitude": ("prelu", lambda x: op("relu", x) + SLOPE * (0.5 * (x - op("abs", x)))),
    "ELU": ("elu", lambda x: op("relu", x) + op("minimum", 1.2 * (op("exp", x) - 1.0), 0.0)),
    "ELU by expm1": ("elu", lambda x: op("relu", x) + op("minimum", op("expm1", x), 0.0)),
    "SELU": ("elu", lambda x: 1.1 * op("relu", x) + op("minimum", 1.7 * op("exp", x) - 1.7, 0.0)),
    "CELU by a bound behind": ("elu", lambda x: op("relu", x) + op("minimum", 2.0 * (op("exp", x / 2.0) - 1.0), 0.0)),
    "ELU by a bound in front": ("celu", lambda x: op("relu", x) + 1.2 * (op("exp", op("minimum", x, 0.0)) - 1.0)),
    "ELU that is chosen": ("elu", lambda x: chosen("greater", x, 0.0, x, 1.2 * op("expm1", op("minimum", x, 0.0)))),
    "ELU that is chosen from 0 on": (
        "elu",
        lambda x: chosen("greater_equal", x, 0.0, x, op("exp", op("minimum", x, 0.0)) - 1.0),
    ),
    "soft shrink": (
        "softshrink",
        lambda x: chosen("greater", x, 0.3, x - 0.3, chosen("less", x, -0.3, x + 0.3, 0.0)),
    ),
    "sparse plus": (
        "sparse_plus",
        lambda x: chosen("less_equal", x, -1.0, 0.0, chosen("less", x, 1.0, 0.25 * op("pow", x + 1.0, 2.0), x)),
    ),
    "sparse sigmoid": (
        "sparse_sigmoid",
        lambda x: chosen("less_equal", x, -1.0, 0.0, chosen("greater_equal", x, 1.0, 1.0, 0.5 * (x + 1.0))),
    ),
    "leaky ReLU by a quotient": ("leaky_relu", lambda x: op("maximum", x / 10.0, x)),
    "leaky ReLU of two, added": ("leaky_relu", lambda x: op("relu", x) + op("relu", -x) * -0.1),
    "leaky ReLU": ("leaky_relu", lambda x: op("maximum", x, 0.1 * x)),
    "leaky ReLU of two": ("leaky_relu", lambda x: op("relu", x) - op("relu", -x) * 0.1),
    "leaky ReLU with a threshold": ("leaky_relu", lambda x: op("relu", x) - 0.1 * op("relu", -x + 0.5)),
    "PReLU": ("prelu", lambda x: op("relu", x) + SLOPE * op("relu", -x)),
    "PReLU, subtracted": ("prelu", lambda x: op("relu", x) - SLOPE * op("relu", -x)),
    "leaky ReLU of what is left": ("leaky_relu", lambda x: op("relu", x) + 0.1 * (x - op("relu", x))),
    "PReLU of what is left": ("prelu", lambda x: op("relu", x) + SLOPE * (x - op("relu", x))),
    "leaky ReLU of the smaller": ("leaky_relu", lambda x: op("relu", x) + 0.1 * op("minimum", x, 0.0)),
    "PReLU of the smaller": ("prelu", lambda x: op("relu", x) + SLOPE * op("minimum", x, 0.0)),
    "leaky ReLU of a magnitude": ("leaky_relu", lambda x: op("relu", x) + 0.05 * (x - op("abs", x))),
    "leaky ReLU of half a magnitude": ("leaky_relu", lambda x: op("relu", x) + 0.5 * (0.1 * (x - op("abs", x)))),
    "PReLU of half a magnitude": ("prelu", lambda x: op("relu", x) + SLOPE * ((x - op("abs", x)) / 2.0)),
    "PReLU of a magnitude": ("prelu", lambda x: op("relu", x) + SLOPE * (x - op("abs", x)) * 0.5),
    "CELU": ("celu", lambda x: op("maximum", x, 0.0) + 2.0 * op("expm1", op("minimum", x, 0.0) / 2.0)),
    "CELU by a ReLU": ("celu", lambda x: op("relu", x) + 2.0 * op("expm1", op("minimum", x, 0.0) / 2.0)),
    "softsign": ("softsign", lambda x: x / (op("abs", x) + 1.0)),
    "log-sigmoid": ("log_sigmoid", lambda x: -op("softplus", -x)),
    "softmax": ("softmax", softmax),
    "softmax with a shift": ("softmax", lambda x: softmax(x - op("broadcast", op("max", x)))),
    "log-softmax": ("log_softmax", lambda x: x - op("log", op("sum", op("exp", x)))),
    "log-softmax by JAX's logsumexp": (
        "log_softmax",
        lambda x: (lambda largest: x - (op("log", op("abs", op("sum", op("exp", x - largest)))) + largest))(
            op("stop_gradient", op("max", x))
        ),
    ),
    "logsumexp of a magnitude": ("logsumexp", lambda x: op("log", op("abs", op("sum", op("exp", x))))),
    "logsumexp": ("logsumexp", lambda x: op("log", op("sum", op("exp", x - 1.0))) + 1.0),
    "clamp": ("clamp", lambda x: op("minimum", op("maximum", x, -1.0), 1.0)),
    "clamp from above first": ("clamp", lambda x: op("maximum", op("minimum", x, 1.0), -1.0)),
    "norm of products": ("norm", lambda x: op("sqrt", op("sum", x * x))),
    "norm": ("norm", lambda x: op("sqrt", op("sum", op("pow", x, 2.0)))),
}
NEARLY: dict[str, Callable[[Expression], Expression]] = {
    "a ReLU6": lambda x: op("minimum", op("maximum", x, 0.0), 6.0),
    "a ReLU6 of a shifted value": lambda x: relu6(x + 3.0),
    "a ReLU6 with another shift": lambda x: relu6(x + 2.0) / 6.0,
    "a bound of 1, less steep": lambda x: relu1(0.1 * x + 0.5),
    "a bound of 1 with another slope": lambda x: relu1(x / 5.5 + 0.5),
    "a bound of 1 with another shift": lambda x: relu1(0.2 * x + 0.4),
    "a ReLU and what lies below another value": lambda x: op("relu", x) + 0.1 * op("minimum", x + 1.0, 0.0),
    "a ReLU and none of what lies below 0": lambda x: op("relu", x) + 0.0 * op("minimum", x, 0.0),
    "a ReLU6 with an unknown shift": lambda x: relu6(x + SLOPE) / 6.0,
    "a ReLU6 with another scale": lambda x: relu6(x + 3.0) / 5.0,
    "a ReLU times its input": lambda x: x * relu6(x),
    "a ReLU by a slope of 0": lambda x: op("maximum", x, x * 0.0),
    "the sigmoid of something else": lambda x: x * op("sigmoid", op("sin", x)),
    "two ReLUs of other values": lambda x: op("relu", x) - op("relu", -(x + 1.0)) * 0.1,
    "a PReLU whose ReLU is used again": lambda x: (lambda y: (y - op("relu", -x) * 0.1) * op("sin", y))(op("relu", x)),
    "a softmax of two": lambda x: op("exp", x) / op("sum", op("exp", x + 1.0)),
    # By the numbers in them these are ReLUs.
    "a CELU times 0": lambda x: op("relu", x) + 0.0 * op("expm1", op("minimum", x, 0.0)),
    "a CELU of 0 times x": lambda x: op("relu", x) + op("expm1", op("minimum", x, 0.0) * 0.0),
    "a CELU by an array, where it may be 0": lambda x: op("relu", x) + SLOPE * op("expm1", op("minimum", x, 0.0)),
    "an ELU from another place on": lambda x: op("relu", x) + op("minimum", op("exp", x) - 0.5, 0.0),
    "a ReLU and a curve that goes on above 0": lambda x: op("relu", x) + op("exp", op("minimum", x, 1.0)),
    "a SiLU of a sign": lambda x: x * (op("sigmoid", x) * 0.0 + (x / op("abs", x) + 1.0) / 2.0),
    "a GELU of a root": lambda x: x * (op("erf", x) * 1e-30 + (x / op("pow", x * x, 0.5) + 1.0) / 2.0),
    # And so are these by what they are shifted by: of x / 10 they bend at 0.
    "a hard-sigmoid from 0 on": lambda x: relu6((x / 10.0 - 3.0) + 3.0) / 6.0,
    "a hard-sigmoid up to 0": lambda x: relu6((-x * 0.1 + 3.0) + 3.0) / 6.0,
    "a hard-swish from 0 on": lambda x: (lambda y: y * relu6(y + 3.0) / 6.0)(x - 3.0),
    "a SiLU as steep as a step": lambda x: x * op("sigmoid", x * 1e6),
    "an ELU that is chosen, times 0": lambda x: chosen("greater", x, 0.0, x, 0.0 * op("expm1", op("minimum", x, 0.0))),
    "a soft shrink of one side": lambda x: chosen("greater", x, 0.5, x - 0.5, 0.0),
    "a soft shrink that never opens below": lambda x: chosen(
        "greater", x, 0.5, x - 0.5, chosen("less", x, -1e9, x + 1e9, 0.0)
    ),
    "a rest times 0": lambda x: op("relu", x) + 0.0 * (x - op("relu", x)),
    "a rest of another value": lambda x: op("relu", x) + 0.1 * (op("sin", x) - op("relu", x)),
    "a leak of nearly nothing": lambda x: op("relu", x) - op("relu", -x) * 1e-30,
}


@pytest.mark.parametrize("case", COMPOSITES)
def test_composite(case):
    name, build = COMPOSITES[case]
    assert found(build) == [name]


@pytest.mark.parametrize("case", NEARLY)
def test_what_is_nearly_one_is_none(case):
    assert found(NEARLY[case]) == []


#: What its operations say it is, and its numbers do not.
BY_NUMBERS = [
    "a CELU times 0",
    "a CELU of 0 times x",
    "a SiLU of a sign",
    "a GELU of a root",
    "a SiLU as steep as a step",
]


@pytest.mark.parametrize("case", BY_NUMBERS)
def test_planted_fault_numbers_that_are_not_worked_out_leave_an_activation(case, monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.patterns.is_other", lambda *_: False)
    assert len(found(NEARLY[case])) == 1


def test_planted_fault_a_map_by_operations_alone_is_wrong(monkeypatch):
    first, second, x, weights = np.random.default_rng(0).normal(size=(4, 6, 6)).astype("float32")
    hidden = np.maximum(x @ first, 0)
    expected = np.where(hidden @ second > 0, np.maximum(weights, 0), 0) @ second.T
    expected = np.where(hidden > 0, np.maximum(expected, 0), 0) @ first.T

    def model(x):
        y = jax.nn.relu(x @ first) @ second
        return jnp.maximum(y, 0) + 0.0 * jnp.expm1(jnp.minimum(y, 0))

    np.testing.assert_allclose(GuidedBackprop(model).explain(jnp.asarray(x), weights), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("guided_backprop.backends.patterns.is_other", lambda *_: False)
    wrong = GuidedBackprop(lambda x: model(x)).explain(jnp.asarray(x), weights)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(wrong, expected, rtol=1e-4, atol=1e-4)


STEEP = np.linspace(0.1, 0.4, 8).astype("float32")
HALF = np.arange(8) < 4
# Where a slope is 0, or nearly, it is a ReLU.
CLOSED = {
    "0 in half of them": np.where(HALF, 0, STEEP),
    "next to 0 in half of them": np.where(HALF, 1e-12, STEEP),
    "next to 0": np.full(8, 1e-12),
    "just below the bound": np.where(HALF, 9e-7, STEEP),
}


def in_torch():
    torch = pytest.importorskip("torch")
    return torch.as_tensor, torch.relu, torch.abs, lambda x: x.clamp(max=0)


def in_tensorflow():
    tf = pytest.importorskip("tensorflow")
    return tf.Variable, tf.nn.relu, tf.abs, lambda x: tf.minimum(x, 0.0)


def in_jax():
    return jnp.asarray, jax.nn.relu, jnp.abs, lambda x: jnp.minimum(x, 0)


FRAMEWORKS = [in_torch, in_tensorflow, in_jax]
#: What is added to relu(x), of the slopes, of halves of some shape, and of what a framework has.
RESTS = {
    "the smaller": lambda x, slopes, half, relu, size, below: slopes * below(x),
    "what is left": lambda x, slopes, half, relu, size, below: slopes * (x - relu(x)),
    "the other side": lambda x, slopes, half, relu, size, below: -slopes * relu(-x),
    "half at last": lambda x, slopes, half, relu, size, below: slopes * (x - size(x)) * 0.5,
    "half first": lambda x, slopes, half, relu, size, below: slopes * (0.5 * (x - size(x))),
    "half by a quotient": lambda x, slopes, half, relu, size, below: slopes * ((x - size(x)) / 2),
    "slopes at last": lambda x, slopes, half, relu, size, below: (0.5 * (x - size(x))) * slopes,
}
HALVES = {
    "half of all": lambda x, slopes, half, relu, size, below: half * (slopes * (x - size(x))),
    "all of half": lambda x, slopes, half, relu, size, below: slopes * (half * (x - size(x))),
}


def explained(framework, rest, slopes, shape=(8,), count=1):
    """Return the map of a model with a PReLU, and that by NumPy."""
    array, relu, magnitude, below = framework()
    draw = np.random.default_rng(0)
    images, first, second, last = (
        draw.normal(size=size).astype("float32") for size in [(count, 6), (6, 8), (8, 8), (8, 3)]
    )
    given, half = array(slopes.astype("float32")), array(np.full(shape, 0.5, "float32"))
    weights = [array(one) for one in (first, second, last)]

    def model(x):
        y = x @ weights[0]
        return relu((relu(y) + rest(y, given, half, relu, magnitude, below)) @ weights[1]) @ weights[2]

    y = images @ first
    z = np.where(y > 0, y, slopes * y) @ second
    g = np.where(z > 0, np.maximum(last[:, 1], 0), 0) @ second.T
    return np.asarray(GuidedBackprop(model).explain(array(images) + 0, 1)), (g * np.where(y > 0, 1, slopes)) @ first.T


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("form", RESTS)
def test_a_prelu_that_is_written_out_keeps_its_slopes(framework, form):
    found, expected = explained(framework, RESTS[form], STEEP)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("slopes", "form"),
    [*((slopes, "half first") for slopes in CLOSED), *(("next to 0 in half of them", form) for form in RESTS)],
)
def test_a_prelu_some_of_whose_slopes_are_as_0_is_refused(framework, slopes, form):
    with pytest.raises(OpaqueRegionError):
        explained(framework, RESTS[form], CLOSED[slopes])


@pytest.mark.parametrize("form", HALVES)
@pytest.mark.parametrize(
    ("framework", "shape"), [*((framework, (8,)) for framework in FRAMEWORKS), (in_torch, (20, 8)), (in_jax, (20, 8))]
)
def test_a_prelu_of_several_arrays_is_no_pattern(framework, form, shape):
    with pytest.raises(OpaqueRegionError):
        explained(framework, HALVES[form], CLOSED["0 in half of them"], shape, 20)


@pytest.mark.parametrize("slopes", CLOSED)
def test_a_prelu_in_one_operation_some_of_whose_slopes_are_as_0_is_refused(slopes):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.PReLU(8), torch.nn.Linear(8, 3)).eval()
    model[1].weight.data = torch.as_tensor(CLOSED[slopes].astype("float32"))
    with pytest.raises(OpaqueRegionError):
        GuidedBackprop(model).explain(torch.ones(1, 6), 1)


def test_slopes_that_a_loop_is_given_one_by_one_are_looked_at():
    slopes, images = np.stack([CLOSED["0 in half of them"], STEEP]), jnp.ones((1, 8))

    def body(x, slope):
        y = x - 0.5
        return jax.nn.relu(y) + slope * (y - jnp.abs(y)) * 0.5, None

    def model(x, slopes):
        return jax.lax.scan(body, jax.nn.relu(x), slopes)[0]

    with pytest.raises(OpaqueRegionError):
        GuidedBackprop(lambda x: model(x, jnp.asarray(slopes))).explain(images, 1)
    assert GuidedBackprop(lambda x: model(x, jnp.stack([STEEP, STEEP]))).explain(images, 1).shape == (1, 8)


#: Where slopes are looked at, and what is told there of those that are none.
FAULTS = {
    in_torch: ("torch.hidden.slopes.is_partly_relu", False),
    in_tensorflow: ("curves.curve_of", Curve(False, False, False, True, True)),
    in_jax: ("jax.hidden.taint.is_partly_relu", False),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("form", ["half first", "half by a quotient", "what is left"])
def test_planted_fault_slopes_that_nobody_looks_at_give_a_map(framework, form, monkeypatch):
    place, told = FAULTS[framework]
    monkeypatch.setattr(f"guided_backprop.backends.{place}", lambda *_: told)
    explained(framework, RESTS[form], CLOSED["next to 0 in half of them"])


def test_slopes_next_to_0_are_as_0_also_by_a_number_beside_them():
    assert not is_partly_relu(STEEP)
    assert is_partly_relu(STEEP, 1e-6)
    assert is_partly_relu(STEEP, 0.0)
    assert is_partly_relu(STEEP, 1e8)
    assert not is_partly_relu(STEEP * 1e-8, -1e7)


def test_a_match_tells_the_slopes_and_what_they_are_multiplied_by():
    graph = Graph(op("relu", x := Expression()) + (SLOPE * ((x - op("abs", x)) * 0.5)) / -4.0)
    (match,) = composites(graph, graph.values).values()
    assert match.slopes == Slopes(SLOPE, -0.125)


def test_every_row_is_tried_and_named_by_the_vocabulary():
    graphs = [Graph(build(Expression())) for _, build in COMPOSITES.values()]
    for pattern in PATTERNS:
        assert pattern.name in NONLINEARITIES
        assert any(match_of(pattern, value, graph) for graph in graphs for value in graph.values), pattern


def test_the_order_of_the_rows_says_nothing(monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.patterns.PATTERNS", PATTERNS[::-1])
    for name, build in COMPOSITES.values():
        assert found(build) == [name]


def test_a_table_knows_each_operation_once_and_the_rest_as_unknown():
    table = Table({Kind.LINEAR: "add AddV2=add", Kind.SMOOTH: "Exp=exp"})
    assert table["AddV2"] == Operation(Kind.LINEAR, "add")
    assert table["Novel"] == Operation(Kind.UNKNOWN, "Novel")
    assert (table.of(Kind.LINEAR), table.called("exp")) == ({"add", "AddV2"}, {"Exp"})
    assert "Novel" not in table
    assert len(table) == len(list(table)) == 3
    with pytest.raises(ValueError, match="twice"):
        Table({Kind.LINEAR: "add", Kind.SMOOTH: "add"})
