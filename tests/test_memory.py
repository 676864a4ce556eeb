"""Models, weights, methods and results are freed when the user lets go of them, and nothing grows with their number."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import linen, nnx
from tensorflow.python.eager import context
from tensorflow.python.framework import ops
from torch import nn

from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    NoReluError,
    Saliency,
    SmoothGrad,
    sanity_check,
)
from guided_backprop.backends import kept
from guided_backprop.backends.jax import backend as jax_backend
from guided_backprop.backends.kept import Kept, shared_of
from guided_backprop.backends.tensorflow import plan
from guided_backprop.backends.tensorflow.hidden import values as tensorflow_values

ROWS = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
PICTURES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")


class Case(NamedTuple):
    """A model, what its weights are in memory, and what is done with it."""

    model: Any
    weights: Iterable[Any]
    explain: Callable[[Any], Any]


def guided(model: Any) -> Any:
    return GuidedBackprop(model).explain(ROWS, 1)


# PyTorch.


def torch_module(*activation: nn.Module, explain: Callable[[Any], Any] = guided) -> Case:
    model = nn.Sequential(nn.Linear(6, 5), *(activation or [nn.ReLU()]), nn.Linear(5, 3)).eval()
    return Case(model, list(model.parameters()), explain)


def torch_class() -> Case:
    """A class that holds weights, as one that is defined in a function."""
    weight = nn.Parameter(torch.randn(6, 5))

    class Spelled(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            y = images @ weight
            return y * (y > 0)

    return Case(Spelled().eval(), [weight], guided)


def torch_images(explain: Callable[[Any, Any], Any]) -> Case:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).eval()
    images = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    return Case(model, list(model.parameters()), lambda model: explain(model, images))


TORCH = {
    "module": torch_module,
    "a class that holds weights": torch_class,
    "lean": lambda: torch_module(explain=lambda model: GuidedBackprop(model, memory="lean").explain(ROWS, 1)),
    "optimised": lambda: torch_images(lambda model, x: GuidedBackprop(model).optimize(x).explain(x, 1)),
    "a layer": lambda: torch_images(lambda model, x: GuidedGradCAM(model, model[2]).explain(x, 1)),
    "checked": lambda: torch_images(lambda model, x: sanity_check(GuidedBackprop(model), x)),
}


# TensorFlow, and Keras on it.


def keras_model(explain: Callable[[Any], Any] = guided) -> Case:
    layers = [keras.Input((6,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([*layers, keras.layers.ReLU()])
    return Case(model, [variable.value.handle for variable in model.variables], explain)


def keras_images(explain: Callable[[Any], Any]) -> Case:
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="conv")
    model = keras.Sequential([keras.Input((6, 6, 3)), conv, keras.layers.Flatten(), keras.layers.Dense(3)])
    return Case(model, [variable.value.handle for variable in model.variables], explain)


def refused(model: Any) -> None:
    with pytest.raises(NoReluError):
        GuidedBackprop(model).explain(ROWS, 1)


class Module(tf.Module):
    def __init__(self, activation: Callable[[Any], Any]) -> None:
        super().__init__()
        self.weight, self.activation = tf.Variable(tf.random.normal((6, 5))), activation

    def __call__(self, images: Any) -> Any:
        return self.activation(images @ self.weight)


def module(activation: Callable[[Any], Any]) -> Case:
    model = Module(activation)
    return Case(model, [model.weight.handle], lambda model: GuidedBackprop(model).explain(tf.constant(ROWS), 1))


def looped(y: Any) -> Any:
    """A ReLU in a loop, beside a mask that is no ReLU on any image: its values are seen by a call out of the loop."""
    step = lambda turn, y: (turn + 1, tf.nn.relu(y) * tf.cast(tf.reduce_max(y) > -9.0, y.dtype))  # noqa: E731
    return tf.while_loop(lambda turn, y: turn < 2, step, [0, y])[1]


def chosen(y: Any) -> Any:
    return tf.cond(tf.reduce_sum(y) > 0, lambda: tf.nn.relu(y), lambda: 2 * tf.nn.relu(y))


TENSORFLOW = {
    "keras": keras_model,
    # Its gradient is a custom one of TensorFlow's, which is registered by name; Keras itself leaves such a one behind.
    "a custom gradient": lambda: module(lambda y: tf.nn.relu(tf.nn.silu(y))),
    "refused": lambda: module(tf.nn.silu)._replace(explain=refused),
    "recomputed": lambda: module(tf.recompute_grad(lambda y: tf.nn.relu(y) * tf.nn.silu(y))),
    "a score": lambda: keras_model(explain=lambda model: Saliency(model).explain(ROWS, lambda outputs: outputs[:, 0])),
    "a layer": lambda: keras_images(lambda model: GuidedGradCAM(model, "conv").explain(PICTURES, 1)),
    "noise": lambda: keras_images(lambda model: SmoothGrad(GradCAM(model, "conv"), samples=2).explain(PICTURES, 1)),
    "checked": lambda: keras_images(lambda model: sanity_check(GuidedBackprop(model), PICTURES)),
    "tf.Module": lambda: module(tf.nn.relu),
    "a loop": lambda: module(looped),
    "a branch": lambda: module(chosen),
    "no operation": lambda: module(lambda y: tf.nn.relu(y) + tf.sqrt(tf.reduce_mean(y * y) + 1.0)),
}


# JAX.


def jax_function(activation: Callable[[Any], Any] = jax.nn.relu) -> Case:
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)
    return Case(lambda images: activation(images @ weight), [weight], jax_guided)


def jax_guided(model: Any) -> Any:
    return GuidedBackprop(model).explain(jnp.asarray(ROWS), 1)


class Net(nnx.Module):
    def __init__(self) -> None:
        self.first, self.second = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(0))

    def __call__(self, images: Any) -> Any:
        return self.second(nnx.relu(self.first(images)))


def of_nnx() -> Case:
    model = Net()
    return Case(model, jax.tree.leaves(nnx.state(model)), jax_guided)


def of_equinox() -> Case:
    inner = equinox.nn.MLP(6, 3, 5, 1, key=jax.random.key(0))
    return Case(jax.vmap(inner), jax.tree.leaves(equinox.filter(inner, equinox.is_array)), jax_guided)


def of_linen() -> Case:
    inner = linen.Sequential([linen.Dense(5), linen.relu, linen.Dense(3)])
    variables = inner.init(jax.random.key(0), ROWS)
    return Case(partial(inner.apply, variables), jax.tree.leaves(variables), jax_guided)


def custom() -> Case:
    @jax.custom_jvp
    def rect(y: Any) -> Any:
        return jnp.maximum(y, 0)

    rect.defjvp(lambda values, slopes: (rect(*values), jnp.where(values[0] > 0, slopes[0], 0)))
    explain = lambda model: GuidedBackprop(model, vouch={"rect": "relu"}).explain(jnp.asarray(ROWS), 1)  # noqa: E731
    return jax_function(rect)._replace(explain=explain)


JAX = {
    "function": jax_function,
    "spelled": lambda: jax_function(lambda y: y * (y > 0)),
    "a custom derivative": custom,
    "nnx": of_nnx,
    "equinox": of_equinox,
    "linen": of_linen,
}
CASES = {"torch": TORCH, "tensorflow": TENSORFLOW, "jax": JAX}
NAMES = [pytest.param(make, id=f"{name}: {kind}") for name, made in CASES.items() for kind, make in made.items()]


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new() -> None:
    """To look through all that other tests have made takes long: the collector leaves it alone from here on."""
    gc.collect()
    gc.freeze()


def references(make: Callable[[], Case]) -> list[weakref.ref[Any]]:
    """Explain a model and let go of all; return weak references to the model, the weights and the result."""
    case = make()
    held = [case.model, *case.weights, case.explain(case.model)]
    return [weakref.ref(one) for one in held if one is not None]


def collect() -> None:
    """Collect until nothing is left: what goes first may be what something else was kept for."""
    while gc.collect():
        pass


def alive(refs: list[weakref.ref[Any]]) -> int:
    collect()
    return sum(ref() is not None for ref in refs)


@pytest.mark.parametrize("make", NAMES)
def test_all_is_freed(make):
    assert alive(references(make)) == 0


KEPT: list[Any] = []


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_shows(name):
    """The planted fault: somebody holds the method."""

    def keeping(model: Any) -> Any:
        KEPT.append(Saliency(model))
        return KEPT[-1].explain(ROWS if name != "jax" else jnp.asarray(ROWS), 1)

    make = next(iter(CASES[name].values()))
    refs = references(lambda: make()._replace(explain=keeping))
    assert alive(refs) >= 2
    KEPT.clear()
    assert alive(refs) == 0


class Noted:
    """The planted fault: a call out of a graph as ``tf.numpy_function`` notes it, for the life of the process."""

    def __init__(self, function: Callable[..., Any], *results: Any) -> None:
        self.function, self.results = function, results

    def __call__(self, arguments: Any) -> Any:
        return tf.numpy_function(self.function, arguments, list(self.results))


def test_a_function_that_tensorflow_notes_keeps_all(monkeypatch):
    monkeypatch.setattr(tensorflow_values, "CallOut", Noted)
    refs = references(TENSORFLOW["no operation"])
    assert alive(refs) > 0
    # Not for the other tests.
    ops.get_default_graph()._py_funcs_used_in_graph.clear()
    assert alive(refs) == 0


# With their number.


def numbers(name: str) -> Counter[str]:
    """Count what a framework keeps of graphs, arrays and names, and our own objects."""
    collect()
    counted: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if str(kind.__module__).startswith("guided_backprop") or kind.__name__ in COUNTED[name]:
            counted[kind.__name__] += 1
    if name == "tensorflow":
        counted["gradients"] = len(ops.gradient_registry.list())
        counted["functions"] = len(context.context().list_function_names())
        counted["calls out"] = len(getattr(ops.get_default_graph(), "_py_funcs_used_in_graph", []))
    return counted


COUNTED = {
    "torch": {"Tensor", "Parameter", "Sequential"},
    "tensorflow": {"FuncGraph", "Graph", "EagerTensor", "ConcreteFunction", "AtomicFunction", "Operation"},
    "jax": {"ArrayImpl", "PjitFunction", "Jaxpr", "WrappedFun"},
}


@pytest.mark.parametrize("name", CASES)
def test_many_methods_on_one_model_grow_nothing(name):
    case = next(iter(CASES[name].values()))()
    images = jnp.asarray(ROWS) if name == "jax" else ROWS

    def explain(turn: int) -> None:
        (Saliency, DeconvNet, GuidedBackprop)[turn % 3](case.model).explain(images, 1)

    for turn in range(3):
        explain(turn)
    before = numbers(name)
    for turn in range(300):
        explain(turn)
    assert numbers(name) - before == Counter()


@pytest.mark.parametrize(("name", "count"), [("torch", 60), ("tensorflow", 20), ("jax", 60)])
def test_many_models_grow_nothing(name, count):
    make = next(iter(CASES[name].values()))
    alive(references(make))
    before = numbers(name)
    refs = [ref for _ in range(count) for ref in references(make)]
    assert alive(refs) == 0
    assert numbers(name) - before == Counter()
    # The count can fail.
    case = make()
    case.explain(case.model)
    method = Saliency(case.model)
    assert method.subject.model is case.model
    assert numbers(name) - before != Counter()


# What methods on one model share.


@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_methods_on_one_model_share_what_was_made_of_it(name, monkeypatch):
    module, function = {"tensorflow": (plan, "build"), "jax": (jax_backend, "passes")}[name]
    built, original = [], getattr(module, function)
    monkeypatch.setattr(module, function, lambda *given: built.append(given) or original(*given))
    monkeypatch.setattr(jax_backend, "SHARED", Kept())
    model, _, explain = next(iter(CASES[name].values()))()
    first = explain(model).attribution
    assert len(built) == 1
    for _ in range(3):
        gc.collect()
        np.testing.assert_array_equal(explain(model).attribution, first)
    assert len(built) == 1
    # The count can fail: another rule is built for.
    GuidedBackprop(model, smooth="guide").explain(ROWS if name == "tensorflow" else jnp.asarray(ROWS), 1)
    assert len(built) == 2


class Changing:
    """A model that does what it is told at any time."""

    def __init__(self, framework: Any) -> None:
        self.framework, self.scale = framework, 1.0

    def __call__(self, images: Any) -> Any:
        return self.framework.nn.relu(images * self.scale)


@pytest.mark.parametrize(("framework", "images"), [(tf, tf.ones((2, 3))), (jax, jnp.ones((2, 3)))], ids=["tf", "jax"])
def test_a_method_made_later_explains_the_model_as_it_is_then(framework, images):
    model = Changing(framework)
    for scale in (1.0, 3.0, 1.0, -2.0):
        model.scale = scale
        expected = np.zeros((2, 3))
        expected[:, 1] = max(scale, 0.0)
        np.testing.assert_array_equal(GuidedBackprop(model).explain(images, 1).attribution, expected)


def test_a_bound_method_shares_by_what_it_is_bound_to_and_what_cannot_be_referred_to_shares_nothing():
    model = Module(tf.nn.relu)
    assert shared_of(model.__call__) is shared_of(model.__call__) is shared_of(model)
    assert shared_of(len) is shared_of(len)

    class Bare:
        __slots__ = ()

        def __call__(self, images: Any) -> Any:
            return images

    bare = Bare()
    assert shared_of(bare) is not shared_of(bare)
    number = id(model)
    assert number in kept._OF_MODELS
    ref = weakref.ref(model)
    del model
    assert alive([ref]) == 0
    assert number not in kept._OF_MODELS
