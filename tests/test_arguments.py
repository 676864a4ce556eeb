"""Known curves that are switches by their arguments, and what tells signs though no comparison does: in PyTorch."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import step
from guided_backprop.backends.torch.hidden import step as watched
from guided_backprop.backends.torch.hidden import watch
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

torch = pytest.importorskip("torch")
F = torch.nn.functional


def of_two(x):
    return torch.stack([x, -x], -1)


def by_a_floor(x):
    """Write one behind the gradient: ``sqrt(max((x + 50) ** 2 * 4e-8, 1e-4)) * 5e3`` is 50 where x is below 0."""
    y = (x + 50) ** 2 * 4e-8
    with torch.no_grad():
        y.clamp_min_(1e-4)
    return y.sqrt()


def floored(images):
    first, second, third = map(torch.as_tensor, WEIGHTS)
    y = by_a_floor(torch.relu(images @ first) @ second - 0.2)
    return (y @ (third * 5e3) - 50 * third.sum(0)).tanh()


def of_weight_norm(x):
    rows = x.reshape(-1, 1)
    return torch.ops.aten._weight_norm_interface(rows, torch.ones_like(rows), 0)[0].reshape(x.shape)


def tangent(x):
    angle = x / 10 + torch.pi / 2
    return x * (angle - torch.atan(torch.tan(angle))) / torch.pi


def by_phase(x):
    return x * (1 - torch.log(torch.complex(x, torch.zeros_like(x))).imag / torch.pi)


def by_tolerance(x):
    return x * (torch.linalg.pinv(x.exp().reshape(-1, 1, 1), atol=1.0).reshape(x.shape) * x.exp())


def clipped_by_length(x):
    y = x - 100
    return y / (y.abs() / 100).clamp(min=1) + 100


def by_quantiles(x):
    low, high = (torch.quantile(x, share, 1, keepdim=True) for share in (0.1, 0.9))
    return (x - low) / (high - low + 1e-3)


#: Each is ``relu(x)``.
HIDDEN = {
    "a hard sigmoid": lambda x: F.hardsigmoid(x / 10 - 3) * 60,
    "a hard sigmoid of less": lambda x: F.hardsigmoid(x / 1000 - 3) * 6000,
    "a hard sigmoid with a threshold": lambda x: F.hardsigmoid((x + 1) / 10 - 3.1) * 60,
    "a hard sigmoid of all bounds": lambda x: F.hardsigmoid(x - 3) * 6 + (x - 6).relu(),
    "a soft shrink": lambda x: F.softshrink(x + 100, 100.0),
    "a soft shrink of the opposite": lambda x: -F.softshrink(-x - 100, 100.0),
    "a renormalisation": lambda x: torch.renorm((x - 100).reshape(-1, 1), 2, 0, 100.0).reshape(x.shape) + 100,
    "a length that is clipped": clipped_by_length,
    "a layer norm of two": lambda x: x * (1 + F.layer_norm(of_two(x), (2,), eps=0.0)[..., 0]) / 2,
    "a layer norm of two large ones": lambda x: x * (1 + F.layer_norm(of_two(x) * 1e9, (2,))[..., 0]) / 2,
    "a group norm of two": lambda x: (
        x * (1 + F.group_norm(of_two(x).reshape(-1, 1, 2) * 1e9, 1).reshape(*x.shape, 2)[..., 0]) / 2
    ),
    "a root mean square of one": lambda x: x * (1 + F.rms_norm(x[..., None], (1,), eps=0.0)[..., 0]) / 2,
    "a weight norm of one": lambda x: x * (1 + of_weight_norm(x)) / 2,
    "an instance norm of two": lambda x: (
        x * (1 + F.instance_norm(of_two(x).reshape(1, -1, 2) * 1e9).reshape(*x.shape, 2)[..., 0]) / 2
    ),
    "a pole": lambda x: x * (torch.atan(x) + torch.atan(1 / x)) / torch.pi + x / 2,
    "a pole of a quotient": lambda x: x * (torch.atan(x) + torch.atan(2 / (2 * x))) / torch.pi + x / 2,
    "poles of a tangent": tangent,
    "a phase": by_phase,
    "a tolerance": by_tolerance,
}

#: None is a ReLU of x.
ORDINARY = {
    "a hard sigmoid": F.hardsigmoid,
    "a gate of half of the values": lambda x: x * F.hardsigmoid(4 * x),
    "a hard sigmoid of a shift": lambda x: F.hardsigmoid(3 * x + 1),
    "a hard swish": F.hardswish,
    "a soft shrink": lambda x: F.softshrink(x, 0.2),
    "a soft shrink of a shift": lambda x: F.softshrink(x - 0.1, 0.2),
    "a hard shrink of a shift": lambda x: F.hardshrink(x - 0.1, 0.2),
    "a group norm of two": lambda x: F.group_norm(x, 10),
    "a layer norm": lambda x: F.layer_norm(x, (20,)),
    "a weight norm": lambda x: torch._weight_norm(x, torch.ones(len(x), 1), 0),
    "quantiles": by_quantiles,
    "a quotient": lambda x: x / (x.sum(1, keepdim=True) + 7),
    "a tangent": lambda x: torch.tan(x / 10),
    "an inverse": lambda x: torch.linalg.pinv((x + 9).reshape(len(x), 4, 5)).flatten(1) + torch.reciprocal(x * x + 1),
    "a renormalisation": lambda x: torch.renorm(x, 2, 0, 1.0),
}


def network_of(spelled, dtype="float32"):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    first, second, third, images = (torch.as_tensor(array.astype(dtype)) for array in (*WEIGHTS, ROWS))
    return lambda x: (spelled(torch.relu(x @ first) @ second - 0.2) @ third).tanh(), images


def explained(spelled, count, dtype="float32"):
    model, images = network_of(spelled, dtype)
    return np.asarray(GuidedBackprop(model).explain(images[:count], labels=1))


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_a_switch_by_its_arguments_is_guided_or_refused(name, dtype, count):
    try:
        found = explained(HIDDEN[name], count, dtype)
    except OpaqueRegionError:
        return
    np.testing.assert_allclose(found, oracle()[:count], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_known_is_plain(name, count):
    model, images = network_of(ORDINARY[name])
    leaf = images[:count].clone().requires_grad_()
    # What is spelled keeps its derivative: the guided map is that of the ReLU in front of it alone.
    first, second, third = map(torch.as_tensor, WEIGHTS)
    inner = torch.relu(leaf @ first)
    (g,) = torch.autograd.grad((ORDINARY[name](inner @ second - 0.2) @ third).tanh()[:, 1].sum(), inner)
    expected = (g.clamp(min=0) * (inner > 0)) @ first.T
    found = GuidedBackprop(model).explain(images[:count], labels=1).attribution
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_floor_behind_the_gradient_of_other_than_norms_is_refused():
    with pytest.raises(OpaqueRegionError, match="changed without one"):
        GuidedBackprop(floored).explain(torch.as_tensor(ROWS), labels=1)
    with pytest.raises(OpaqueRegionError, match="changed without one"):
        explained(lambda x: x + by_a_floor(x).sum(1, keepdim=True), 1)


@pytest.mark.parametrize("height", [1.0, 0.0, 1e-9])
def test_a_floor_of_norms_may_lift_what_is_0_alone(height):
    def spelled(x):
        scale = torch.ones(len(x), 1)
        scale[0] = height
        norm = (x * scale).norm(dim=1, keepdim=True).clone()
        with torch.no_grad():
            norm.clamp_min_(1e-6)
        return x * norm

    if 0 < height < 1:
        with pytest.raises(OpaqueRegionError, match="changed without one"):
            explained(spelled, len(ROWS))
    else:
        assert np.isfinite(explained(spelled, len(ROWS))).all()


def test_planted_fault_any_floor_is_let_pass(monkeypatch):
    monkeypatch.setattr(watch, "is_guard", lambda name, args, note: name == "clamp_min")
    found = np.asarray(GuidedBackprop(floored).explain(torch.as_tensor(ROWS), labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


FAULTS = {
    "a hard sigmoid": (watched, "_IN_PIECES", frozenset()),
    # Its rows are few numbers, and multiples of one row.
    "a layer norm of two": (watched, "_tells_signs", lambda name, kind, args: False),
    "a weight norm of one": (watched, "_FEW", 0),
    "a tolerance": (watched, "_BY_TOLERANCE", frozenset()),
    "a pole": (watched, "_has_pole", lambda name, word, operands: False),
    "poles of a tangent": (step, "_BENT", frozenset()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_what_is_taken_for_a_curve_leaves_a_wrong_map(name, monkeypatch):
    monkeypatch.setattr(*FAULTS[name])
    found = explained(HIDDEN[name], len(ROWS), "float64")
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()
