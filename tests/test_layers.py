"""Layers of PyTorch models, and named values of JAX functions: run from one on, up to one, one of its runs.

The truth is a function of the same weights of which no layer is named. Keras' layers are in keras_layers.py.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from guided_backprop import (
    GuidedBackprop,
    ImageError,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
    layer_names,
    neuron_gallery,
    sanity_check,
)
from guided_backprop.backends.torch.model.undrawn import Undrawn
from guided_backprop.jax import tap

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
TOKENS = np.random.default_rng(0).integers(0, 9, (4, 5))
rng = np.random.default_rng(1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


class Text(nn.Module):
    """A block of a transformer with one normalisation in three places, on tokens."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.rest(self.words(tokens))

    def rest(self, x):
        later = torch.ones(x.shape[1], x.shape[1], dtype=bool).triu(1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.norm(x).mean(1))


def in_torch():
    model = seeded(Text)
    tokens = torch.tensor(TOKENS)
    return model, model.rest, tokens, model.words(tokens).detach()


TABLE, FIRST, SECOND, HEAD = (rng.normal(size=size) for size in ((9, 8), (8, 6), (6, 6), (6, 3)))


def in_jax():
    def rest(x):
        x = tap("hidden", jax.nn.relu(x @ FIRST))
        return tap("hidden", jax.nn.relu(x @ SECOND)).mean(1) @ HEAD

    tokens = jnp.asarray(TOKENS)
    return lambda tokens: rest(tap("words", jnp.asarray(TABLE)[tokens])), rest, tokens, jnp.asarray(TABLE)[tokens]


FRAMEWORKS = {"torch": in_torch, "jax": in_jax}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tokens_are_explained_by_their_embeddings(framework):
    model, rest, tokens, embedded = FRAMEWORKS[framework]()
    expected = GuidedBackprop(rest).explain(embedded, [0, 1, 2, 1])
    found = GuidedBackprop(model, input_layer="words").explain(tokens, [0, 1, 2, 1])
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    np.testing.assert_array_equal(found.images, embedded)
    assert type(found.attribution) is type(found.images) is type(embedded)
    assert (found.attribution.dtype, found.coverage) == (embedded.dtype, expected.coverage)
    # What is made of a token is its channels, also where they are axis 1 of pictures.
    assert found.channel_axis == 2
    batches = GuidedBackprop(model, input_layer="words", batch_size=3, reducer="sum").explain(tokens, [0, 1, 2, 1])
    np.testing.assert_allclose(batches, np.asarray(expected).sum(2), **TOLERANCE)
    assert GuidedBackprop(model, input_layer="words").explain(tokens, "top2").attribution.shape == (4, 2, 5, 8)
    if framework == "torch":
        assert isinstance(GuidedBackprop(model, input_layer="words").explain(TOKENS, 1).attribution, np.ndarray)
    plain, guided = compare(tokens, 1, [kind(model, input_layer="words") for kind in (Saliency, GuidedBackprop)])
    np.testing.assert_allclose(guided, GuidedBackprop(rest).explain(embedded, 1), **TOLERANCE)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(plain, guided, **TOLERANCE)
    with pytest.raises(ImageError, match=r"dtype \S*int64.* of tokens explain the embeddings: pass input_layer="):
        GuidedBackprop(model).explain(tokens, 1)
    nothing = GuidedBackprop(model, input_layer="words").explain(tokens[:0])
    assert nothing.attribution.shape == nothing.images.shape == (0,)


def test_a_relu_that_is_spelled_behind_the_embeddings_is_guided():
    words, linear, head = (seeded(partial(kind, *sizes)) for kind, *sizes in (
        (nn.Embedding, 9, 6), (nn.Linear, 6, 5), (nn.Linear, 5, 2)
    ))  # fmt: skip

    class Spelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.linear, self.head = words, linear, head

        def forward(self, tokens):
            x = self.linear(self.words(tokens))
            return self.head((x * (x > 0)).mean(1))

    tokens = torch.tensor(TOKENS)
    found = GuidedBackprop(Spelled().eval(), input_layer="words").explain(tokens, 1)
    expected = GuidedBackprop(lambda x: head(torch.relu(linear(x)).mean(1))).explain(words(tokens).detach(), 1)
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_a_run_of_a_torch_layer():
    model, _, tokens, embedded = in_torch()
    with pytest.raises(ModelError, match=r"layer='norm', which was run 3 times\. Pass \('norm', 0\) .*'norm', 2\)"):
        GuidedBackprop(model, output_layer="norm", input_layer="words").explain(tokens, 1)
    with pytest.raises(ModelError, match="layer='norm', which was run 3 times"):
        GuidedBackprop(model, input_layer="norm").explain(tokens, 1)
    second = Saliency(model, input_layer=model.words, output_layer=(model.up, 0)).explain(tokens, (2, "max"))

    def up(x):
        y = model.norm(x)
        later = torch.ones(5, 5, dtype=bool).triu(1)
        return model.norm(x + model.attention(y, y, y, attn_mask=later, need_weights=False)[0])

    third = Saliency(model, input_layer="words", output_layer=("norm", 1)).explain(tokens, (2, "max"))
    np.testing.assert_allclose(third, Saliency(up).explain(embedded, (2, "max")), **TOLERANCE)
    assert second.outputs.shape == (4, 5, 16)
    with pytest.raises(OptionError, match=r"received \('norm', 3\) and a layer that was run 3 times\. Pass at most 2"):
        Saliency(model, input_layer="words", output_layer=("norm", 3)).explain(tokens, 1)
    with pytest.raises(OptionError, match="input_layer must be run before output_layer; received input_layer='down'"):
        Saliency(model, input_layer="down", output_layer="up").explain(tokens, 1)
    for wrong in (("norm",), ("norm", -1), ("norm", True), ("norm", "first")):
        with pytest.raises(OptionError, match=r"a pair \(layer, call\), the call an integer counted from 0"):
            Saliency(model, output_layer=wrong)


def test_a_value_of_a_jax_function_that_has_its_name_twice():
    model, _, tokens, embedded = in_jax()
    for call, function in enumerate(
        (lambda x: jax.nn.relu(x @ FIRST), lambda x: jax.nn.relu(jax.nn.relu(x @ FIRST) @ SECOND))
    ):
        method = GuidedBackprop(model, input_layer="words", output_layer=("hidden", call))
        expected = GuidedBackprop(function).explain(embedded, (2, "max"))
        np.testing.assert_allclose(method.explain(tokens, (2, "max")), expected, **TOLERANCE)
    for wrong, error, message in (
        ("hidden", ModelError, "which was run 2 times"),
        (("hidden", 2), OptionError, "Pass at most 1"),
    ):
        with pytest.raises(error, match=message):
            GuidedBackprop(model, input_layer="words", output_layer=wrong).explain(tokens, 1)
    with pytest.raises(OptionError, match="input_layer must be run before output_layer"):
        GuidedBackprop(model, input_layer=("hidden", 1), output_layer=("hidden", 0)).explain(tokens, 1)
    with pytest.raises(OptionError, match="explains its output, and from its inputs on"):
        sanity_check(GuidedBackprop(model, input_layer="words"), tokens)
    assert layer_names(model, tokens) == ["words", "hidden"]


OUTSIDE = nn.Linear(6, 6).double()


class Held(nn.Module):
    """Holds its layers in all ways, one of them under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.stages = [self.first, (nn.ReLU(), {"second": self.second})]
        self.again = self.second
        self.last = lambda x: self.head(x)
        self.begin = partial(self._call, self.first)
        self.outside, self.through = OUTSIDE, lambda x: OUTSIDE(OUTSIDE(x))

    def _call(self, layer, x):
        return layer(x)

    def forward(self, x):
        _, (relu, others) = self.stages
        x = others["second"](relu(self.begin(x)))
        return self.last(self.through(relu(self.again(x))))


def test_layers_are_met_however_they_are_held():
    model, rows = seeded(Held), torch.tensor(rng.normal(size=(5, 4)))
    below = lambda x: model.second(torch.relu(model.first(x)))  # noqa: E731
    for layer in ("second", "outside"):
        with pytest.raises(ModelError, match=f"received layer='{layer}', which was run 2 times"):
            GuidedBackprop(model, output_layer=layer).explain(rows, 1)
    found = GuidedBackprop(model, output_layer=("second", 0)).explain(rows, 1)
    np.testing.assert_allclose(found, GuidedBackprop(below).explain(rows, 1), **TOLERANCE)
    for layer in ("first", "head"):
        values = Saliency(model, input_layer=layer).explain(rows, 1).images
        expected = model.first(rows) if layer == "first" else model(rows)
        np.testing.assert_allclose(values, expected.detach(), **TOLERANCE)


def test_what_comes_behind_the_last_layer_is_run_once_and_may_fail():
    calls = []

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(7, 3)

        def forward(self, x):
            x = torch.relu(self.first(x))
            calls.append(x)
            return self.last(x)

    model, rows = Fails().double().eval(), torch.ones(2, 4).double()
    method = Saliency(model, output_layer="first")
    for _ in range(3):
        method.explain(rows, 1)
    assert len(calls) == 1
    Saliency(model, output_layer=("first", 0)).explain(rows, 1)
    assert len(calls) == 1


class Frozen(nn.Module):
    """Runs its backbone without gradients."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, images):
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)


class Sampling(nn.Module):
    """Works in place on what it is given, and draws random numbers behind the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.first(x.mul_(2)))
        x = nn.functional.dropout(x + torch.randn_like(x).normal_(), 0.5, training=True)
        x = nn.functional.rrelu(x + torch.normal(x, x.abs()) + torch.rand(6), training=True)
        x = nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0]
        return self.second(x)


def test_to_count_the_runs_of_a_layer_nothing_is_drawn_and_no_image_changed():
    model, rows = seeded(Sampling), torch.tensor(rng.normal(size=(5, 4)))
    given, state = rows.clone(), torch.get_rng_state()
    found = GuidedBackprop(model, output_layer="relu").explain(given, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(given, rows, rtol=0, atol=0)
    weight = model.first.weight[1].detach()
    torch.testing.assert_close(found.attribution, 2 * weight * (2 * rows @ weight + model.first.bias[1] > 0)[:, None])
    # The planted fault: the model itself draws, and changes what it is given.
    model(given)
    assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(given, rows)
    torch.set_rng_state(state)
    # What only may draw is run: the count is that of the values.
    with Undrawn(), torch.no_grad():
        x = torch.ones(2, 3, 4)
        torch.testing.assert_close(nn.functional.scaled_dot_product_attention(x, x, x), x)
        torch.testing.assert_close(nn.functional.dropout(x, 0.5, training=False), x)
        assert not torch.rand(3, generator=torch.Generator()).any()
        assert torch.randint(5, (2, 2)).dtype == torch.int64
    assert torch.equal(torch.get_rng_state(), state)


def test_from_a_frozen_backbone_on():
    model, images = seeded(Frozen), torch.tensor(rng.normal(size=(3, 3, 8, 8)))
    features = model.backbone(images).detach()
    expected = GuidedBackprop(model.head).explain(features.clone(), 1)
    for memory in (None, "lean"):
        method = GuidedBackprop(model, input_layer="backbone", memory=memory)
        np.testing.assert_allclose(method.explain(images, 1), expected, **TOLERANCE)
        np.testing.assert_allclose(method.optimize(images).explain(images, 1), expected, **TOLERANCE)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: method.explain(images, 1), range(8)):
            np.testing.assert_array_equal(found, method.explain(images, 1))
    check = sanity_check(GuidedBackprop(model, input_layer=model.backbone), images, 1)
    assert check.blocks[0] == ("head.3",)
    assert "convergence is measured at the images alone: no layer inside can be named" in check.notes


def test_what_cannot_begin_at_a_layer_is_refused():
    model = in_torch()[0]
    with pytest.raises(
        OptionError, match="SmoothGrad puts noise on images; received a method with input_layer='words'"
    ):
        SmoothGrad(Saliency(model, input_layer="words"))
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(OptionError, match="a gallery shows images and explains them"):
        neuron_gallery(convolutional, "1", 0, torch.rand(2, 3, 8, 8), method=partial(GuidedBackprop, input_layer="0"))

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.several, self.rows = nn.LSTM(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.several(x)[0].mean(1) + self.rows(x.transpose(0, 1)).mean(0)

    turned, series = Turned().eval(), torch.rand(2, 5, 4)
    with pytest.raises(ModelError, match="one real array with a row per image.*; received tuple"):
        Saliency(turned, input_layer="several").explain(series, 1)
    with pytest.raises(ModelError, match=r"\(2, \.\.\.\); received torch.float32, \(5, 2, 3\)"):
        Saliency(turned, input_layer="rows").explain(series, 1)
    with pytest.raises(OptionError, match="which is not in it"):
        Saliency(model, input_layer=nn.Linear(2, 2))
