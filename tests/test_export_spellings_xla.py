"""Each way to write a ReLU in JAX and TensorFlow gives the oracle's maps as a graph too, or is refused by name.

A graph holds several ways, each in a network of two layers: the sum of the networks has the sum of their maps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

from guided_backprop import GuidedBackprop, ModelError, OpaqueRegionError
from guided_backprop.arrays import Inputs
from guided_backprop.backends.jax.export import JaxGraph
from guided_backprop.backends.tensorflow.export import TensorFlowGraph
from networks import LABELS
from spellings import column
from spellings.arithmetic import ARITHMETIC
from spellings.relus import RELUS

GRAPHS = {"jax": (JaxGraph, jnp.asarray), "tensorflow": (TensorFlowGraph, tf.constant)}
RNG = np.random.default_rng(0)
FIRST, SHIFT, LAST = RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=(4, 5))
# As many values as a way needs that is known by them.
IMAGES = RNG.normal(size=(4, 6, 5, 3))
# So many ways at once: in JAX what is found of one has the rest looked at again.
MANY = {"jax": 5, "tensorflow": 15}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def parts(framework: str) -> list[tuple[str, list[str]]]:
    """Return a framework's ways, part by part.

    In TensorFlow what is spelled as arithmetic is alone: a sum of several leaves open whether it is one itself.
    """
    ways = [*column(RELUS | ARITHMETIC, framework, "guided")]
    alone = [name for name in ways if framework == "tensorflow" and name in ARITHMETIC]
    rest = [name for name in ways if name not in alone]
    many = MANY[framework]
    several = [rest[begin : begin + many] for begin in range(0, len(rest), many)]
    return [(framework, names) for names in (*several, *([name] for name in alone))]


def total(framework: str, ways):
    """Return the sum of networks, which differ in how their ReLU is written."""
    if framework == "jax":
        return lambda x: sum((way(x @ FIRST + SHIFT) @ LAST).sum((1, 2)) for way in ways)
    first, last = (lambda x, weights=weights: tf.tensordot(x, tf.constant(weights), 1) for weights in (FIRST, LAST))
    return lambda x: tf.add_n([tf.reduce_sum(last(way(first(x) + SHIFT)), (1, 2)) for way in ways])


def oracle(rule: str = "guided"):
    """Return the map of one network, from the formulas alone."""
    x = IMAGES @ FIRST + SHIFT
    g = np.broadcast_to(LAST[:, LABELS].T[:, None, None], x.shape)
    left = {"saliency": g * (x > 0), "deconvnet": np.maximum(g, 0), "guided": np.maximum(g, 0) * (x > 0)}[rule]
    return left @ FIRST.T


@pytest.mark.parametrize(("framework", "names"), [*parts("jax"), *parts("tensorflow")])
def test_every_way_is_a_graph(framework, names):
    ways = [column(RELUS | ARITHMETIC, framework, "guided")[name] for name in names]
    kind, given = GRAPHS[framework]
    method = GuidedBackprop(total(framework, ways))
    graph = kind(method.subject, Inputs.of(given(IMAGES)), method.plan)
    found = graph.run([IMAGES, np.array(LABELS)])["attribution"] / len(ways)
    assert_allclose(found, oracle(), rtol=1e-9, atol=1e-12)
    # Planted faults: one way of all under another rule.
    for rule in ("saliency", "deconvnet"):
        fault = oracle() + (oracle(rule) - oracle()) / len(ways)
        assert not np.allclose(found, fault, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", GRAPHS)
def test_what_explain_refuses_is_refused(framework, tmp_path):
    way = next(iter(column(RELUS | ARITHMETIC, framework, "refused").values()))
    path = tmp_path / ("map.stablehlo" if framework == "jax" else "map")
    with pytest.raises((OpaqueRegionError, ModelError)):
        GuidedBackprop(total(framework, [way])).export(path, GRAPHS[framework][1](IMAGES))
    assert not list(tmp_path.iterdir())
