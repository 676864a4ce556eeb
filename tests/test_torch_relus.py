"""Every ReLU, exactly, or an error: the same network in every spelling, against the oracle."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from guided_backprop import (
    DeconvNet,
    GuidedBackprop,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    Saliency,
    ScoreError,
)
from guided_backprop.backends.torch.hidden.known import Known
from guided_backprop.backends.torch.hidden.watch import ForwardWatch
from networks import CLASSES, IMAGES, LABELS
from networks_torch import Net, oracle, relu_net
from spellings import column
from spellings.arithmetic import ARITHMETIC
from spellings.capped import CAPPED
from spellings.forms import FORMS
from spellings.functions import HandGuided, OwnRelu, every_third_torch, scale_torch
from spellings.models import Reentrant, warmed
from spellings.relus import RELUS
from variants import each_variant

_each_variant = each_variant("as it is", "lean, optimised")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
ACTIVATIONS = column(RELUS | ARITHMETIC, "torch", "guided")
SPELLED = column(RELUS | ARITHMETIC, "torch", "refused")
JUDGED = column(RELUS | ARITHMETIC, "torch", "judged")
# What is a ReLU, but not that of the oracle, written with one.
WRITTEN = {
    "where((x > 0) & pad, x, 0)": lambda x: F.relu(x) * ~every_third_torch(x),
    "x * ((x > 0) * pad)": lambda x: F.relu(x) * ~every_third_torch(x),
    "masked_fill((x < 0) | pad)": lambda x: F.relu(x) * ~every_third_torch(x),
    "where(x > S, x - S, 0)": lambda x: F.relu(x - scale_torch(x)),
    "where(x > 0, x, -0.5)": lambda x: F.threshold(x, 0.0, -0.5),
}
METHODS = {"saliency": Saliency, "deconvnet": DeconvNet, "guided": GuidedBackprop}

# torch.export, torch.jit and torch.compile warn of themselves, in versions to come or on this Python.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def images() -> torch.Tensor:
    return torch.tensor(IMAGES)


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("spelling", ACTIVATIONS)
def test_every_spelling_of_a_relu(spelling, rule):
    explanations = METHODS[rule](Net(ACTIVATIONS[spelling])).explain(images(), LABELS)
    np.testing.assert_allclose(explanations, oracle(rule), **TOLERANCE)
    assert {row.name for row in explanations.coverage} == {"relu", "max_pool"}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("spelling", column(CAPPED, "torch", "guided"))
def test_every_spelling_of_a_capped_relu(spelling, rule):
    explanations = METHODS[rule](Net(CAPPED[spelling]["torch"].write, cap=1.0)).explain(images(), LABELS)
    np.testing.assert_allclose(explanations, oracle(rule, cap=1.0), **TOLERANCE)


@pytest.mark.parametrize("form", column(FORMS, "torch"))
def test_every_form_of_a_model(form, tmp_path):
    """However the caller has set gradients, and again; a form takes long to make, so one serves all callers."""
    model = FORMS[form]["torch"].write(tmp_path)
    for context in (torch.inference_mode, torch.no_grad, nullcontext):
        with context():
            explanations = [GuidedBackprop(model).explain(images(), LABELS) for _ in range(2)]
        for explanation in explanations:
            np.testing.assert_allclose(explanation, oracle(), **TOLERANCE)


def test_images_made_in_inference_mode():
    with torch.inference_mode():
        made = images().clone()
    np.testing.assert_allclose(GuidedBackprop(relu_net()).explain(made, LABELS), oracle(), **TOLERANCE)


@pytest.mark.parametrize("spelling", SPELLED)
def test_a_relu_spelled_as_arithmetic_is_refused(spelling):
    model = Net(SPELLED[spelling], nn.ReLU(), nn.ReLU())
    method = GuidedBackprop(model)
    for _ in range(2):
        with pytest.raises(OpaqueRegionError, match="vouch|in place on a view"):
            method.explain(images(), LABELS)
    leaf = images().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[range(4), LABELS].sum(), leaf)
    np.testing.assert_allclose(Saliency(model).explain(images(), LABELS), gradient, **TOLERANCE)


@pytest.mark.parametrize("spelling", column(CAPPED, "torch", "judged"))
def test_a_cap_that_is_another_operation(spelling):
    """The minimum's own gate stays shut under DeconvNet, which reads no gate: it is refused there."""
    model = Net(CAPPED[spelling]["torch"].write, cap=1.0)
    for rule in ("saliency", "guided"):
        np.testing.assert_allclose(METHODS[rule](model).explain(images(), LABELS), oracle(rule, cap=1.0), **TOLERANCE)
    with pytest.raises(OpaqueRegionError, match="cap as one operation; received a ReLU and minimum"):
        METHODS["deconvnet"](model).explain(images(), LABELS)
    vouched = METHODS["deconvnet"](model, vouch={"minimum": "plain"}).explain(images(), LABELS)
    assert not np.allclose(vouched, oracle("deconvnet", cap=1.0), **TOLERANCE)


def test_a_minimum_behind_a_relu_that_is_used_elsewhere_too():
    """These are two: what uses the ReLU as well sees no cap."""

    def twice(x):
        y = F.relu(x)
        return torch.minimum(y, torch.ones_like(y)) + y

    assert DeconvNet(Net(twice, nn.ReLU(), nn.ReLU())).explain(images(), LABELS).coverage


@pytest.mark.parametrize("spelling", JUDGED)
def test_a_relu_spelled_as_arithmetic_is_guided_by_its_values(spelling):
    method = GuidedBackprop(Net(JUDGED[spelling], nn.ReLU(), nn.ReLU()))
    expected = oracle()
    if spelling in WRITTEN:
        expected = GuidedBackprop(Net(WRITTEN[spelling], nn.ReLU(), nn.ReLU())).explain(images(), LABELS)
    for _ in range(2):
        explanations = method.explain(images(), LABELS)
        np.testing.assert_allclose(explanations, expected, **TOLERANCE)
        assert sum(row.count for row in explanations.coverage if row.treatment == "guided") >= 3
    model = Net(JUDGED[spelling], nn.ReLU(), nn.ReLU())
    with pytest.raises(OpaqueRegionError, match="the deconv rule"):
        DeconvNet(model).explain(images(), LABELS)
    leaf = images().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[range(4), LABELS].sum(), leaf)
    np.testing.assert_allclose(Saliency(model).explain(images(), LABELS), gradient, **TOLERANCE)
    assert not np.allclose(gradient, expected, rtol=1e-2, atol=1e-3)


POPULAR = ["where(x > 0, x, 0)", "x * (x > 0)", "masked_fill", "(x + |x|) / 2"]


@pytest.mark.parametrize("spelling", POPULAR)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_spelled_relu_of_few_values_is_right_or_refused(spelling, size):
    x, weights = torch.tensor([[1.0, -2.0, 3.0]])[:, :size], -torch.ones(1, size)
    net = lambda relu: GuidedBackprop(lambda x: torch.relu(-relu(x * 2)) * 2 - relu(x * 3))  # noqa: E731
    try:
        explanations = net(JUDGED[spelling]).explain(x, weights)
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(explanations, net(F.relu).explain(x, weights))


@pytest.mark.parametrize("spelling", POPULAR)
def test_values_of_one_sign_are_no_evidence(spelling):
    """No value tells a ReLU from the identity there, though the guided map of the two differs."""
    model, bare = (Net(relu, nn.ReLU(), nn.ReLU()) for relu in (JUDGED[spelling], F.relu))
    bright = images().abs() * 9
    first = lambda net: lambda x: net(net.first(x - 1e-3) + 1e-3)  # noqa: E731
    # On other images they have both signs.
    np.testing.assert_allclose(
        GuidedBackprop(first(model)).explain(bright, LABELS), GuidedBackprop(first(bare)).explain(bright, LABELS)
    )
    # By how they are made they have one, so nothing is ever closed.
    model = lambda relu: Net(nn.ReLU(), lambda x: relu(F.softplus(x) + 1), nn.ReLU())  # noqa: E731
    np.testing.assert_allclose(
        GuidedBackprop(model(JUDGED[spelling])).explain(images(), LABELS),
        GuidedBackprop(model(lambda x: x)).explain(images(), LABELS),
    )
    # Nothing tells.
    model = Net(nn.ReLU(), lambda x: JUDGED[spelling](torch.tanh(x) + 2), nn.ReLU())
    with pytest.raises(OpaqueRegionError, match="spelled"):
        GuidedBackprop(model).explain(images(), LABELS)


def test_a_reentrant_checkpoint_is_refused():
    with pytest.raises(OpaqueRegionError, match="use_reentrant=False"):
        GuidedBackprop(Reentrant(nn.ReLU())).explain(images(), LABELS)


def test_a_compiled_region_without_an_eager_original_is_refused():
    from functorch.compile import aot_function, nop

    model = warmed(Net(nn.ReLU(), aot_function(lambda x: torch.relu(x), fw_compiler=nop), nn.ReLU()))
    with pytest.raises(OpaqueRegionError, match="before compiling"):
        GuidedBackprop(model).explain(images(), LABELS)


def test_a_fused_torchscript_part_is_refused():
    @torch.jit.script
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * 2) / 2

    for _ in range(4):
        block(images().requires_grad_()).sum().backward()
    with pytest.raises(OpaqueRegionError, match="scripting"):
        GuidedBackprop(Net(nn.ReLU(), block, nn.ReLU())).explain(images(), LABELS)


@pytest.mark.parametrize(
    "transform",
    [
        lambda explain, x: torch.func.vmap(lambda each: explain(each[None])[0])(x),
        lambda explain, x: torch.func.vmap(lambda each: explain(x)[0] + each)(x),
        lambda explain, x: torch.func.grad(lambda x: explain(x).sum())(x),
        lambda explain, x: torch.func.jvp(explain, (x,), (x,)),
        lambda explain, x: torch.func.functionalize(explain)(x),
        lambda explain, x: make_fx(explain)(x),
    ],
)
@pytest.mark.parametrize("method", [Saliency, GuidedBackprop])
def test_explaining_from_inside_a_transform(transform, method):
    explain = method(relu_net()).explain
    with pytest.raises(ModelError, match="must not be compiled or transformed"):
        transform(lambda x: explain(x, 0).attribution, images())


class PlainRelu(torch.autograd.Function):
    """A ReLU whose gradient a rule cannot see: the planted fault."""

    forward, backward = OwnRelu.forward, OwnRelu.backward


def test_a_custom_function_can_be_vouched_for():
    model = Net(OwnRelu.apply, nn.ReLU(), nn.ReLU())
    for rule, method in METHODS.items():
        explanations = method(model, vouch={"OwnRelu": "relu"}).explain(images(), LABELS)
        np.testing.assert_allclose(explanations, oracle(rule), **TOLERANCE)
    assert ("OwnRelu", 1, "deconv") in DeconvNet(model, vouch={"OwnRelu": "relu"}).explain(images()).coverage


@pytest.mark.parametrize("name", ["Relu", "NativeBatchNorm", "NativeDropout", "Gelu", "Softmax", "ClampMin", "Clone"])
def test_a_custom_function_is_not_known_by_its_name(name):
    function = type(name, (torch.autograd.Function,), dict(vars(OwnRelu)))
    model = Net(function.apply, nn.ReLU(), nn.ReLU())
    for rule, method in METHODS.items():
        if rule != "saliency":
            with pytest.raises(OpaqueRegionError, match=name):
                method(model).explain(images(), LABELS)
        explanations = method(model, vouch={name: "relu"}).explain(images(), LABELS)
        np.testing.assert_allclose(explanations, oracle(rule), **TOLERANCE)
    # As the last of all it would be taken for a head.
    last = nn.Sequential(nn.Flatten(), nn.Linear(IMAGES[0].size, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    explanations = GuidedBackprop(lambda x: function.apply(last(x)), vouch={name: "plain"}).explain(images())
    assert explanations.head is None
    assert [row[:2] for row in explanations.coverage] == [("relu", 1)]


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_planted_fault_a_missed_relu_is_caught(missed):
    activations = [nn.ReLU(), nn.ReLU(), nn.ReLU()]
    activations[missed] = PlainRelu.apply
    explanations = GuidedBackprop(Net(*activations), vouch={"PlainRelu": "plain"}).explain(images(), LABELS)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(explanations, oracle(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rule", ["saliency", "deconvnet"])
def test_planted_fault_a_forgotten_gate_is_caught(rule):
    explanations = METHODS[rule](relu_net()).explain(images(), LABELS)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(explanations, oracle(), rtol=1e-2, atol=1e-3)


# The rule.


@pytest.mark.parametrize("spelling", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [("saliency", [1, 0, 0, -4]), ("deconvnet", [1, 0, 3, 0]), ("guided", [1, 0, 0, 0])],
)
def test_worked_example(spelling, rule, expected):
    """x = [5, 0, -5, 10], g = [1, -2, 3, -4]; the tie at 0 is closed in every spelling."""
    relu = ACTIVATIONS[spelling]
    x = torch.tensor([5.0, 0.0, -5.0, 10.0]).view(1, 4, 1).expand(1, 4, 2).contiguous()
    g = torch.tensor([1.0, -2.0, 3.0, -4.0]).view(1, 4, 1).expand(1, 4, 2)
    explanations = METHODS[rule](lambda x: relu(x * 1.0)).explain(x, g)
    np.testing.assert_array_equal(explanations.attribution[0, :, 0], expected)


@pytest.mark.parametrize("spelling", ["clip(min=0)", "maximum(x, 0)", "max(0, x)", "fmax(x, 0)", "layer"])
def test_gate_is_closed_at_zero_for_positive_gradients(spelling):
    x = torch.tensor([[0.0, 1.0]])
    for method in (Saliency, GuidedBackprop):
        explanations = method(ACTIVATIONS[spelling]).explain(x, torch.ones(1, 2))
        np.testing.assert_array_equal(explanations, [[0.0, 1.0]])


@pytest.mark.parametrize(
    "relu6", [F.relu6, lambda x: x.clamp(0, 6), lambda x: x.clamp(torch.zeros(()), torch.tensor(6.0))]
)
def test_gate_is_closed_at_and_above_the_cap(relu6):
    x = torch.tensor([[-1.0, 3.0, 6.0, 7.0]])
    for method, expected in (
        (Saliency, [0, 1, 0, 0]),
        (GuidedBackprop, [0, 1, 0, 0]),
        (DeconvNet, [1, 1, 1, 1]),
    ):
        np.testing.assert_array_equal(method(relu6).explain(x, torch.ones(1, 4)), [expected])


def test_threshold_keeps_its_own_gate():
    x = torch.tensor([[0.2, 0.4, 0.9]])
    explanations = GuidedBackprop(nn.Threshold(0.5, 0.0).eval()).explain(x, torch.tensor([[1.0, 1.0, 2.0]]))
    np.testing.assert_array_equal(explanations, [[0, 0, 2]])
    assert str(explanations.coverage) == "threshold(0.5) x1 guided"


def test_the_gate_belongs_to_the_relu_and_not_to_the_tensor():
    """-3 x + relu(x) w: the skip path keeps its negative gradient."""
    x, w = torch.tensor([[1.0, 2.0, -1.0, -2.0]]), torch.tensor([1.0, -1.0, 1.0, 1.0])
    explanations = GuidedBackprop(lambda x: -3 * x + torch.relu(x) * w).explain(x, torch.ones(1, 4))
    np.testing.assert_array_equal(explanations, [[-2, -3, -3, -3]])


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.PReLU(), "prelu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.CELU(), "celu"),
        (nn.SELU(), "elu"),
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
        (nn.LeakyReLU(0.1), "leaky_relu"),
        (nn.Softplus(), "softplus"),
        (nn.Hardtanh(), "clamp"),
        (nn.Mish(), "mish"),
        (nn.RReLU(), "rrelu"),
        (nn.LogSigmoid(), "log_sigmoid"),
        (nn.Tanh(), "tanh"),
    ],
)
def test_other_activations_are_listed_and_keep_their_derivative(activation, name):
    net = nn.Sequential(nn.Linear(6, 6), activation, nn.Linear(6, 2)).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NoReluError, match=f"{name} x1.*Saliency"):
        GuidedBackprop(net).explain(x, 0)
    mixed = nn.Sequential(net, nn.Linear(2, 2).double(), nn.ReLU(), nn.Linear(2, 2).double()).eval()
    assert (name, 1, "plain") in GuidedBackprop(mixed).explain(x, 0).coverage
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    np.testing.assert_allclose(Saliency(net).explain(x, 0), gradient, **TOLERANCE)


def test_saliency_is_the_plain_gradient():
    net, leaf = relu_net(), images().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[range(4), LABELS].sum(), leaf)
    np.testing.assert_allclose(Saliency(net).explain(images(), LABELS), gradient, **TOLERANCE)
    np.testing.assert_allclose(gradient, oracle("saliency"), **TOLERANCE)


def test_a_relu_on_parameters_is_not_on_the_path():
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    positive = torch.relu(weight)
    x = torch.ones(2, 6, dtype=torch.float64)
    with pytest.raises(NoReluError, match="no non-linearity"):
        GuidedBackprop(lambda x: x @ positive.T).explain(x, 0)
    # The user's own graph was left alone: its gradient is not clamped.
    (gradient,) = torch.autograd.grad((x @ positive.T).sum() * -1, weight)
    assert (gradient < 0).any()


# Legitimate masks.


class MaskedTransformer(nn.Module):
    """A causal transformer on padded rows, with ReLU feed-forward layers."""

    def __init__(self, attention_mask: str) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="relu")
        self.encoder = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)
        self.head, self.mask = nn.Linear(8, 3), attention_mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        if self.mask == "bool":
            causal = causal != 0
        padded = torch.arange(x.shape[1]) >= 4
        x = self.encoder(
            x, mask=causal, src_key_padding_mask=padded.expand(len(x), -1) if self.mask == "bool" else None
        )
        x = x.masked_fill(padded[:, None], 0.0)
        return self.head(x.sum(1))


@pytest.mark.parametrize("attention_mask", ["bool", "float"])
def test_a_masked_transformer_is_explained(attention_mask):
    torch.manual_seed(0)
    model = MaskedTransformer(attention_mask).double().eval()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    explanations = GuidedBackprop(model).explain(x, [0, 2])
    assert ("relu", 2, "guided") in explanations.coverage
    # The same with the masks' multiplications made explicit and the ReLU guided by hand.
    guided = MaskedTransformer(attention_mask).double().eval()
    guided.load_state_dict(model.state_dict())
    for layer in guided.encoder.layers:
        layer.activation = HandGuided.apply
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guided(leaf)[[0, 1], [0, 2]].sum(), leaf)
    np.testing.assert_allclose(explanations, gradient, **TOLERANCE)
    assert not np.allclose(gradient, Saliency(model).explain(x, [0, 2]))


def set_data(y, of):
    y.data = of


def set_data_of_another(y):
    """Let a value lie where another one with a gradient does, which lives on."""
    y.another = y.clamp(min=0)
    y.data = y.another


def looked_up(x, **options):
    """A ramp where x is."""
    ramp = torch.tensor([[[[0.0, 64.0]]]], dtype=x.dtype)
    places = torch.stack([x.reshape(-1) / 32 - 1, torch.zeros(x.numel(), dtype=x.dtype)], -1)
    return F.grid_sample(ramp, places[None, None], align_corners=True, **options).reshape(x.shape)


LOOKED_UP = {"border": partial(looked_up, padding_mode="border"), "zeros": looked_up}


@pytest.mark.parametrize("way", LOOKED_UP)
def test_what_is_looked_up_by_a_place_that_depends_on_the_images_is_judged(way):
    model = Net(lambda x: LOOKED_UP[way](x), nn.ReLU(), nn.ReLU())
    np.testing.assert_allclose(GuidedBackprop(model).explain(images(), LABELS), oracle(), rtol=1e-6, atol=1e-8)


# What writes into a value that has a gradient, where no gradient sees it.
BEHIND_ITS_BACK = {
    "no_grad": lambda y: torch.no_grad()(y.relu_)(),
    "data": lambda y: y.data.clamp_(min=0),
    "detach": lambda y: y.detach().clamp_(min=0),
    "copy": lambda y: torch.no_grad()(y.copy_)((y.abs() + y) / 2),
    "a part": lambda y: y.data[:, 1:].mul_(y[:, 1:] > 0),
    "other data": lambda y: set_data(y, y.data.clamp(min=0)),
    "another value's data": lambda y: set_data_of_another(y),
}


@pytest.mark.parametrize("write", BEHIND_ITS_BACK)
def test_what_writes_behind_a_gradients_back_is_refused(write):
    def stand_in(x):
        y = x * 1.0
        BEHIND_ITS_BACK[write](y)
        return y

    model = Net(stand_in, nn.ReLU(), nn.ReLU())
    with pytest.raises(OpaqueRegionError, match="changed without one") as error:
        GuidedBackprop(model).explain(images(), LABELS)
    place = str(error.value).partition('vouch={"')[2].partition('"')[0]
    vouched = GuidedBackprop(model, vouch={place: "plain"}).explain(images(), LABELS)
    assert vouched.shape == images().shape


def tainted_elsewhere(vouch, forget=False):
    """Tell whether there is taint behind a ReLU of small numbers, on images of these and on others."""
    seen, taken = [], None
    for images in (torch.linspace(-1.0, 1.0, 64)[None], torch.linspace(-2.0, 2.0, 64)[None]):
        watch = ForwardWatch(vouch=vouch, known=Known(taken=taken))
        leaf = images.requires_grad_().clone()
        watch.follow(leaf)
        with watch:
            y = leaf * ((leaf > 0) + 2.0 * (leaf < -1))
        seen.append(watch._notes.of(y).is_tainted)
        taken = {} if forget else watch.taken
    return seen


def test_what_is_vouched_for_is_so_on_other_images():
    assert tainted_elsewhere({"mul": "plain"}) == [False, False]
    # Were it forgotten, other images would be looked at in other places.
    assert tainted_elsewhere({"mul": "plain"}, forget=True) == [False, True]


class Kept(nn.Module):
    """Keeps what it was given last, and a running mean, as caches and statistics do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 4, 8, 8, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        with torch.no_grad():
            self.last.copy_(x)
            self.last.clamp_(min=0)
            self.mean.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        y = x * 1.0
        y.data[:, 0] *= 1.0
        return y


def of_segments(x, initial):
    """Return the maxima of segments of one value each: a ReLU if they begin with 0, else what was given."""
    ones = torch.ones(x.numel(), dtype=torch.long)
    return torch.segment_reduce(x.reshape(-1), "max", lengths=ones, initial=initial).reshape(x.shape)


def test_maxima_of_segments_that_begin_with_0():
    model = Net(partial(of_segments, initial=0.0), nn.ReLU(), nn.ReLU())
    np.testing.assert_allclose(GuidedBackprop(model).explain(images(), LABELS), oracle(), **TOLERANCE)


def test_maxima_of_segments_alone_are_no_relu():
    models = (Net(each, nn.ReLU(), nn.ReLU()) for each in (partial(of_segments, initial=None), nn.Identity()))
    found, expected = (GuidedBackprop(model).explain(images(), LABELS) for model in models)
    np.testing.assert_allclose(found, expected, **TOLERANCE)


class WrittenOver(torch.autograd.Function):
    """What it is given it changes, and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x.relu_())
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


def test_what_a_custom_function_writes_is_its_own():
    model = Net(lambda x: WrittenOver.apply(x * 1.0), nn.ReLU(), nn.ReLU())
    method = GuidedBackprop(model, vouch={"WrittenOver": "relu"})
    np.testing.assert_allclose(method.explain(images(), LABELS), oracle(), **TOLERANCE)


def test_what_is_written_over_what_a_custom_function_gave_is_refused():
    def written(x):
        y = WrittenOver.apply(x * 1.0)
        y.data.clamp_(max=0.5)
        return y

    method = GuidedBackprop(Net(written, nn.ReLU(), nn.ReLU()), vouch={"WrittenOver": "relu"})
    with pytest.raises(OpaqueRegionError, match="changed without one"):
        method.explain(images(), LABELS)


def beside_what_was_changed(x):
    """Return a part of what was changed in place elsewhere, once something was made of it."""
    whole = torch.cat([x, x], 1)
    part = whole[:, : x.shape[1]]
    whole[:, x.shape[1] :] = 0
    return part + 0 * torch.tanh(part)


class Compared(nn.Module):
    """Leaves out a value that no image has, as a mask of what is padded does."""

    def forward(self, x):
        return torch.where(x == 1000, 0.0, x)


LEGITIMATE = {
    "a part beside what was changed": beside_what_was_changed,
    "NaN guard": lambda x: torch.where(torch.isnan(x), 0.0, x),
    "NaN guard of positive values": lambda x: torch.where(torch.isfinite(x.exp()), x.exp(), 0.0),
    "cosine similarity": lambda x: x + F.cosine_similarity(x[:, :2], x[:, 2:])[:, None],
    "cosine similarity of nothing": lambda x: (lambda y: x + F.cosine_similarity(y[:, :2], y[:, 2:])[:, None])(
        x * (torch.arange(8) > 3)
    ),
    "fixed mask": lambda x: x * (torch.arange(x[0].numel()).view_as(x[0]) % 2),
    "mask of ones": lambda x: x * torch.ones_like(x),
    "mask of the image's own brightness": lambda x: torch.where(x.mean(1, keepdim=True) > 0, x, 0.0),
    "gate by another channel": lambda x: torch.where(x.flip(1) > 0, x, 0.0),
    "maximum of two branches": lambda x: torch.maximum(x, x.flip(1)),
    "where as a maximum": lambda x: torch.where(x > x.flip(1), x, x.flip(1)),
    "leaky ReLU by where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "ELU by where": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "softsign": F.softsign,
    "absolute value": torch.abs,
    "L1 normalisation": lambda x: x / x.abs().sum(1, keepdim=True),
    "root mean square": lambda x: x / (x * x).mean(1, keepdim=True).sqrt(),
    "part overwritten": lambda x: torch.index_fill(x, 1, torch.tensor([0]), 0.0),
    "slice assigned": lambda x: (lambda y: (y.__setitem__((slice(None), 0), x[:, 1] * 2), y)[1])(x.clone()),
    "mask in place on a view": lambda x: (lambda y: (y[:, 0].mul_(2.0), y)[1])(x.clone()),
    "floor that is not 0": lambda x: x.clamp(min=1e-6),
    "mask of probabilities": lambda x: x.sigmoid() * (x.sigmoid() > 0.5),
    "zero padding channels": lambda x: torch.cat([x, torch.zeros_like(x)], 1)[:, :4],
    "instance norm": lambda x: F.instance_norm(x),
    "buffers that are written": lambda x: Kept()(x),
}


def test_a_norm_that_is_written_over_by_more_than_a_floor_is_refused():
    def bounded(x, floor):
        norm = x.norm(dim=1, keepdim=True).clone()
        with torch.no_grad():
            norm.clamp_min_(floor)
        return x * norm

    GuidedBackprop(Net(lambda x: bounded(x, 1e-8), nn.ReLU(), nn.ReLU())).explain(images(), LABELS)
    with pytest.raises(OpaqueRegionError, match="changed without one"):
        GuidedBackprop(Net(lambda x: bounded(x, 2.0), nn.ReLU(), nn.ReLU())).explain(images(), LABELS)


@pytest.mark.parametrize("mask", LEGITIMATE)
def test_what_is_no_relu_is_not_refused(mask):
    """The gradient of what stands in for the first ReLU stays plain, that of the true ReLUs is guided."""
    stand_in = LEGITIMATE[mask]
    model, by_hand = Net(stand_in, nn.ReLU(), nn.ReLU()), Net(stand_in, HandGuided.apply, HandGuided.apply)
    leaf = images().requires_grad_()
    (gradient,) = torch.autograd.grad(by_hand(leaf)[range(4), LABELS].sum(), leaf)
    np.testing.assert_allclose(GuidedBackprop(model).explain(images(), LABELS), gradient, **TOLERANCE)


def test_an_activation_that_a_number_tells_is_named_in_every_call():
    method = GuidedBackprop(Net(F.softsign, nn.ReLU(), nn.ReLU()))
    first, second = (str(method.explain(images(), LABELS).coverage) for _ in range(2))
    assert first == second
    assert "softsign x1 plain" in first


def test_images_that_are_compared_before_anything_is_made_of_them_lie_where_they_did():
    """A comparison is given no node, and the last one is that of the images."""
    model = Net(nn.ReLU())
    expected = GuidedBackprop(model).explain(images(), LABELS)
    compared = GuidedBackprop(nn.Sequential(Compared(), model)).explain(images(), LABELS)
    np.testing.assert_allclose(compared, expected, **TOLERANCE)


def test_the_same_image_twice_is_normalised_as_once():
    """Values that are alike make a root mean square look like a constant, which is no mask."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU()).double().eval()

    def normalised(x):
        h = model(x)
        return h / (h.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()

    once, twice = images()[:1], images()[[0, 0]]
    expected = np.asarray(GuidedBackprop(normalised).explain(once, 0))[0]
    for explanation in GuidedBackprop(normalised).explain(twice, 0):
        np.testing.assert_allclose(explanation, expected, **TOLERANCE)


def test_two_relus_of_opposite_sign_are_relus():
    """Only Keras writes a PReLU so; anywhere else they are what they are."""
    model, by_hand = (lambda x, relu=relu: relu(relu(x) * 2 - 3 * relu(-x)) for relu in (torch.relu, HandGuided.apply))
    leaf = images().requires_grad_()
    (gradient,) = torch.autograd.grad(by_hand(leaf).sum(), leaf)
    explanations = GuidedBackprop(model).explain(images(), torch.ones(4, 3, 8, 8))
    np.testing.assert_allclose(explanations, gradient, **TOLERANCE)
    assert str(explanations.coverage) == "relu x3 guided"


def test_a_checkpointed_block_is_run_twice_and_not_more():
    calls = []

    def block(x):
        calls.append(len(x))
        for _ in range(5):
            x = torch.relu(x * torch.linspace(1, 2, 8)) / torch.linspace(1, 2, 8)
        return x

    model = lambda x: torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)  # noqa: E731
    method = GuidedBackprop(model)
    method.explain(images(), torch.ones(4, 3, 8, 8))
    calls.clear()
    method.explain(images(), torch.ones(4, 3, 8, 8))
    assert len(calls) == 2


# No gradient at all.


@pytest.mark.parametrize(
    "model",
    [lambda x: x.detach().flatten(1), lambda x: torch.ones(len(x), 3, requires_grad=True) * 2],
)
def test_a_score_that_does_not_depend_on_the_image_is_an_error(model):
    with pytest.raises(ScoreError, match="depend"):
        Saliency(model).explain(images(), 0)


def test_parameters_made_in_inference_mode_are_an_error():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    with pytest.raises(ModelError, match="outside torch.inference_mode"):
        GuidedBackprop(model).explain(torch.ones(2, 4), 0)


def test_the_oracle_has_the_classes_that_the_labels_name():
    assert max(LABELS) < CLASSES
    assert len(oracle()) == len(LABELS)


# Hooks that the model itself put on its graph.


def _keeping(kept, flip):
    """Return hooks on a node that keep what they are given, and one that turns the sign of what leaves."""
    return {
        "node": lambda x, y: y.grad_fn.register_hook(lambda left, arrived: kept.append(left[0])),
        "node, turned": lambda x, y: y.grad_fn.register_hook(lambda left, arrived: (-left[0],)),
        "node, before": lambda x, y: y.grad_fn.register_prehook(lambda arrived: kept.append(arrived[0])),
        "node, before, turned": lambda x, y: y.grad_fn.register_prehook(lambda arrived: (-arrived[0],)),
        "y": lambda x, y: y.register_hook(kept.append),
        "y, turned": lambda x, y: y.register_hook(torch.neg),
        "x": lambda x, y: x.register_hook(kept.append),
        "x, turned": lambda x, y: x.register_hook(torch.neg),
    }[flip]


@pytest.mark.parametrize("relu", [torch.relu, lambda x: x.clamp(min=0)])
@pytest.mark.parametrize(
    "hook",
    ["node", "node, turned", "node, before", "node, before, turned", "y", "y, turned", "x", "x, turned"],
)
def test_the_rule_is_where_the_derivative_is_and_the_models_hooks_around_it(hook, relu):
    kept = []

    def model(v):
        x = v * 1
        y = relu(x)
        if y.grad_fn is not None:
            _keeping(kept, hook)(x, y)
        # What arrives goes to another branch as well.
        return y + 0

    x, g = torch.tensor([[1.0, 2.0, 3.0, -1.0]]), torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    gate = x > 0
    arrived = -g if hook in ("node, before, turned", "y, turned") else g
    left = arrived.clamp(min=0) * gate
    found = GuidedBackprop(model).explain(x, g)
    np.testing.assert_array_equal(found, -left if hook in ("node, turned", "x, turned") else left)
    # The first is kept where a model is optimised.
    for gradient in kept[-1:]:
        np.testing.assert_array_equal(gradient, g if hook in ("node, before", "y") else left)


def test_an_old_backward_hook_of_a_relu_module():
    seen = []
    relu = nn.ReLU().eval()
    relu.register_backward_hook(lambda module, left, arrived: seen.append(left[0]))
    x, g = torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([[1.0, -2.0, 3.0]])
    np.testing.assert_array_equal(GuidedBackprop(relu).explain(x, g), [[1, 0, 0]])
    np.testing.assert_array_equal(seen[-1], [[1, 0, 0]])


# Complex values between real images and real scores.

MIXING = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
BAND = (torch.arange(5) < 3).to(torch.complex128)


def _complex(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(x, torch.zeros_like(x))


COMPLEX = {
    "a product by complex weights": lambda x, relu: relu(torch.fft.irfft2(torch.fft.rfft2(x) * MIXING)),
    "a complex mask of frequencies": lambda x, relu: relu(torch.fft.irfft2(torch.fft.rfft2(x) * BAND)),
    "a complex number": lambda x, relu: relu(((torch.fft.fft2(x) + 1j) * (2 - 1j)).imag),
    "a complex exponent": lambda x, relu: relu((torch.fft.fft2(x) ** (1 + 0.5j)).real),
    "a gate of magnitudes": lambda x, relu: (
        (relu((z := torch.fft.fft2(x)).abs() - 3) * torch.polar(torch.ones_like(x), z.angle())).real
    ),
    "both parts": lambda x, relu: torch.complex(relu((z := torch.fft.fft2(x)).real), relu(z.imag)).abs(),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_values_on_the_way(name):
    weights = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    for method, relu in ((GuidedBackprop, HandGuided.apply), (Saliency, torch.relu)):
        x = images().requires_grad_()
        (expected,) = torch.autograd.grad(COMPLEX[name](x, relu), x, torch.tensor(weights))
        found = method(lambda x: COMPLEX[name](x, torch.relu)).explain(images(), weights)
        np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda x: (_complex(x) * (x > 0)).real,
        lambda x: torch.view_as_real(_complex(x) * _complex((x > 0).double()))[..., 0],
        lambda x: ((_complex(x) + x.abs()) / 2).real,
    ],
)
def test_a_relu_spelled_with_complex_values_is_right_or_refused(spelled):
    net = lambda relu: GuidedBackprop(lambda x: torch.relu(relu(x) - 1).flatten(1) - relu(x).flatten(1))  # noqa: E731
    try:
        explanations = net(spelled).explain(images(), 0)
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(explanations, net(torch.relu).explain(images(), 0), **TOLERANCE)


def test_values_that_cannot_be_looked_at_are_an_error_of_ours(monkeypatch):
    def fails(*values, **options):
        raise NotImplementedError("aminmax is not there")

    monkeypatch.setattr("guided_backprop.backends.torch.hidden.suspect.judge", fails)
    model = lambda x: (torch.relu(x) * (x > 1)).flatten(1)  # noqa: E731
    with pytest.raises(OpaqueRegionError, match="received mul and NotImplementedError: aminmax is not there"):
        GuidedBackprop(model).explain(images(), 0)
    Saliency(model).explain(images(), 0)
