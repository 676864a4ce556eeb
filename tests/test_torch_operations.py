"""PyTorch's table of operations: complete; what has no row is looked at, listed by its name, and never passed by."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from guided_backprop import DeconvNet, GuidedBackprop, OpaqueRegionError, Saliency
from guided_backprop.backends.operations import LISTED, NONLINEARITIES, Kind, Table
from guided_backprop.backends.torch.graph import nodes, operations, relus
from guided_backprop.backends.torch.graph.operations import OPERATIONS, UNKNOWN_ON_PURPOSE, dispatched, operation_of
from guided_backprop.backends.torch.hidden import audit

IMAGES = torch.tensor(np.random.default_rng(0).normal(size=(4, 6)))
WEIGHT = torch.tensor(np.random.default_rng(1).normal(size=(6, 6)))


def differentiable() -> set[str]:
    """All operations that PyTorch differentiates, but for those that are only met in second derivatives."""
    names = [name for name in dir(torch._C._functions) if re.search(r"Backward\d+$", name)]
    of_kernels = [name for name in names if not re.search(r"BackwardAutograd(NestedTensor|CUDA)\d+$", name)]
    return {operation_of(name) for name in of_kernels if not re.search(r"BackwardBackward\d+$", name)}


def test_every_differentiable_operation_has_a_row():
    assert len(differentiable()) > 400
    assert differentiable() - set(OPERATIONS) == UNKNOWN_ON_PURPOSE
    # Planted: a row that is missing is seen.
    assert differentiable() - (set(OPERATIONS) - {"exp"}) - UNKNOWN_ON_PURPOSE == {"exp"}


def test_what_is_listed_goes_by_the_vocabulary():
    rows = [row for row in OPERATIONS.values() if row.kind in LISTED - {Kind.HIDDEN}]
    assert {row.word for row in rows} <= NONLINEARITIES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_softmax", "softmax"),
        ("abs_", "abs"),
        ("max_pool2d_with_indices", "max_pool"),
        ("_upsample_bilinear2d_aa", "upsample_bilinear2daa"),
        ("grid_sampler_2d", "grid_sampler2d"),
        ("smooth_l1_loss", "smooth_l1loss"),
        ("_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention"),
        ("log_sigmoid_forward", "log_sigmoid"),
    ],
)
def test_an_operation_goes_by_one_name_however_it_is_met(name, expected):
    assert dispatched(name) == expected
    assert expected in OPERATIONS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GeneratedBackwardFor_torchvision_roi_align_defaultBackward", Kind.MASKS),
        ("GeneratedBackwardFor_torchvision_deform_conv2d_defaultBackward", Kind.LINEAR),
        ("torch::autograd::CppNode<vision::ops::(anonymous namespace)::PSROIAlignFunction>", Kind.MASKS),
        ("torch::autograd::CppNode<vision::ops::(anonymous namespace)::ROIPoolFunction>", Kind.CHOOSES),
        ("torch::autograd::CppNode<vision::ops::(anonymous namespace)::DeformConv2dFunction>", Kind.LINEAR),
        # Of another library, whatever it is called.
        ("GeneratedBackwardFor_vision_roi_align_defaultBackward", Kind.HIDDEN),
        ("torch::autograd::CppNode<mine::ops::ROIAlignFunction>", Kind.HIDDEN),
        ("roi_alignBackward", Kind.HIDDEN),
    ],
)
def test_operators_of_torchvision_are_known_by_the_names_of_its_versions(name, kind):
    assert operations.row_of(name).kind is kind


@pytest.fixture
def _without(monkeypatch, request):
    """Take rows out of the table: these operations are not known any more."""
    rows = [(name, row) for name, row in OPERATIONS.items() if name not in request.param]
    smaller = Table({kind: " ".join(f"{name}={row.word}" for name, row in rows if row.kind is kind) for kind in Kind})
    for module in (operations, audit):
        monkeypatch.setattr(module, "OPERATIONS", smaller)
    monkeypatch.delitem(nodes._WORDS, request.param[0], raising=False)
    caches = (operations.row_of, nodes._questions)
    for each in caches:
        each.cache_clear()
    yield
    monkeypatch.undo()
    for each in caches:
        each.cache_clear()


def net(activation):
    """Return a model with a function between two matrices, and a ReLU at last."""
    return lambda x: torch.relu(activation(x @ WEIGHT) @ WEIGHT)


@pytest.mark.parametrize("_without", [("softplus",)], indirect=True)
@pytest.mark.parametrize("memory", [None, "lean"])
def test_a_harmless_operation_without_a_row_is_listed_and_plain(_without, memory):
    model = net(F.softplus)
    explanations = GuidedBackprop(model, memory=memory).explain(IMAGES, 1)
    assert str(explanations.coverage) == "relu x1 guided, softplus x1 plain"
    x = IMAGES.clone().requires_grad_()
    hidden = F.softplus(x @ WEIGHT)
    g = (WEIGHT[:, 1] * (hidden @ WEIGHT > 0)[:, 1:2]).double()
    (expected,) = torch.autograd.grad(hidden, x, g)
    np.testing.assert_allclose(explanations, expected, rtol=1e-9, atol=1e-12)


DISGUISES = {"clamp_min": lambda x: torch.clamp_min(x, 0), "hardtanh": lambda x: F.hardtanh(x, 0, 1e9)}


@pytest.mark.parametrize(("_without", "name"), [((name,), name) for name in DISGUISES], indirect=["_without"])
def test_a_relu_in_disguise_without_a_row_is_refused(_without, name, monkeypatch):
    monkeypatch.delitem(relus._RECOGNISERS, name)
    function = DISGUISES[name]
    model = net(function)
    with pytest.raises(OpaqueRegionError, match=f"spelled as arithmetic, with {name}"):
        GuidedBackprop(model).explain(IMAGES, 1)
    plain = Saliency(model).explain(IMAGES, 1)
    assert (name, 1, "plain") in plain.coverage
    # As the error says.
    vouched = GuidedBackprop(model, vouch={name: "plain"}).explain(IMAGES, 1)
    assert str(vouched.coverage) == f"{name} x1 plain, relu x1 guided"


@torch.library.custom_op("guided_backprop_tests::clipped", mutates_args=())
def clipped(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


clipped.register_autograd(
    lambda ctx, g: g * (ctx.saved_tensors[0] > 0),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_a_custom_operation_hides_what_it_computes():
    """It may hold a ReLU behind anything else: no value of its result would show it. So it is refused by its name."""
    model, relus = net(clipped), net(torch.relu)
    with pytest.raises(OpaqueRegionError, match="hides whether it is a ReLU; received (.*clipped.*) between") as error:
        GuidedBackprop(model).explain(IMAGES, 1)
    name = re.search("received (.*) between", str(error.value))[1]
    for method in (GuidedBackprop, DeconvNet):
        expected = method(relus).explain(IMAGES, 1)
        found = method(model, vouch={name: "relu"}).explain(IMAGES, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(method(model, vouch={name: "plain"}).explain(IMAGES, 1), expected, rtol=1e-6)


def test_a_hinge_inside_of_a_loss_is_refused():
    def model(x):
        scores = torch.relu(x @ WEIGHT)
        return F.multi_margin_loss(scores, torch.zeros(len(x), dtype=torch.long), reduction="none")

    with pytest.raises(OpaqueRegionError, match="received multi_margin_loss"):
        GuidedBackprop(model).explain(IMAGES)


@pytest.mark.parametrize("shift", [3.0, 3, torch.tensor(3.0)], ids=["float", "integer", "tensor"])
@pytest.mark.parametrize("script", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_hard_sigmoid_is_told_by_the_number_that_is_added(shift, script):
    def hard_sigmoid(x):
        return F.relu6(x + shift) / 6

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x @ WEIGHT) * hard_sigmoid(x)

    model = torch.jit.trace(Net().eval(), IMAGES) if script else Net().eval()
    for memory in (None, "lean"):
        explanations = GuidedBackprop(model, memory=memory).explain(IMAGES, 1)
        assert str(explanations.coverage) == "hardsigmoid x1 plain, relu x1 guided"
        own = GuidedBackprop(lambda x: torch.relu(x @ WEIGHT) * F.hardsigmoid(x)).explain(IMAGES, 1)
        # PyTorch's own derivative has a sixth in float32.
        np.testing.assert_allclose(explanations, own, rtol=1e-6, atol=1e-9)


def test_with_another_number_it_is_a_relu6():
    model = lambda x: torch.relu(x @ WEIGHT) * (F.relu6(x + 2.0) / 6)  # noqa: E731
    assert str(GuidedBackprop(model).explain(IMAGES, 1).coverage) == "relu x1 guided, relu6 x1 guided"
