"""What is claimed of signs is true: of each word by NumPy's formulas, of each framework's operations by their values.

Operands have all combinations of signs, zeros among them. A claim that is missing costs a refusal; one that is wrong
would let a ReLU pass, so each is looked for.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import torch
from jax import lax
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guided_backprop import GuidedBackprop
from guided_backprop.backends import signs as in_all
from guided_backprop.backends.jax.graph.program import Program
from guided_backprop.backends.jax.graph.relus import Facts
from guided_backprop.backends.jax.hidden.signs import Signs
from guided_backprop.backends.operations import Kind, Operation
from guided_backprop.backends.signs import Sign, sign_of, sign_of_numbers
from guided_backprop.backends.tensorflow.graph.nodes import Graph, operand_refs
from guided_backprop.backends.tensorflow.hidden.signs import sign_of_node
from guided_backprop.backends.torch.graph.operations import OPERATIONS, dispatched
from guided_backprop.backends.torch.hidden.signs import sign_of_result, sign_of_tensor
from guided_backprop.backends.torch.hidden.watch import ForwardWatch

SIGNS = (Sign.UNKNOWN, Sign.NOT_NEGATIVE, Sign.NOT_POSITIVE, Sign.ZERO)


def numbers(sign: Sign, shape: tuple[int, ...] = (4, 4), seed: int = 0) -> np.ndarray:
    """Return numbers of a sign; every fifth is 0."""
    drawn = np.random.default_rng(seed).normal(size=shape)
    drawn[np.arange(drawn.size).reshape(shape) % 5 == 0] = 0
    turn = {Sign.UNKNOWN: lambda x: x, Sign.NOT_NEGATIVE: np.abs, Sign.NOT_POSITIVE: lambda x: -np.abs(x)}
    return turn[sign](drawn) if sign in turn else 0 * drawn


def is_true(claimed: Sign, result: np.ndarray) -> bool:
    """Tell whether numbers are what is claimed of them; of 1 / 0 nothing is claimed."""
    result = np.asarray(result, np.float64)
    result = result[np.isfinite(result)]
    is_wrong = (Sign.NOT_NEGATIVE in claimed and (result < 0).any()) or (
        Sign.NOT_POSITIVE in claimed and (result > 0).any()
    )
    return not is_wrong


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


#: The words that a sign is told of, as NumPy has them.
WORDS: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "ceil": np.ceil,
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "clamp": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "conv": lambda x, weight: x @ weight,
    "cosh": np.cosh,
    "cumprod": lambda x: np.cumprod(x, 0),
    "cumsum": lambda x: np.cumsum(x, 0),
    "div": lambda x, y: np.divide(x, y, out=np.full_like(x, np.nan), where=y != 0),
    "einsum": lambda x, y: np.einsum("ij,jk->ik", x, y),
    "erfc": scipy.special.erfc,
    "exp": np.exp,
    "expm1": np.expm1,
    "floor": np.floor,
    "gelu": lambda x: x * sigmoid(1.702 * x),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "huber_loss": lambda x, y: np.where(np.abs(x - y) < 1, (x - y) ** 2 / 2, np.abs(x - y) - 0.5),
    "hypot": np.hypot,
    "leaky_relu": lambda x: np.where(x > 0, x, -0.1 * x),
    "log1p": lambda x: np.log1p(np.maximum(x, -0.9)),
    "log_softmax": lambda x: np.log(np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    "matmul": lambda x, y: x @ y,
    "max": lambda x: x.max(1),
    "maximum": np.maximum,
    "mean": lambda x: x.mean(0),
    "min": lambda x: x.min(1),
    "minimum": np.minimum,
    "modulo": lambda x, y: np.fmod(x, np.where(y == 0, np.nan, y)),
    "mul": np.multiply,
    "neg": np.negative,
    "norm": lambda x: np.sqrt((x**2).sum(1)),
    "pow": lambda x, y: np.power(np.where(x == 0, np.nan, x), y),
    "prelu": lambda x, slope: np.where(x > 0, x, slope * x),
    "prod": lambda x: x.prod(0),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": lambda x: np.round(x),
    "rsqrt": lambda x: 1 / np.sqrt(np.where(x > 0, x, np.nan)),
    "rsub": lambda x, y: y - x,
    "selu": lambda x: 1.05 * np.where(x > 0, x, 1.67 * np.expm1(x)),
    "sigmoid": sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * sigmoid(x),
    "sinh": np.sinh,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sort": lambda x: np.sort(x, 1),
    "sqrt": lambda x: np.sqrt(np.where(x < 0, np.nan, x)),
    "sub": np.subtract,
    "sum": lambda x: x.sum(1),
    "tanh": np.tanh,
    "trunc": np.trunc,
    "var": lambda x: x.var(0),
    "where": lambda x, y: np.where(np.arange(x.size).reshape(x.shape) % 2, x, y),
}
MOVES = {"concatenate": lambda x, y: np.concatenate([x, y]), "transpose": lambda x: x.T}


def arity(formula: Callable[..., Any]) -> int:
    return formula.nin if isinstance(formula, np.ufunc) else formula.__code__.co_argcount


def claims(word: str, kind: Kind, formula: Callable[..., Any]) -> list[tuple[tuple[Sign, ...], Sign, np.ndarray]]:
    """Return for all signs of operands what is claimed of the result, and the result."""
    found = []
    for of in product(SIGNS, repeat=arity(formula)):
        operands = [numbers(sign, seed=seed) for seed, sign in enumerate(of)]
        with np.errstate(all="ignore"):
            found.append((of, sign_of(Operation(kind, word), of), formula(*operands)))
    return found


@pytest.mark.parametrize("word", [*WORDS, *MOVES])
def test_the_sign_of_each_word(word):
    kind = Kind.MOVES if word in MOVES else Kind.SMOOTH
    found = claims(word, kind, {**WORDS, **MOVES}[word])
    assert all(is_true(claimed, result) for _, claimed, result in found), found
    # Of what is not negative something is claimed of every word but differences and powers of unknown numbers.
    assert any(claimed for of, claimed, _ in found if Sign.UNKNOWN not in of)


@pytest.mark.parametrize(("word", "wrong"), [("sub", "add"), ("neg", "abs"), ("minimum", "maximum")])
def test_a_wrong_row_is_seen(word, wrong):
    with np.errstate(all="ignore"):
        found = claims(wrong, Kind.LINEAR, WORDS[word])
    assert not all(is_true(claimed, result) for _, claimed, result in found)


def test_powers_and_squares():
    row = Operation(Kind.SMOOTH, "pow")
    for of, exponent in product(SIGNS, (-3.0, -2.0, -0.5, 0.5, 1.0, 2.0, 3.0)):
        x = numbers(of)
        with np.errstate(all="ignore"):
            assert is_true(sign_of(row, [of], exponent), np.where(x == 0, np.nan, x) ** exponent), (of, exponent)
    assert sign_of(row, [Sign.UNKNOWN], 2.0) is Sign.NOT_NEGATIVE
    assert sign_of(row, [Sign.NOT_POSITIVE], 3.0) is Sign.NOT_POSITIVE
    assert sign_of(Operation(Kind.LINEAR, "mul"), [Sign.UNKNOWN] * 2, is_square=True) is Sign.NOT_NEGATIVE


def test_every_word_that_has_a_sign_is_tried():
    words = in_all._NOT_NEGATIVE | in_all._NOT_POSITIVE | in_all._KEEPS | in_all._CURVES | set(in_all._MADE)
    like_others = """
        addcmul argmax argmin avg_pool elu erf gather identity_n log_sigmoid max_pool mish nonzero one_hot resize rint
        rrelu scatter scatter_add sparse_plus squared_difference squareplus stop_gradient
    """
    assert words - set(WORDS) == set(like_others.split())


# PyTorch


class Claims(TorchDispatchMode):
    """Compares what is claimed of each operation with what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.told: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = dispatched(func.overloadpacket.__name__)
        tensors = [leaf.clone() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        signs = [sign_of_tensor(tensor) for tensor in tensors]
        result = func(*args, **kwargs)
        claimed = sign_of_result(name, args, kwargs, tensors, signs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        # What it keeps for its own backward pass is of no use to a model.
        for each in results[:1] if name == "log_sigmoid" else results:
            if each.is_complex() or each.dtype == torch.bool:
                continue
            self.told |= {name} if claimed else set()
            if not is_true(claimed, each.detach().numpy()):
                self.wrong.append(f"{name}{signs}{claimed}")
        return result


INDEX, MASK = torch.tensor([0, 2, 1, 3]), torch.tensor([True, False, True, False])
TORCH: Sequence[Callable[[torch.Tensor, torch.Tensor], Any]] = [
    lambda x, y: [x + y, x - y, x * y, x / y, x * x, 1 - x, 1 + x, -1 + x, 2 * x, -2 * x, x / 2, x / -3, 3 / x],
    lambda x, y: [torch.add(x, y, alpha=-1), torch.sub(x, y, alpha=2), torch.rsub(x, y), torch.rsub(x, 1, alpha=-2)],
    lambda x, y: [torch.addcmul(x, x, y), torch.addcmul(x, y, y, value=-1), torch.addcdiv(x, x, y), x.ldexp(y)],
    lambda x, y: [x.clamp(min=-1), x.clamp(max=1), x.clamp(-1, 1), x.clamp(0.5, 1), x.clamp(-1, -0.5)],
    lambda x, y: [torch.clamp(x, y, y + 1), torch.clamp(x, max=y), torch.clamp(x, min=y), F.hardtanh(x), F.relu6(x)],
    lambda x, y: [torch.maximum(x, y), torch.minimum(x, y), torch.fmax(x, y), torch.fmin(x, y), x.clamp_min(-1)],
    lambda x, y: [x**2, x**3, x**-1, x**0.5, x**y, 2**x, x.square(), x.sqrt(), x.rsqrt(), x.reciprocal()],
    lambda x, y: [
        x.exp(),
        x.log(),
        x.log1p(),
        x.expm1(),
        x.tanh(),
        x.sigmoid(),
        x.erf(),
        x.atan(),
        x.asinh(),
        x.sinh(),
    ],
    lambda x, y: [F.elu(x), F.celu(x), F.selu(x), F.gelu(x), F.silu(x), F.mish(x), F.softsign(x), F.hardswish(x)],
    lambda x, y: [F.leaky_relu(x), F.leaky_relu(x, -0.5), F.prelu(x, y[0]), F.rrelu(x), F.threshold(x, 1, 0.5)],
    lambda x, y: [F.threshold(x, -1, 0), F.threshold(x, 1, -2), F.softplus(x), F.hardsigmoid(x), F.logsigmoid(x)],
    lambda x, y: [x.softmax(1), x.log_softmax(1), x.logsumexp(1), torch.logaddexp(x, y), x.abs(), torch.hypot(x, y)],
    lambda x, y: [torch.complex(x, y).abs(), torch.complex(x, y).norm(dim=1)],
    lambda x, y: [x.sum(), x.sum(1), x.mean(1), x.var(1), x.std(1), torch.std_mean(x, 1), torch.var_mean(x, 1)],
    lambda x, y: [x.amax(1), x.amin(1), x.max(1), x.min(1), x.sort(1), x.topk(2), x.median(1), x.cummax(1), x.mode(1)],
    lambda x, y: [x.cumsum(1), x.cumprod(1), x.prod(1), x.norm(dim=1), torch.cdist(x, y), x.trace(), x.diff(dim=1)],
    lambda x, y: [x @ y, x @ y[0], torch.addmm(x, x, y), torch.addmm(x, x, y, beta=-1), F.linear(x, y, y[0])],
    lambda x, y: [
        torch.einsum("ij,jk->ik", x, y),
        torch.outer(x[0], y[0]),
        torch.dot(x[0], y[0]),
        torch.lerp(x, y, 0.3),
    ],
    lambda x, y: [torch.cat([x, y]), torch.stack([x, y]), x.T, x.flip(0), x[1], x[:, :2], F.pad(x, (1, 1), value=-1.0)],
    lambda x, y: [
        F.pad(x, (1, 1)),
        x.roll(1),
        x.tril(),
        x.expand(2, 4, 4),
        x.repeat(2, 1),
        x.clone(),
        x.double().float(),
    ],
    lambda x, y: [
        torch.where(MASK, x, y),
        torch.where(MASK, x, -1.0),
        x.masked_fill(MASK, -2.0),
        x.masked_fill(MASK, 0),
    ],
    lambda x, y: [x.masked_select(MASK), x[INDEX], x.gather(0, INDEX[None]), x.take(INDEX), x.index_select(0, INDEX)],
    lambda x, y: [x.scatter(0, INDEX[None], -1.0), x.scatter(0, INDEX[None], y), x.index_fill(0, INDEX, -1)],
    lambda x, y: [x.index_add(0, INDEX, y), x.index_add(0, INDEX, y, alpha=-1), x.index_put((INDEX,), y)],
    lambda x, y: [
        x.scatter_reduce(0, INDEX[None], y, "prod"),
        x.clone().copy_(y),
        x.clone().fill_(-1),
        x.clone().zero_(),
    ],
    lambda x, y: [
        x.clone().mul_(y),
        x.clone().add_(y, alpha=-1),
        x.clone().clamp_(-1, 1),
        x.clone().index_put_((INDEX,), y),
    ],
    lambda x, y: [
        x.round(),
        x.floor(),
        x.ceil(),
        x.trunc(),
        x.sign(),
        x.frac(),
        x.remainder(y),
        x.remainder(-0.5),
        x.fmod(y),
        x.int(),
        x > y,
    ],
    lambda x, y: [(x > y).float(), (x > y) * x, x.argmax(1) * 1.0, x.nan_to_num(-1), x.copysign(y), torch.atan2(x, y)],
    lambda x, y: [
        F.conv1d(x, y[:, :, None]),
        F.conv1d(x, y[:, :, None], y[0]),
        F.max_pool1d(x[None], 2),
        F.avg_pool1d(x, 2),
    ],
    lambda x, y: [
        F.interpolate(x[None, None], scale_factor=3, mode=mode) for mode in ("bilinear", "bicubic", "nearest")
    ],
    lambda x, y: [
        F.grid_sample(x[None, None], y[None, :, None, :2], mode=mode, align_corners=False)
        for mode in ("bilinear", "bicubic")
    ],
    lambda x, y: [F.mse_loss(x, y), F.smooth_l1_loss(x, y), F.huber_loss(x, y), F.l1_loss(x, y), x.aminmax()],
    lambda x, y: [F.binary_cross_entropy_with_logits(x, y), F.nll_loss(x, INDEX), F.cross_entropy(x, INDEX)],
    lambda x, y: [
        torch.linalg.matrix_exp(x),
        torch.linalg.cross(x[:, :3], y[:, :3]),
        torch.fft.fft(x).real,
        torch.kron(x, y),
    ],
    lambda x, y: [torch.complex(x, y) * torch.complex(x, y), torch.view_as_real(torch.complex(x, y) ** 2)],
    lambda x, y: [F.layer_norm(x, (4,)), F.batch_norm(x, y[0], y[0].abs()), torch.renorm(x, 2, 0, 1), F.normalize(x)],
]


def claimed_in_torch(calls: Sequence[Callable[..., Any]]) -> Claims:
    claims = Claims()
    for call, (first, second) in product(calls, product(SIGNS, repeat=2)):
        x, y = (torch.as_tensor(numbers(sign, seed=seed)) for seed, sign in enumerate((first, second)))
        with claims:
            call(x, y)
    return claims


def test_what_torch_gives_has_the_sign():
    claims = claimed_in_torch(TORCH)
    assert claims.wrong == []
    # They are claims, and of many operations.
    assert len(claims.told) > 80


def test_a_wrong_claim_is_seen(monkeypatch):
    monkeypatch.setattr("guided_backprop.backends.torch.hidden.signs._UNLIKE_THEIR_WORD", frozenset())
    wrong = " ".join(claimed_in_torch(TORCH).wrong)
    assert all(name in wrong for name in ("std_mean", "upsample_bicubic2d", "copysign", "linalg_matrix_exp"))


# JAX and TensorFlow

JAX: Sequence[Callable[[jax.Array, jax.Array], Any]] = [
    lambda x, y: [x + y, x - y, x * y, x / y, x * x, 1 - x, -2 * x, x**2, x**3, x**y, -x, x @ y, x.T, x[1], x[:, ::-1]],
    lambda x, y: [jnp.maximum(x, y), jnp.minimum(x, y), jnp.clip(x, -1, 1), jnp.clip(x, 0.5, 1), lax.clamp(-1.0, x, y)],
    lambda x, y: [
        jnp.where(x > 0, x, y),
        jnp.concatenate([x, y]),
        jnp.stack([x, y]),
        jnp.pad(x, 1, constant_values=-1),
    ],
    lambda x, y: [x.sum(1), x.mean(), x.max(1), x.min(1), jnp.sort(x), x.prod(0), jnp.cumsum(x, 1), jnp.cumprod(x, 1)],
    lambda x, y: [
        jax.nn.softmax(x),
        jax.nn.log_softmax(x),
        jax.nn.gelu(x),
        jax.nn.silu(x),
        jax.nn.relu6(x),
        jnp.abs(x),
    ],
    lambda x, y: [x.at[jnp.array([0, 2])].set(-1.0), x.at[1].add(y[1]), x.at[1].subtract(y[1]), x.at[1].multiply(y[1])],
    lambda x, y: [
        jnp.exp(x),
        jnp.log1p(x),
        jnp.tanh(x),
        jnp.sign(x),
        jnp.floor(x),
        (x > y) * 1.0,
        lax.stop_gradient(x),
    ],
    lambda x, y: [*lax.top_k(x, 2), x[jnp.array([0, 2])], lax.dynamic_slice(x, (1, 1), (2, 2)), x.astype(int) * 1.0],
    lambda x, y: [
        lax.complex(x, y).real,
        (lax.complex(x, y) ** 2).real,
        jnp.argmax(x, 1) * 1.0,
        jnp.cov(x),
        jnp.var(x),
    ],
    lambda x, y: [
        x - y,
        lax.scan(lambda c, row: (c - row, c), x[0], x)[1],
        lax.cond(x[0, 0] > 0, jnp.abs, jnp.negative, x),
    ],
]


@pytest.mark.parametrize("call", range(len(JAX)))
def test_what_jax_gives_has_the_sign(call):
    """Of operands that are known: those that a model is made of."""
    told = 0
    for of in product(SIGNS, repeat=2):
        x, y = (jnp.asarray(numbers(sign, seed=seed)) for seed, sign in enumerate(of))
        expected = JAX[call](x, y)
        program = Program(jax.make_jaxpr(lambda images, x=x, y=y: JAX[call](images * 0 + x, y))(x))
        images = program.block.steps[1].outputs[0] if len(program.block.steps) > 1 else program.block.outputs[0]
        signs = Signs(Facts(program))
        signs._signs[images] = of[0]
        for value, result in zip(program.block.outputs, expected, strict=True):
            claimed = signs.of(value)
            told += bool(claimed)
            assert is_true(claimed, result), (of, claimed, value.step)
    assert told


TENSORFLOW: Sequence[Callable[[tf.Tensor, tf.Tensor], Any]] = [
    lambda x, y: [x + y, x - y, x * y, x / y, x * x, 1 - x, -2 * x, x**2, x**3, -x, x @ y, tf.transpose(x), x[1]],
    lambda x, y: [tf.maximum(x, y), tf.minimum(x, y), tf.clip_by_value(x, -1, 1), tf.clip_by_value(x, 0.5, 1)],
    lambda x, y: [
        tf.where(x > 0, x, y),
        tf.concat([x, y], 0),
        tf.stack([x, y]),
        tf.pad(x, [[1, 1], [1, 1]], constant_values=-1),
    ],
    lambda x, y: [
        tf.reduce_sum(x, 1),
        tf.reduce_mean(x),
        tf.reduce_max(x, 1),
        tf.sort(x),
        tf.cumsum(x),
        tf.math.cumprod(x),
    ],
    lambda x, y: [tf.nn.softmax(x), tf.nn.log_softmax(x), tf.nn.elu(x), tf.nn.relu6(x), tf.abs(x), tf.nn.softplus(x)],
    lambda x, y: [
        tf.tensor_scatter_nd_sub(x, [[0]], y[:1]),
        tf.tensor_scatter_nd_add(x, [[0]], y[:1]),
        tf.gather(x, [0, 2]),
    ],
    lambda x, y: [
        tf.image.resize(x[None, ..., None], (9, 9), how) for how in ("bilinear", "bicubic", "lanczos3", "area")
    ],
    lambda x, y: [
        tf.exp(x),
        tf.tanh(x),
        tf.sign(x),
        tf.floor(x),
        tf.cast(x > y, tf.float64) * 1.0,
        tf.stop_gradient(x),
    ],
    lambda x, y: [
        tf.math.real(tf.complex(x, y) * tf.complex(x, y)),
        tf.cast(tf.cast(x, tf.int32), tf.float64),
        tf.math.top_k(x, 2)[1],
    ],
    lambda x, y: [
        tf.math.squared_difference(x, y),
        tf.nn.l2_loss(x),
        tf.math.reduce_variance(x, 1),
        x**y,
        tf.math.xdivy(x, y),
    ],
]


@pytest.mark.parametrize("call", range(len(TENSORFLOW)))
def test_what_tensorflow_gives_has_the_sign(call):
    told = 0
    for of in product(SIGNS, repeat=2):
        operands = [tf.constant(numbers(sign, seed=seed)) for seed, sign in enumerate(of)]
        function = tf.function(TENSORFLOW[call], autograph=False).get_concrete_function(*operands)
        definition = function.function_def
        names = [argument.name for argument in definition.signature.input_arg]
        graph = Graph(definition, dict.fromkeys(names))
        signs = dict(zip(names, of, strict=False))
        for node in graph.ordered():
            reads = [signs.get(ref.partition(":")[0], Sign.UNKNOWN) for ref in operand_refs(node)]
            signs[node.name] = sign_of_node(graph, node, reads)
        results = tf.nest.flatten(function(*operands))
        for argument, result in zip(definition.signature.output_arg, results, strict=True):
            claimed = signs[definition.ret[argument.name].partition(":")[0]]
            told += bool(claimed)
            assert is_true(claimed, result.numpy()), (of, claimed, argument.name)
    assert told


# What a softmax is lessened by


def sign_in_torch(call: Callable[..., torch.Tensor], x: np.ndarray) -> Sign:
    watch, images = ForwardWatch(), torch.tensor(x, requires_grad=True).clone()
    watch.follow(images)
    with watch:
        return watch._notes.of(call(images)).sign


def sign_in_jax(call: Callable[..., jax.Array], x: np.ndarray) -> Sign:
    program = Program(jax.make_jaxpr(call)(jnp.asarray(x)))
    return Signs(Facts(program)).of(program.block.outputs[0])


def sign_in_tensorflow(call: Callable[..., tf.Tensor], x: np.ndarray) -> Sign:
    function = tf.function(call, autograph=False).get_concrete_function(tf.TensorSpec([None, 4], x.dtype))
    definition = function.function_def
    signs: dict[str, Sign] = {}
    graph = Graph(definition, {argument.name: None for argument in definition.signature.input_arg})
    for node in graph.ordered():
        reads = [signs.get(ref.partition(":")[0], Sign.UNKNOWN) for ref in operand_refs(node)]
        signs[node.name] = sign_of_node(graph, node, reads)
    (returned,) = definition.ret.values()
    return signs[graph.copied(returned).partition(":")[0]]


ROWS = {"axis": 1, "keepdims": True}
#: A difference, how it is written, and its sign: that it is not told of what only looks like it is as important.
DIFFERENCES: Mapping[str, tuple[Callable[..., Sign], Callable[..., Any], Sign]] = {
    "torch, its largest": (sign_in_torch, lambda x: x - x.amax(1, keepdim=True), Sign.NOT_POSITIVE),
    "torch, its largest of all": (sign_in_torch, lambda x: x - x.max(), Sign.NOT_POSITIVE),
    "torch, detached": (sign_in_torch, lambda x: x - x.detach().max(1, keepdim=True)[0], Sign.NOT_POSITIVE),
    "torch, its smallest": (sign_in_torch, lambda x: x - x.amin(0, keepdim=True), Sign.NOT_NEGATIVE),
    "torch, turned": (sign_in_torch, lambda x: x.amax(1, keepdim=True) - x, Sign.NOT_NEGATIVE),
    "torch, of other rows": (sign_in_torch, lambda x: x - x.amax(1), Sign.UNKNOWN),
    "torch, of another": (sign_in_torch, lambda x: x - (-x).amax(1, keepdim=True), Sign.UNKNOWN),
    "torch, of before": (sign_in_torch, lambda x: (lambda m: x.mul_(3) - m)(x.amax(1, keepdim=True)), Sign.UNKNOWN),
    "torch, half of it": (sign_in_torch, lambda x: torch.sub(x, x.amax(1, keepdim=True), alpha=0.5), Sign.UNKNOWN),
    "torch, its largest but one": (sign_in_torch, lambda x: x - x.topk(2).values[:, 1:], Sign.UNKNOWN),
    "jax, its largest": (sign_in_jax, lambda x: x - x.max(**ROWS), Sign.NOT_POSITIVE),
    "jax, its largest of all": (sign_in_jax, lambda x: x - x.max(), Sign.NOT_POSITIVE),
    "jax, broadcast": (sign_in_jax, lambda x: x - lax.stop_gradient(x.max(1))[:, None], Sign.NOT_POSITIVE),
    "jax, in a softmax": (sign_in_jax, lambda x: x - jnp.max(x, **ROWS, initial=-jnp.inf), Sign.NOT_POSITIVE),
    "jax, in a logarithm": (
        sign_in_jax,
        lambda x: x - (lambda m: jnp.where(jnp.isfinite(m), m, 0))(x.max(**ROWS)),
        Sign.NOT_POSITIVE,
    ),
    "jax, its smallest": (sign_in_jax, lambda x: x - x.min(0), Sign.NOT_NEGATIVE),
    "jax, turned": (sign_in_jax, lambda x: x.max(**ROWS) - x, Sign.NOT_NEGATIVE),
    "jax, of other rows": (sign_in_jax, lambda x: x - x.max(1), Sign.UNKNOWN),
    "jax, of another": (sign_in_jax, lambda x: x - (-x).max(**ROWS), Sign.UNKNOWN),
    "jax, with its axes turned": (sign_in_jax, lambda x: x.T - x.max(1), Sign.NOT_POSITIVE),
    "jax, turned before and after": (sign_in_jax, lambda x: x - x.T.max(**ROWS).T, Sign.NOT_POSITIVE),
    "jax, of other rows, with its axes turned": (sign_in_jax, lambda x: x.T - x.max(0), Sign.UNKNOWN),
    "jax, of rows that are columns": (sign_in_jax, lambda x: x - x.max(**ROWS).T, Sign.UNKNOWN),
    "jax, bounded": (sign_in_jax, lambda x: x - jnp.maximum(x.min(**ROWS), 0.1), Sign.UNKNOWN),
    "jax, replaced": (sign_in_jax, lambda x: x - (lambda m: jnp.where(m > 1, m, -9))(x.max(**ROWS)), Sign.UNKNOWN),
    "tensorflow, its largest": (sign_in_tensorflow, lambda x: x - tf.reduce_max(x, **ROWS), Sign.NOT_POSITIVE),
    "tensorflow, detached": (
        sign_in_tensorflow,
        lambda x: x - tf.stop_gradient(tf.reduce_max(x, **ROWS)),
        Sign.NOT_POSITIVE,
    ),
    "tensorflow, in a logarithm": (
        sign_in_tensorflow,
        lambda x: x - (lambda m: tf.where(tf.math.is_finite(m), m, tf.zeros_like(m)))(tf.reduce_max(x, **ROWS)),
        Sign.NOT_POSITIVE,
    ),
    "tensorflow, its smallest": (sign_in_tensorflow, lambda x: x - tf.reduce_min(x, **ROWS), Sign.NOT_NEGATIVE),
    "tensorflow, turned": (sign_in_tensorflow, lambda x: tf.reduce_max(x, **ROWS) - x, Sign.NOT_NEGATIVE),
    "tensorflow, of other rows": (sign_in_tensorflow, lambda x: x - tf.reduce_max(x, 1), Sign.UNKNOWN),
    "tensorflow, of another": (sign_in_tensorflow, lambda x: x - tf.reduce_max(-x, **ROWS), Sign.UNKNOWN),
    "tensorflow, replaced": (
        sign_in_tensorflow,
        lambda x: x - (lambda m: tf.where(m > 1, m, -9 * tf.ones_like(m)))(tf.reduce_max(x, **ROWS)),
        Sign.UNKNOWN,
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_sign_of_a_value_less_its_own_extreme(name):
    told, call, sign = DIFFERENCES[name]
    x = numbers(Sign.UNKNOWN)
    assert told(call, x) is sign
    result = call({sign_in_torch: torch.tensor, sign_in_jax: jnp.asarray, sign_in_tensorflow: tf.constant}[told](x))
    # Planted: what is not told is not so.
    assert all(is_true(claimed, result) == (claimed is sign) for claimed in (sign, Sign.NOT_POSITIVE) if claimed)


def test_what_a_loop_gathers_in_tensorflow_has_the_sign_of_its_turns():
    model = lambda x: tf.map_fn(lambda row: tf.nn.relu(row) / 2.0, x @ tf.eye(4, dtype=x.dtype) - 1.0)  # noqa: E731
    explained = GuidedBackprop(lambda x: (lambda y: y * tf.cast(y > 0, y.dtype))(model(x))).explain(
        tf.constant(numbers(Sign.UNKNOWN)), 0
    )
    assert [(row.name, row.treatment) for row in explained.coverage] == [("relu", "guided")]


def test_nan_among_constants_has_any_sign_in_each_framework():
    """It stands for no number at all."""
    for constant, sign in (
        ([0.5, np.nan], Sign.NOT_NEGATIVE),
        ([np.nan, -0.5], Sign.NOT_POSITIVE),
        ([np.nan], Sign.ZERO),
    ):
        array = np.array(constant)
        assert sign_of_tensor(torch.tensor(array)) is in_all.sign_of_array(array) is sign, constant
    one = [torch.zeros(2)], [Sign.NOT_NEGATIVE]
    assert sign_of_result("where", [one[0][0], float("nan")], {}, *one) is Sign.NOT_NEGATIVE
    assert sign_of_result("where", [one[0][0], -1.0], {}, *one) is Sign.UNKNOWN


def test_numbers():
    assert in_all.sign_of_array(np.array([0.0, 2.0, np.nan])) is Sign.NOT_NEGATIVE
    assert in_all.sign_of_array(np.array([np.nan])) is Sign.ZERO
    assert in_all.sign_of_array(np.array([1j])) is in_all.sign_of_array(np.array(["a"])) is Sign.UNKNOWN
    assert sign_of_numbers(0, 0) is Sign.ZERO
    assert sign_of_numbers(-1, 1) is Sign.UNKNOWN
    assert sign_of_numbers(float("nan"), float("nan")) is Sign.UNKNOWN
    assert OPERATIONS["std_mean"].word == "norm"
