"""docs/coming-from.md: what each row says to write here runs, and what it says of the maps is so."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import guided_backprop
from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    OptionError,
    Saliency,
    SmoothGrad,
)
from guided_backprop.foreign import ARGUMENTS, OF_METHODS, OF_RESULTS

PAGE = (Path(__file__).parents[1] / "docs/coming-from.md").read_text()
PUBLIC = (GuidedBackprop, GuidedBackprop.explain, GradCAM, GuidedGradCAM, SmoothGrad)


def sections() -> dict[str, list[list[str]]]:
    """Return the cells of each row of each section's tables, without the heads."""
    tables = {}
    for section in PAGE.split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        # Where code holds a bar, it is none between cells.
        rows = [re.split(r"(?<!\\) \| | \|$", line.removeprefix("| ")) for line in lines]
        tables[name] = [row for row in rows if not row[0].startswith("|---")][1:]
    return tables


SECTIONS = {name: rows for name, rows in sections().items() if rows and name != "Names"}


def in_torch() -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).eval()
    images, ids = torch.rand(2, 3, 8, 8), [1, 2]
    method = GuidedBackprop(model)
    held = {"model": model, "layer": "1", "images": images, "ids": ids, "one_hot": torch.eye(3)[ids], "method": method}
    return held | {"explanations": method.explain(images, ids)}


def in_keras() -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="features")
    model = keras.Sequential([keras.Input((8, 8, 3)), conv, keras.layers.Flatten(), keras.layers.Dense(3)])
    perceptron = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)])
    images, ids = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32"), [1, 2]
    method, one_hot = GuidedBackprop(model), np.eye(3)[ids]
    rows = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, one_hot)).batch(2)
    held = {"model": model, "layer": "features", "images": images, "ids": ids, "one_hot": one_hot, "method": method}
    explanations = method.explain(images, ids)
    return held | {"explanations": explanations, "perceptron": perceptron, "rows": rows, "dataset": dataset}


NAMES = {name: getattr(guided_backprop, name) for name in guided_backprop.__all__} | {
    "guided_backprop": guided_backprop,
    "np": np,
    "tf": tf,
    "keras": keras,
}


@pytest.fixture(scope="module")
def held() -> dict[str, dict[str, Any]]:
    """Return what the snippets of a section speak of."""
    import guided_backprop.render  # noqa: F401 - its public path

    frameworks = {"torch": in_torch(), "keras": in_keras()}
    ours = {"From Xplique": "keras", "From iNNvestigate": "keras", "From tf-keras-vis": "keras"}
    return {section: NAMES | frameworks[ours.get(section, "torch")] for section in SECTIONS}


def run(snippet: str, names: dict[str, Any]) -> None:
    """Run what a cell says to write: an expression; or arguments, of which there have to be such."""
    try:
        code = compile(snippet, "coming-from.md", "eval")
    except SyntaxError:
        arguments = re.sub(r"=(?=$|,)", "=None", snippet)
        call = ast.parse(f"call({arguments})", mode="eval").body
        for keyword in call.keywords:
            assert any(keyword.arg in inspect.signature(public).parameters for public in PUBLIC), snippet
        return
    result = eval(code, dict(names))
    if inspect.isgenerator(result):
        list(result)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_row_runs(section, held):
    for _, here, *_ in SECTIONS[section]:
        for snippet in re.findall(r"`([^`]+)`", here):
            names = held[section]
            if section == "From Captum" and ("(2, 1, 1)" in snippet or snippet.startswith("lambda")):
                names = names | {"layer": "3"}
            run(snippet.replace("noise=)", "noise=0.1)"), names)


def test_a_row_that_is_wrong_is_seen(held):
    names = held["From Xplique"]
    with pytest.raises(NameError):
        run("GuidedBackprop(model)(images, targets)", names)
    with pytest.raises(TypeError):
        run("GuidedBackprop(model).explain(images, target=1)", names)
    with pytest.raises(AssertionError):
        run("targets=None", names)


def test_every_known_name_is_on_the_page():
    names = PAGE.partition("\n## Names\n")[2].partition("\n## ")[0]
    for table in (ARGUMENTS, OF_METHODS, OF_RESULTS):
        for name, answer in table.items():
            assert re.search(rf"^\|.*`{name}`.*\| {re.escape(answer)} \|$", names, re.MULTILINE), name
    assert not re.search("`qqq`", names)


# What the third column says.


def test_reducers_as_in_xplique(held):
    names = held["From Xplique"]
    model, images, ids = names["model"], names["images"], names["ids"]
    whole = np.asarray(GuidedBackprop(model).explain(images, ids))
    for reducer, reduced in (("mean", whole.mean(-1)), ("absmax", np.abs(whole).max(-1))):
        found = GuidedBackprop(model, reducer=reducer)(images, names["one_hot"])
        assert found.shape == (2, 8, 8)
        np.testing.assert_allclose(found, reduced, rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match="reducer needs images with channels"):
        GuidedBackprop(names["perceptron"], reducer="mean").explain(names["rows"])
    conv = keras.layers.Conv1D(4, 3, activation="relu")
    series = keras.Sequential([keras.Input((9, 2)), conv, keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(2)])
    assert GuidedBackprop(series, reducer="mean").explain(np.ones((3, 9, 2), "float32")).shape == (3, 9)


def test_data_sets_as_in_xplique(held):
    names = held["From Xplique"]
    np.testing.assert_array_equal(names["method"](names["dataset"]), names["explanations"])


def test_seeds_that_are_the_outputs_own_values(held):
    """In iNNvestigate and zennit: the map in proportion to the score, where that is positive, or the sum over all."""
    for section, square in (("From iNNvestigate", lambda y: keras.ops.max(y, axis=1) ** 2 / 2), ("From zennit", None)):
        names = held[section]
        method, images = names["method"], names["images"]
        if square is not None:
            top = method.explain(images)
            # Guided maps are in proportion to a seed; one that is negative begins with another sign.
            expected = method.explain(images, np.eye(3)[top.labels] * top.outputs)
            np.testing.assert_allclose(method.explain(images, square), expected, rtol=1e-4, atol=1e-6)
            positive = top.scores > 0
            scaled = np.asarray(top) * top.scores[:, None, None, None]
            np.testing.assert_allclose(np.asarray(expected)[positive], scaled[positive], rtol=1e-4, atol=1e-6)
            assert positive.any()
        else:
            weighed = method.explain(images, lambda output: (output**2).sum(1) / 2)
            expected = method.explain(images, weighed.outputs.astype(float))
            np.testing.assert_allclose(weighed, expected, rtol=1e-4, atol=1e-6)


def test_an_option_is_stated_for_each_method():
    for kind in (DeconvNet, Saliency):
        assert inspect.signature(kind) == inspect.signature(GuidedBackprop)
