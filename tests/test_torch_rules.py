"""Rules in PyTorch: faster forms against the formula, and rules of a user's own in each way that a model is run."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guided_backprop import GuidedBackprop, Method, OpaqueRegionError
from guided_backprop.backends.torch import editor, lean, leaving
from guided_backprop.backends.torch.fast.gated import GatedRelu
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.backends.torch.hidden.audit import BackwardWatch
from guided_backprop.backends.torch.own import own_function
from guided_backprop.rules import DECONV, GUIDED, OPEN, PLAIN, Guided, Plain, ReluRule
from own_rules import Functions, Rect
from spellings.functions import OwnRelu
from variants import VARIANTS

RULES = [PLAIN, DECONV, GUIDED, OPEN]
INFINITY, NAN = float("inf"), float("nan")
# Around 0 and the cap, and random ones; every gradient meets every value.
VALUES = torch.cat([torch.tensor([0.0, -0.0, 1.0, 2.0, -1.0, INFINITY, -INFINITY]), torch.randn(33) * 2])
GRADIENTS = torch.cat([torch.tensor([0.0, -0.0, INFINITY, -INFINITY, NAN]), torch.randn(15)])
X, G = (each.contiguous() for each in torch.meshgrid(VALUES, GRADIENTS, indexing="ij"))
# Spelling and cap of every kind of node.
SPELLINGS = {
    "relu": (torch.relu, None),
    "relu_": (torch.relu_, None),
    "threshold": (lambda x: F.threshold(x, 0, 0), None),
    "hardtanh": (lambda x: F.hardtanh(x, 0, 1), 1.0),
    "hardtanh_": (lambda x: F.hardtanh_(x, 0, 1), 1.0),
    "clamp": (lambda x: x.clamp(0, 1), 1.0),
    "clamp_min": (lambda x: x.clamp(min=0), None),
    "maximum": (lambda x: torch.maximum(torch.zeros(()), x), None),
}


def formula(rule: ReluRule, cap: float | None) -> np.ndarray:
    x, g = X.numpy(), G.numpy()
    is_open = (x > 0) & (x < (INFINITY if cap is None else cap))
    if cap is None:
        is_open |= np.isposinf(x)
    return rule.leaving(g, np.where(is_open, g, 0), x, np.clip(x, 0, cap), np)


def watched(spelling: str, *, is_lean: bool, rule: ReluRule) -> np.ndarray:
    """Return what leaves one ReLU, edited as a backend does it."""
    leaf = X.clone().requires_grad_()
    given = leaf.clone()
    firsts = [given.grad_fn]
    mode = lean.Lean(firsts, keeps_relus=not is_lean)
    with mode:
        y = SPELLINGS[spelling][0](given)
    path = nodes.Path.between(y.grad_fn, firsts)
    assert bool(mode.gates) == (is_lean and spelling in ("relu", "relu_", "threshold", "hardtanh", "hardtanh_"))
    with editor.Editor(path, rule, {}, None, mode.gates, activations={}):
        return torch.autograd.grad(y, leaf, G)[0].numpy()


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_leaves_a_node_is_what_the_formula_says(rule, spelling, is_lean):
    expected = formula(rule, SPELLINGS[spelling][1])
    np.testing.assert_array_equal(watched(spelling, is_lean=is_lean, rule=rule), expected)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(watched(spelling, is_lean=is_lean, rule=OTHER[rule]), expected)


OTHER = {PLAIN: GUIDED, GUIDED: DECONV, DECONV: OPEN, OPEN: PLAIN}


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_leaves_a_gated_relu_is_what_the_formula_says(rule, cap, is_own):
    def left(rule: ReluRule) -> torch.Tensor:
        leaf = X.clone().requires_grad_()
        y = GatedRelu.apply(leaf.clone(), cap, False)
        y.grad_fn.rule, y.grad_fn.is_own = rule, is_own
        g = G.clone()
        (leaves,) = torch.autograd.grad(y, leaf, g)
        # What is others' stays as it is, and is not given on.
        assert is_own or (torch.equal(g.nan_to_num(7), G.nan_to_num(7)) and leaves.data_ptr() != g.data_ptr())
        return leaves

    np.testing.assert_array_equal(left(rule), formula(rule, cap))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(left(OTHER[rule]), formula(rule, cap))


def test_a_rule_derived_from_a_named_one_has_no_shortcut():
    class Mine(Guided):
        pass

    assert leaving.shortcut_of(Mine()) is None
    assert leaving.shortcut_of(Guided(guides_smooth=True)) is leaving.shortcut_of(GUIDED)
    assert type(PLAIN) is Plain


@dataclass(frozen=True)
class HalfGuided(Guided):
    name = "half guided"

    def leaving(self, g, derived, x, y, xp):
        return super().leaving(g, derived, x, y, xp) / 2


@pytest.mark.parametrize("activation", [torch.relu, F.gelu, OwnRelu.apply])
def test_a_rule_derived_from_a_named_one_acts_as_itself(activation):
    class Half(Method):
        rule = HalfGuided(guides_smooth=True)

    class Whole(Method):
        rule = Guided(guides_smooth=True)

    def model(x):
        return activation(x @ torch.tensor(WEIGHTS[0])) @ torch.tensor(WEIGHTS[3])

    half, whole = (
        method(model, vouch={"OwnRelu": "relu"}).explain(torch.tensor(IMAGES), 1) for method in (Half, Whole)
    )
    np.testing.assert_allclose(half, np.asarray(whole) / 2, rtol=1e-12)
    assert half.coverage[0].treatment == "half guided"


# Rules of a user's own: some that look at values, and one that looks at none.


@dataclass(frozen=True)
class Halved(ReluRule):
    """Halves what is negative, and looks at no values."""

    name = "halved"

    def leaving(self, g, derived, x, y, xp):
        return xp.where(g < 0, derived / 2, derived)


SHAPES = [(5, 8), (8, 8), (8, 8), (8, 3)]
WEIGHTS = [np.random.default_rng(seed).normal(size=shape) for seed, shape in enumerate(SHAPES)]
IMAGES = np.random.default_rng(9).normal(size=(6, 5))
CAP = 1.5


class Net(nn.Module):
    """A ReLU in each of several spellings, one with a skip around it, a cap at last."""

    def __init__(self, first, second, capped):
        super().__init__()
        self.relus = first, second, capped
        self.weights = nn.ParameterList([nn.Parameter(torch.tensor(each)) for each in WEIGHTS])

    def forward(self, images):
        hidden = self.relus[0](images @ self.weights[0])
        hidden = hidden + self.relus[1](hidden @ self.weights[1])
        return self.relus[2](hidden @ self.weights[2]) @ self.weights[3]


def backward(rule: ReluRule, label: int) -> np.ndarray:
    """Return the map of the same network in NumPy, by hand."""

    def leaves(x, g, cap=np.inf):
        return rule.leaving(g, g * ((x > 0) & (x < cap)), x, np.clip(x, 0, cap), np)

    first, second, third, last = WEIGHTS
    x = IMAGES @ first
    y = np.maximum(x, 0)
    branch = y @ second
    hidden = y + np.maximum(branch, 0)
    g = np.broadcast_to(last[:, label], (6, 8))
    g = leaves(hidden @ third, g, CAP) @ third.T
    g = g + leaves(branch, g) @ second.T
    return leaves(x, g) @ first.T


def on_a_view(x):
    x = x.clone()
    x.view(len(x), 2, -1).relu_()
    return x


NETS = {
    "functions": (torch.relu, F.relu, lambda x: F.hardtanh(x, 0, CAP)),
    "in place": (torch.relu_, lambda x: F.relu(x, inplace=True), lambda x: F.hardtanh(x, 0, CAP, inplace=True)),
    "bounds": (lambda x: x.clamp(min=0), lambda x: torch.maximum(torch.zeros(8), x), lambda x: x.clamp(0, CAP)),
    "broadcast": (
        lambda x: torch.maximum(x[:, None], torch.zeros(2, 1)).sum(1) / 2,
        lambda x: F.threshold(x, 0, 0),
        lambda x: x.clamp(torch.zeros(8), torch.full((8,), CAP)),
    ),
    "slope of 0": (lambda x: F.leaky_relu(x, 0), lambda x: F.elu(x, 0), lambda x: F.hardtanh(x, 0, CAP)),
    "slope of 0, in place": (lambda x: F.leaky_relu_(x, 0), lambda x: F.rrelu(x, 0, 0), lambda x: x.clamp_(0, CAP)),
    "on a view": (on_a_view, torch.relu, lambda x: (lambda y: (y.view(len(y), 2, 4).clamp_(0, CAP), y)[1])(x.clone())),
}


# On a view a ReLU has the view's axes, which this rule goes by.
RULES = [(Rect(0.7), net) for net in NETS] + [(Halved(), net) for net in NETS] + [(Functions(), "functions")]


@pytest.mark.parametrize("way", VARIANTS)
@pytest.mark.parametrize(("rule", "net"), RULES, ids=lambda each: getattr(each, "name", each))
def test_a_rule_of_ones_own(rule, net, way):
    class Mine(Method):
        pass

    Mine.rule = rule
    options = dict(VARIANTS[way])
    is_optimized = options.pop("is_optimized", False)
    model, images = Net(*NETS[net]).eval().requires_grad_(False), torch.tensor(IMAGES)
    method = Mine(model, **options)
    method = method.optimize(images) if is_optimized else method
    explanations = method.explain(images, 1)
    expected = backward(rule, 1)
    np.testing.assert_allclose(explanations, expected, rtol=1e-9, atol=1e-12)
    assert {row.treatment for row in explanations.coverage} == {rule.name}
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(GuidedBackprop(model).explain(images, 1), expected, rtol=1e-2, atol=1e-3)


def test_an_optimised_model_applies_a_rule_of_ones_own_in_its_relus():
    output = torch.relu(torch.ones(2, 2, requires_grad=True) * 1)
    assert own_function(output.grad_fn) is None
    assert own_function(GatedRelu.apply(torch.ones(2, requires_grad=True) * 1, None, False).grad_fn) is GatedRelu


def test_a_rule_that_reads_values_needs_them():
    class Mine(Method):
        rule = Rect(0.7)

    with pytest.raises(OpaqueRegionError, match="the rect rule reads the values of every ReLU; received OwnRelu"):
        Mine(lambda x: OwnRelu.apply(x * 2), vouch={"OwnRelu": "relu"}).explain(torch.tensor(IMAGES))

    class Blind(Method):
        rule = Halved()

    explanations = Blind(lambda x: OwnRelu.apply(x * 2), vouch={"OwnRelu": "relu"}).explain(torch.tensor(IMAGES), 1)
    np.testing.assert_array_equal(np.asarray(explanations)[:, 1], 2.0 * (IMAGES[:, 1] > 0))


@pytest.mark.parametrize(("low", "high"), [(torch.ge, torch.le), (torch.gt, torch.lt)])
def test_a_clamp_on_a_view_is_told_by_its_derivative(low, high):
    """By that of PyTorch 2.15, too, which is shut at the bounds."""
    x, g, said = torch.tensor([-1.0, 2.0, 3.0, 9.0]), torch.tensor([5.0, -5.0, 5.0, 5.0]), []
    nothing = torch.zeros(4)
    with torch.no_grad(), BackwardWatch(GUIDED, lambda *pair: said.append(pair)) as watch:
        watch.enter(())
        found = torch.where(torch.logical_and(low(x, 0), high(x, 6)), g, nothing)
        watch.leave((), ())
    assert found.tolist() == [0.0, 0.0, 5.0, 0.0]
    assert said == [("relu6", GUIDED.name)]


@pytest.mark.parametrize("compare", [torch.ge, torch.gt, torch.lt])
def test_what_is_multiplied_by_a_comparison_on_a_view_is_refused(compare):
    x = torch.tensor([-1.0, 2.0])
    for rule in (GUIDED, PLAIN):
        with torch.no_grad(), BackwardWatch(rule, lambda *pair: None) as watch:
            watch.enter(())
            refused = pytest.raises(OpaqueRegionError, match="received mul") if rule is GUIDED else nullcontext()
            with refused:
                x * compare(x, 0)
            watch.leave((), ())
