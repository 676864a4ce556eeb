"""A subject: equal only if all is, whatever there is to say; its backend is made once; other versions keep the rest."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    ModelError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
    layer_names,
)
from guided_backprop.arrays import Inputs
from guided_backprop.backends import FRAMEWORKS, backend_of
from guided_backprop.methods import compare as comparing
from guided_backprop.methods.method import Method
from guided_backprop.subject import Subject, is_same
from networks import mlp
from networks_torch import to_torch

IMAGES = torch.tensor(np.random.default_rng(0).normal(size=(3, 4)))


def model_of(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        return to_torch(mlp(4, 8, 6, 2, seed=seed))


MODEL = model_of()
# For each thing that is said two values that differ.
SAID = {
    "model": (MODEL, model_of(1)),
    "output_layer": ("1", MODEL[1]),
    "input_layer": ("1", ("1", 0)),
    "output": (0, "logits"),
    "undo_head": (True, False),
    "vouch": ({}, {"Own": "plain"}),
    "memory": (None, "lean"),
    "is_optimized": (False, True),
}


def test_everything_that_is_said_is_in_the_table():
    assert SAID.keys() == {option.name for option in fields(Subject) if option.compare}


@pytest.mark.parametrize("name", SAID)
def test_subjects_are_equal_only_if_all_is(name):
    one, other = (Subject(**({"model": MODEL} | {name: value})) for value in SAID[name])
    assert one == replace(one)
    assert one != other
    assert one == replace(other, **{name: SAID[name][0]})


class Touchy(nn.Module):
    """A model whose == must not be asked."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = nn.Module.__hash__


def test_a_model_is_compared_by_identity():
    one, other = Touchy(), Touchy()
    assert Subject(one) == Subject(one)
    assert Subject(one) != Subject(other)
    assert Subject(MODEL, output_layer=one) != Subject(MODEL, output_layer=other)
    # A layer that is equal to another one stands elsewhere.
    assert Subject(MODEL, output_layer=partial(abs)) != Subject(MODEL, output_layer=partial(abs))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a", True),
        ({"a": "plain"}, {"a": "plain"}, True),
        ({"a": "plain"}, {"a": "relu"}, False),
        ((1, 2.5), (1, 2.5), True),
        (1, True, False),
        (np.ones(3), np.ones(3), False),
        ([np.ones(3)], [np.ones(3)], False),
        (float("nan"), float("nan"), False),
        (len, len, True),
        (None, "a", False),
    ],
)
def test_what_is_not_known_to_be_the_same_differs(one, other, expected):
    assert is_same(one, other) is expected


# An option that nobody here knows of.


@dataclass(frozen=True, eq=False, repr=False)
class Shifted(Subject):
    """Explains the model of shifted images."""

    shift: float = 0.0

    def backend(self, images: Any) -> Any:
        return Subject(lambda given: self.model(given + self.shift)).backend(images)


@dataclass(frozen=True, eq=False, repr=False)
class Forgetful(Shifted):
    """The planted fault: one option of a subject takes no part in what it is compared by."""

    shift: float = field(default=0.0, compare=False)


def shifted(kind: type[Subject], method: type[Method], shift: float) -> Method:
    explainer = method(MODEL)
    explainer.subject = kind(MODEL, shift=shift)
    return explainer


@pytest.mark.parametrize("kind", [Shifted, Forgetful])
def test_compare_runs_no_method_with_the_option_of_another(kind):
    methods = [shifted(kind, Saliency, 0.0), shifted(kind, GuidedBackprop, -3.0), shifted(kind, GuidedBackprop, 0.0)]
    alone = [method.explain(IMAGES, 0).attribution for method in methods]
    together = [explanations.attribution for explanations in compare(IMAGES, 0, methods)]
    assert not torch.equal(alone[1], alone[2])
    is_right = all(map(torch.equal, alone, together))
    # The comparison can fail: it does where the option is kept out of what is compared.
    assert is_right == (kind is Shifted)


class Scaled(Saliency):
    """A method with an option of its own, which it asks in a way of its own."""

    def __init__(self, model: Any, *, factor: float) -> None:
        super().__init__(model)
        self.factor = factor

    def explain_batch(self, backend: Any, inputs: Any, weigh: Any, score: Any) -> Any:
        plain = super().explain_batch(backend, inputs, weigh, score)
        return replace(
            plain, attribution=[maps.map(lambda gradient: self.factor * gradient) for maps in plain.attribution]
        )


class Negated(Saliency):
    """A method that overrides ``explain``."""

    def explain(self, images: Any, labels: Any = None, *, mask: Any = None) -> Any:
        return super().explain(-images, labels, mask=mask)


class Named(Saliency):
    """A method that only holds something more."""

    def __init__(self, model: Any, *, note: str) -> None:
        super().__init__(model)
        self.note = note


def test_compare_gives_what_each_method_of_a_users_own_gives_alone(monkeypatch):
    methods = [Saliency(MODEL), Scaled(MODEL, factor=2.0), Scaled(MODEL, factor=3.0), Negated(MODEL)]
    alone = [method.explain(IMAGES, 0).attribution for method in methods]

    def is_right() -> bool:
        together = [explanations.attribution for explanations in compare(IMAGES, 0, methods)]
        return all(map(torch.equal, alone, together))

    assert is_right()
    # The comparison can fail: with the two questions answered wrongly, methods are run as the first one is.
    monkeypatch.setattr(comparing, "_has_own_way", lambda kind: False)
    monkeypatch.setattr(comparing, "is_same", lambda one, other: True)
    monkeypatch.setattr(comparing, "vars", lambda method: {}, raising=False)
    assert not is_right()


def passes_of(methods: list[Method]) -> int:
    """Return how often ``compare`` runs the model forward."""
    count = 0

    def counted(module: Any, inputs: Any) -> None:
        nonlocal count
        count += 1

    with MODEL.register_forward_pre_hook(counted):
        compare(IMAGES, 0, methods)
    return count


def test_what_a_method_of_a_users_own_holds_decides_whether_a_pass_is_shared():
    assert passes_of([Named(MODEL, note="a"), Named(MODEL, note="a")]) == 1
    assert passes_of([Named(MODEL, note="a"), Named(MODEL, note="b")]) == 2
    assert passes_of([Named(MODEL, note="a"), Saliency(MODEL)]) == 2


# Its backend.


def test_a_backend_is_made_once_by_many_threads():
    subject = Subject(MODEL)
    with ThreadPoolExecutor(8) as pool:
        backends = list(pool.map(lambda _: subject.backend(IMAGES), range(32)))
    assert all(backend is backends[0] for backend in backends)
    assert replace(subject).backend(IMAGES) is not backends[0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method))])
@pytest.mark.parametrize("is_optimized", [False, True])
def test_methods_can_be_copied_and_sent(duplicate, is_optimized):
    method = GuidedBackprop(MODEL, output_layer="2", batch_size=2)
    method = method.optimize(IMAGES) if is_optimized else method
    expected = method.explain(IMAGES, 1)
    other = duplicate(method)
    assert (other.subject.is_optimized, other.batch_size) == (is_optimized, 2)
    torch.testing.assert_close(other.explain(IMAGES, 1).attribution, expected.attribution, rtol=1e-12, atol=1e-14)


def test_an_optimised_subject_stays_optimised_in_its_other_versions():
    subject = Subject(MODEL).optimized(IMAGES)
    assert subject.backend(IMAGES) is subject.backend(IMAGES)
    assert replace(subject, undo_head=False).is_optimized
    assert not subject.around(model_of(1)).is_optimized
    assert not subject.beginning_at("1").is_optimized


def test_a_function_is_of_the_framework_of_its_images():
    subject = Subject(lambda images: images * 2)
    for framework, images in {"torch": IMAGES, "tensorflow": tf.ones((2, 3)), "jax": jnp.ones((2, 3))}.items():
        assert subject.backend(images).framework == framework
        assert subject.backend(images) is subject.backend(images)
    with pytest.raises(ImageError, match="where the model is a plain function; received images=ndarray"):
        subject.backend(np.ones((2, 3)))
    subject.check()
    with pytest.raises(ModelError, match="which has no layers by name"):
        subject.layer_names()


def test_each_row_of_the_table_of_frameworks_leads_to_its_backend():
    for framework in FRAMEWORKS:
        assert backend_of(framework).framework == framework
        assert framework in sys.modules


@pytest.mark.parametrize("images", [tf.ones((2, 3)), jnp.ones((2, 3))])
def test_what_only_one_framework_has_is_refused_by_the_others(images):
    subject = Subject(lambda images: images, memory="lean")
    with pytest.raises(OptionError, match=r'memory="lean" is for PyTorch; received memory=.lean. for (tensorflow|jax)'):
        subject.backend(images)
    assert subject.backend(IMAGES).framework == "torch"


# Its other versions.


def test_up_to_and_beginning_at_a_layer():
    subject = Subject(MODEL, undo_head=False)
    for layer in ("1", 1, MODEL[1]):
        outputs = subject.up_to(layer).backend(IMAGES).outputs(Inputs.of(IMAGES))
        np.testing.assert_allclose(outputs, MODEL[:2](IMAGES).detach(), rtol=1e-12)
        assert subject.beginning_at(layer).undo_head is False
    with pytest.raises(OptionError, match="one of the model's 5 layers"):
        subject.up_to("9").check()
    with pytest.raises(OptionError, match="which is not in it"):
        subject.up_to(nn.ReLU()).check()
    with pytest.raises(OptionError, match=r"a pair \(layer, call\)"):
        subject.up_to(("1", "first")).check()


def test_around_a_copy_layers_that_were_given_by_themselves_are_the_copys():
    other = model_of(1)
    for method in (
        GuidedBackprop(MODEL, output_layer=MODEL[2]),
        GuidedGradCAM(cnn := convolutional(), cnn[1]),
        GradCAM(cnn, cnn[1]),
        SmoothGrad(GuidedBackprop(MODEL, output_layer=MODEL[2]), samples=2),
    ):
        is_cnn = method.subject.model is cnn
        images = torch.ones(2, 3, 6, 6, dtype=torch.float64) if is_cnn else IMAGES
        changed = convolutional(1) if is_cnn else other
        kind, layer = type(method), "1" if is_cnn else "2"
        if isinstance(method, SmoothGrad):
            fresh: Any = SmoothGrad(GuidedBackprop(changed, output_layer=(layer, 0)), samples=2)
        else:
            fresh = kind(changed, layer) if is_cnn else kind(changed, output_layer=(layer, 0))
        around = method.around(changed)
        assert around.subject == fresh.subject
        found, expected = around.explain(images, 1).attribution, fresh.explain(images, 1).attribution
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(found, method.explain(images, 1).attribution)


def convolutional(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)]
        model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[3].weight.abs_()
    return model


def test_layer_names():
    assert Subject(MODEL).layer_names() == layer_names(MODEL) == ["0", "1", "2", "3", "4"]


def test_reprs_are_one_line():
    vouch = {"Own": "plain"}
    assert repr(Subject(MODEL, output_layer="1")) == "Subject(Sequential, output_layer='1')"
    method = GuidedBackprop(MODEL, output_layer=MODEL[1], smooth="guide", batch_size=8, vouch=vouch)
    assert repr(method) == (
        "GuidedBackprop(Sequential, output_layer=ReLU, vouch={'Own': 'plain'}, batch_size=8, smooth='guide')"
    )
    assert repr(shifted(Shifted, Saliency, 2.0).subject) == "Shifted(Sequential, shift=2.0)"
    cnn = convolutional()
    assert repr(GradCAM(cnn, "1")) == "GradCAM(Sequential, input_layer='1', reducer='sum', interpolation='linear')"
    assert repr(GuidedGradCAM(cnn, "1")) == (
        "GuidedGradCAM(Sequential, interpolation='linear', at_layer=Subject(Sequential, input_layer='1'))"
    )
    assert repr(Saliency(MODEL, output_layer=(MODEL[2], 0))) == "Saliency(Sequential, output_layer=(Linear, 0))"
    assert repr(Named(MODEL, note="a")) == "Named(Sequential, note='a')"
    assert repr(SmoothGrad(Saliency(MODEL), samples=3)) == (
        "SmoothGrad(Saliency(Sequential), samples=3, noise=0.15, seed=0, form='mean')"
    )
