"""Names of other libraries: each has an answer that says what to write, signatures stay true, and copies work."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from guided_backprop import Explanation, Explanations, GradCAM, GuidedBackprop, OptionError, SmoothGrad, compare
from guided_backprop.foreign import ARGUMENTS, OF_METHODS, OF_RESULTS, Answering, answering

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
IMAGES = torch.rand(2, 3, 8, 8)
METHOD = GuidedBackprop(MODEL)
FOUND = METHOD.explain(IMAGES)

# As they are called elsewhere, and what the error says of it.
CALLS = {
    "Captum's target": (lambda: METHOD.explain(IMAGES, target=1), "received target=1. It is called labels"),
    "Xplique's targets": (lambda: METHOD.explain(inputs=IMAGES, targets=IMAGES), "It is called images"),
    "Xplique's operator": (lambda: GuidedBackprop(MODEL, operator=None), "What is explained is said in explain"),
    "Xplique's second argument": (lambda: GuidedBackprop(MODEL, -1), r"also -1. Name what it is: output_layer="),
    "Xplique's nb_samples": (lambda: SmoothGrad(METHOD, nb_samples=5), r"SmoothGrad\(method, samples="),
    "Xplique's conv_layer": (lambda: GradCAM(MODEL, conv_layer="0"), r"GradCAM\(model, layer\)"),
    "no layer": (lambda: GradCAM(MODEL), "received no layer. Name a convolutional layer"),
    "no images": (lambda: METHOD(), "received no images"),
    "images twice": (lambda: METHOD(IMAGES, images=IMAGES), "takes images once"),
    "an option of the method": (lambda: METHOD(IMAGES, batch_size=1), r"GuidedBackprop\(..., batch_size=...\)"),
    "an argument of explain": (lambda: GuidedBackprop(MODEL, labels=1), r"an option of explain\(..., labels"),
    "a slip of the pen": (lambda: GuidedBackprop(MODEL, batchsize=1), "Did you mean batch_size="),
    "nothing alike": (lambda: GuidedBackprop(MODEL, qqq=1), "received qqq=1. Leave it out."),
    "a tensor is named, not printed": (lambda: METHOD.explain(IMAGES, target=IMAGES), "received target=Tensor"),
    "two arguments of compare": (lambda: compare(IMAGES, 1), "received no methods"),
    "axes": (lambda: FOUND.plot(axes=None), "It is called ax: explanations"),
    "a folder's option": (lambda: FOUND.save("maps", path="maps"), "plot"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_answered(name):
    call, answer = CALLS[name]
    with pytest.raises(TypeError, match=answer):
        call()


def test_every_argument_of_the_table_is_answered_where_it_does_not_exist():
    for call in (METHOD.explain, METHOD.__call__, METHOD.explain_batches, FOUND.plot):
        own = inspect.signature(call).parameters
        for name, answer in ARGUMENTS.items():
            if name in own:
                continue
            with pytest.raises(TypeError) as caught:
                call(IMAGES, **{name: 1})
            # What is an option of the method is said so.
            assert answer in str(caught.value) or f"{name}=...)" in str(caught.value)


def test_every_attribute_of_the_table_is_answered():
    for thing, answers in ((METHOD, OF_METHODS), (SmoothGrad(METHOD), OF_METHODS), (FOUND[0], OF_RESULTS)):
        for name, answer in answers.items():
            with pytest.raises(AttributeError) as caught:
                getattr(thing, name)
            assert answer in str(caught.value)
            assert not hasattr(thing, name)
    assert {name for name in OF_RESULTS if hasattr(FOUND, name)} == {"plot", "save"}


def test_other_attributes_have_pythons_own_error():
    with pytest.raises(AttributeError, match="object has no attribute 'qqq'"):
        _ = METHOD.qqq

    class Broken(Answering):
        answers = {"whole": "Mend it."}  # noqa: RUF012 - as the table is

        @property
        def whole(self):
            return self.missing

    # The property's own error, and no answer about a name that exists.
    with pytest.raises(AttributeError, match="'missing'"):
        _ = Broken().whole


def test_signatures_stay_true():
    parameters = inspect.signature(GuidedBackprop).parameters
    assert list(parameters)[:2] == ["model", "output_layer"]
    for call in (GuidedBackprop, GradCAM, SmoothGrad, METHOD.explain, METHOD, FOUND.plot, FOUND.save, compare):
        kinds = {parameter.kind for parameter in inspect.signature(call).parameters.values()}
        assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert "Explain the score" in METHOD.explain.__doc__

    @answering
    def planted(images, *, labels=None):
        return images, labels

    assert planted(1, labels=2) == (1, 2)
    with pytest.raises(TypeError, match="images twice|takes images once"):
        planted(1, images=2)


def test_an_error_inside_of_a_call_is_left_alone():
    @answering
    def planted(images):
        raise TypeError("an error of its own")

    with pytest.raises(TypeError, match="^an error of its own$"):
        planted(1)


def test_copies_and_pickles_are_what_they_were():
    for thing in (METHOD, SmoothGrad(METHOD), FOUND, FOUND[0]):
        for other in (copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
            assert repr(other) == repr(thing)
            assert isinstance(other, type(thing))


def test_a_method_is_no_model():
    with pytest.raises(OptionError, match=r"received model=GuidedBackprop. A method's own is method.subject.model"):
        GuidedBackprop(METHOD)
    with pytest.raises(OptionError, match=r"received method=Sequential. Pass SmoothGrad\(GuidedBackprop\(model\)\)"):
        SmoothGrad(MODEL)


def test_one_method_is_no_list_of_methods():
    with pytest.raises(OptionError, match="received one method. Pass"):
        compare(IMAGES, 1, METHOD)


def test_a_method_is_called():
    called = METHOD(IMAGES, [1, 2])
    assert isinstance(called, Explanations)
    assert isinstance(called[0], Explanation)
    np.testing.assert_array_equal(called, METHOD.explain(IMAGES, [1, 2]))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(called, METHOD.explain(IMAGES, [2, 2]))


def test_a_percentile_is_no_file():
    with pytest.raises(OptionError, match=r"received file=95. The scale is plot\(percentile=99\)"):
        FOUND.plot(95)
