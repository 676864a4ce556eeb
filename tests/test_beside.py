"""A ReLU of x, made of x and of what the rule guides of it or of its opposite: ``x + relu(-x)``."""

import numpy as np
import pytest

from guided_backprop import DeconvNet, GuidedBackprop, OpaqueRegionError, RectGrad
from guided_backprop.backends import beside, evidence
from guided_backprop.backends.notes import Candidate
from guided_backprop.backends.noting import Noting
from networks_hidden import ROWS, WEIGHTS, oracle
from spellings.functions import HandGuided

torch = pytest.importorskip("torch")
step = pytest.importorskip("guided_backprop.backends.torch.hidden.step")
F = torch.nn.functional


def turned(x):
    return F.relu(-x)


STEEP = torch.linspace(0.3, 2, 20)
BOUNDS = torch.linspace(-0.4, 0.4, 20)
COLUMNS = (torch.arange(20) % 3 == 0).float()
ONES, ZEROS = torch.ones(20), torch.zeros(20)
OPPOSITE = -torch.eye(20)

#: Each is ``relu(x)``, and the rule acts on what arrives at the sum.
GUIDED = {
    "a sum": lambda x: x + turned(x),
    "a difference": lambda x: x - (-turned(x)),
    "a multiple": lambda x: (3 * x + F.relu(-3 * x)) / 3,
    "in place": lambda x: (x * 1).add_(turned(x)),
    "a maximum with 0": lambda x: x + (-x).clamp(min=0),
    "several of them": lambda x: x + turned(x) * 0.5 + turned(x) * 0.5,
    "a sum of a stack": lambda x: torch.stack([x, turned(x)]).sum(0),
    "a mean of a stack": lambda x: 2 * torch.stack([x, turned(x)]).mean(0),
    "parts of what was put together": lambda x: (lambda b: b[:, :20] + b[:, 20:])(torch.cat([turned(x), x], 1)),
    "another shape": lambda x: (x.reshape(-1, 4, 5) + turned(x.reshape(-1, 4, 5))).flatten(1),
    "on the way": lambda x: torch.lerp(x, turned(x), 0.5) * 2,
    "the opposite of the rest": lambda x: -((-x) - turned(x)),
}


def normed(x):
    return F.batch_norm(x, ZEROS, ONES, -ONES, 0.25 * ONES, eps=0.0)


#: So is each of these: the rule on one that is inside would change what arrives there, or they lie behind weights.
REFUSED = {
    "a magnitude of two ReLUs": lambda x, w: ((x + F.relu(x) + turned(x)) / 2) @ w,
    "weights": lambda x, w: x @ w + turned(x) @ w,
    "weights of what was put together": lambda x, w: torch.cat([x, turned(x)], 1) @ torch.cat([w, w]),
    "other values between": lambda x, w: (lambda a, b: (a + b + turned(a)) @ w[:14])(x[:, :14], x[:, 6:]),
    "other values added to the ReLU": lambda x, w: (lambda a, b: (a + (b + turned(a))) @ w[:14])(x[:, :14], x[:, 6:]),
    "other values between, behind weights": lambda x, w: (lambda a, b: (a + b) @ w[:14] + turned(a) @ w[:14])(
        x[:, :14], x[:, 6:]
    ),
    "a handful of numbers": lambda x, w: (lambda y: (y + turned(y)) @ w[:2])(x[:, :2]),
    "some columns": lambda x, w: (x + COLUMNS * turned(x)) @ w,
    "some columns of the negative rest": lambda x, w: (x - F.relu(COLUMNS * x)) @ w,
    "the opposite by a quotient": lambda x, w: (x + STEEP * F.relu(-x / STEEP)) @ w,
    "a bound that is taken away": lambda x, w: (x + F.relu(0.25 - x) - 0.25) @ w,
    "a bound above that is taken away": lambda x, w: (0.25 - x + F.relu(x + 0.3) - 0.55) @ w,
    "a bound that is taken away first": lambda x, w: (F.relu(0.25 - x) - 0.25 + x) @ w,
    "a bound by number": lambda x, w: (x + F.relu(BOUNDS - x) - BOUNDS) @ w,
    "a bound by weights": lambda x, w: (x + F.relu(F.linear(x, OPPOSITE, 0.25 * ONES)) - 0.25) @ w,
    "a bound by a batch-norm": lambda x, w: (x + F.relu(normed(x)) - 0.25) @ w,
    "a bound by addcmul": lambda x, w: (x + F.relu(torch.addcmul(0.25 * ONES, x, -ONES)) - 0.25) @ w,
    "a bound by weights that a bias takes away": lambda x, w: F.linear(
        x + F.relu(x @ OPPOSITE + 0.25), w.T, -0.25 * w.sum(0)
    ),
    "the negative rest": lambda x, w: (x - F.relu(x)) @ w,
    "the negative rest behind weights": lambda x, w: x @ w - F.relu(x) @ w,
}

#: And these where more than one image tells.
REFUSED_OF_MANY = {
    "a bound in some columns, 0 in others": lambda x, w: (x + F.relu(torch.where(COLUMNS > 0, -x, 0.25 - x))) @ w,
    "a bound by weights, in a stack": lambda x, w: (torch.stack([x, F.relu(x @ OPPOSITE + 0.25)]).sum(0) - 0.25) @ w,
    "a bound of what is made by its values": lambda x, w: (x + torch.where(x < 0.25, 0.25 - x, 0) - 0.25) @ w,
    "a bound that is taken away by a bias": lambda x, w: F.linear(x + F.relu(0.25 - x), w.T, -0.25 * w.sum(0)),
    "a bound that is taken away behind weights": lambda x, w: (x + F.relu(0.25 - x)) @ w - 0.25 * w.sum(0),
    "weights of a bound that is taken away": lambda x, w: x @ w + F.relu(0.25 - x) @ w - 0.25 * w.sum(0),
}

#: A bound that a constant mask puts beside other values.
MASKED = {
    "as they came": lambda x, w: (torch.where(COLUMNS > 0, x.clamp(min=0.25), x) - 0.25) @ w,
    "all of them positive": lambda x, w: (lambda y: torch.where(COLUMNS > 0, y.clamp(min=3), y) - 3)(x + 3) @ w,
}

#: None is one, and each ReLU is guided as it is written.
ORDINARY = {
    "the sizes": lambda x, w, relu: (relu(x) + relu(-x)) @ w,
    "a concatenated ReLU": lambda x, w, relu: torch.cat([relu(x), relu(-x)], 1) @ torch.cat([w, w.flip(1)]),
    "a skip": lambda x, w, relu: (x + relu(x)) @ w,
    "a bound below": lambda x, w, relu: (x + relu(-0.25 - x)) @ w,
    "a bound that is left": lambda x, w, relu: (x + relu(0.125 - x)) @ w,
    "a bound by weights that is left": lambda x, w, relu: (x + relu(x @ OPPOSITE + 0.125)) @ w,
    "a product with its ReLU": lambda x, w, relu: (x * relu(x)) @ w,
    "a hat": lambda x, w, relu: (relu(x + 1) * relu(1 - x)) @ w,
    "a hat as a sum": lambda x, w, relu: (relu(x) - 2 * relu(x - 0.25) + relu(x - 0.5)) @ w,
    "a skip past a batch-norm": lambda x, w, relu: (x + relu(2 * normed(x))) @ w,
    "a bound by number": lambda x, w, relu: (x + relu(BOUNDS - x)) @ w,
    "weights of a bound": lambda x, w, relu: x @ w + relu(-0.25 - x) @ w,
    "another bias behind a bound": lambda x, w, relu: (x + relu(0.25 - x)) @ w - w.sum(0),
    "a bound above": lambda x, w, relu: (x - relu(x - 0.25)) @ w,
    "a skip past weights": lambda x, w, relu: (x + relu(x) @ w @ w.T) @ w,
    "two of them": lambda x, w, relu: (lambda y: (y + relu(y) @ w @ w.T) @ w)(x + relu(x) @ w @ w.T),
    "some columns alone": lambda x, w, relu: (COLUMNS * relu(x) + (1 - COLUMNS) * x) @ w,
    "half of the opposite in some columns": lambda x, w, relu: (x + 0.5 * COLUMNS * relu(-x)) @ w,
    "half of the opposite": lambda x, w, relu: x @ w + 0.5 * (relu(-x) @ w),
    "weights of its own": lambda x, w, relu: x @ w + relu(-x) @ w.flip(0),
    "other values between": lambda x, w, relu: (lambda a, b: (a + b + relu(a)) @ w[:14])(x[:, :14], x[:, 6:]),
    "a ReLU of other values between": lambda x, w, relu: (lambda a, b: (a + b + relu(-b)) @ w[:14])(
        x[:, :14], relu(x[:, 6:])
    ),
    "a ReLU of a difference": lambda x, w, relu: (lambda r: (r + relu(r - x)) @ w)(relu(x.roll(1, 1))),
    "what is taken away again": lambda x, w, relu: (lambda d: (x + d + relu(d)) @ w)(relu(x.roll(1, 1)) - x),
    "the larger of two": lambda x, w, relu: (lambda r: (x + relu(r - x)) @ w)(relu(x.roll(1, 1))),
    "in place on a part": lambda x, w, relu: (lambda y: (y + in_place(y, relu)) @ w)(x.clone()),
    "a curve": lambda x, w, relu: (x + relu(-x).tanh()) @ w,
    "a softplus": lambda x, w, relu: (relu(x) + torch.log1p(torch.exp(-x.abs()))) @ w,
}

#: Nor is this one; of a ReLU by values too few are closed to tell.
WRITTEN = {
    "two bounds": lambda x, w, relu: (lambda y: (y + relu(-0.4 - y)) @ w)(x - relu(x - 0.4)),
}


def some_columns_behind_weights(x, w):
    return x @ w + (COLUMNS * turned(x)) @ w


def in_place(x, relu):
    """Return a copy, of which a half went through a ReLU in place."""
    y = x.clone()
    y[:, 10:] = relu(x[:, 10:])
    return y


def network_of(spelled, relu=F.relu):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    first, second, third, images = map(torch.as_tensor, (*WEIGHTS, ROWS))
    return lambda x: spelled(relu(x @ first) @ second - 0.2, third).tanh(), images


def explained(spelled, count=None, method=GuidedBackprop):
    model, images = network_of(spelled)
    return np.asarray(method(model).explain(images[:count], labels=1))


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", GUIDED)
def test_what_is_a_relu_with_the_one_that_is_added_is_guided(name, count):
    found = explained(lambda x, w: GUIDED[name](x) @ w, count)
    np.testing.assert_allclose(found, oracle()[:count], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_a_bound_in_some_columns_is_refused_once_it_is_0_again(name):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(MASKED[name])


#: These as well, but where all of x has one sign.
GUIDED_BY_VALUES = {
    "weights of the opposite": lambda x: x + F.relu(x @ OPPOSITE),
    "a bound of a curve": lambda x: torch.log(torch.exp(x) + F.relu(1 - torch.exp(x))),
}


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", GUIDED_BY_VALUES)
def test_what_is_a_relu_by_weights_or_a_curve_is_guided(name, count):
    found = explained(lambda x, w: GUIDED_BY_VALUES[name](x) @ w, count)
    np.testing.assert_allclose(found, oracle()[:count], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_put_under_the_rule_is_refused(name, count):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(REFUSED[name], count)


def test_what_comes_back_through_weights_of_its_own_is_no_bound():
    # As in each block of a network with skips, where it would have to be looked at from there on.
    shifted = Candidate("x", is_off=True)
    assert beside._with_relu(Candidate("x"), shifted).is_bounded
    assert not beside._with_relu(Candidate("x"), shifted._replace(weights=1)).is_bounded


@pytest.mark.parametrize("name", REFUSED_OF_MANY)
def test_what_takes_a_bound_away_behind_weights_is_refused(name):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(REFUSED_OF_MANY[name])


@pytest.mark.parametrize("count", [1, len(ROWS)])
@pytest.mark.parametrize("name", [*ORDINARY, *WRITTEN])
def test_what_is_none_is_guided_as_it_is_written(name, count):
    spelled = {**ORDINARY, **WRITTEN}[name]
    found = explained(lambda x, w: spelled(x, w, F.relu), count)
    model, images = network_of(lambda x, w: spelled(x, w, HandGuided.apply), HandGuided.apply)
    leaf = images[:count].clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def by_index(x):
    y = torch.zeros_like(x)
    y[x < 0] = -x[x < 0]
    return y


#: ``relu(-x)`` by arithmetic: it is found by its values, and counts as one that is written.
BY_VALUES = {
    "where": lambda x: torch.where(x < 0, -x, 0),
    "where, of zeros": lambda x: torch.where(x > 0, x * 0, -x),
    "a product": lambda x: -x * (x < 0),
    "a product, turned": lambda x: -(x * (x < 0).to(x)),
    "an index": by_index,
    "a filled mask": lambda x: (-x).masked_fill(x > 0, 0),
    "a scattered mask": lambda x: torch.zeros_like(x).masked_scatter(x < 0, -x[x < 0]),
    "a bound, turned": lambda x: -x.clamp(max=0),
    "scaled": lambda x: torch.where(x < 0, -x, 0) * 4 / 4,
    "of a part": lambda x: torch.where(x < 0, x * -0.5, 0) * 2,
    "moved": lambda x: torch.where(x.T < 0, -x.T, 0).T.clone(),
}


@pytest.mark.parametrize("name", BY_VALUES)
def test_what_is_added_may_be_a_relu_by_its_values(name):
    by_values = BY_VALUES[name]
    model, images = network_of(lambda x, w: (x + by_values(x)) @ w)
    method = GuidedBackprop(model)
    for rows in (slice(1), slice(5), slice(None), slice(5, 10)):
        found = np.asarray(method.explain(images[rows], labels=1))
        np.testing.assert_allclose(found, oracle()[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BY_VALUES)
def test_beside_others_and_behind_weights_that_is_refused_as_one_that_is_written(name):
    by_values = BY_VALUES[name]
    for spelled in (
        lambda x, w: (lambda a, b: (a + b + by_values(a)) @ w[:14])(x[:, :14].clone(), x[:, 6:]),
        lambda x, w: (lambda a, b: (a + (b + by_values(a))) @ w[:14])(x[:, :14].clone(), x[:, 6:]),
        lambda x, w: x @ w + by_values(x) @ w,
        lambda x, w: (x - by_values(-x)) @ w,
    ):
        for count in (1, len(ROWS)):
            with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
                explained(spelled, count)


HATS = ("a hat", "a hat as a sum")
BY_VALUES_ORDINARY = [name for name in ORDINARY if name not in ("in place on a part", "a softplus", *HATS)]


@pytest.mark.parametrize("name", BY_VALUES_ORDINARY)
@pytest.mark.parametrize("way", ["where", "an index"])
def test_what_is_none_is_none_with_a_relu_by_its_values(way, name):
    for count in (1, len(ROWS)):
        found = explained(lambda x, w: ORDINARY[name](x, w, lambda y: BY_VALUES[way](-y)), count)
        model, images = network_of(lambda x, w: ORDINARY[name](x, w, HandGuided.apply), HandGuided.apply)
        leaf = images[:count].clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "leaky",
    [
        lambda x, relu: relu(x) + 0.1 * (x - relu(x)),
        lambda x, relu: relu(x) - 0.1 * relu(-x),
        lambda x, relu: torch.where(x > 0, x, 0.1 * x),
    ],
)
def test_a_leaky_relu_of_one_by_its_values_is_not_refused(leaky):
    for count in (1, len(ROWS)):
        explained(lambda x, w: leaky(x, lambda y: BY_VALUES["where"](-y)) @ w, count)


def test_planted_fault_what_is_found_by_its_values_is_told_to_nobody(monkeypatch):
    monkeypatch.setattr(Noting, "opened", lambda self, values: ())
    found = explained(lambda x, w: (x + BY_VALUES["where"](x)) @ w)
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def masks(x):
    return torch.stack([(x > 0).to(x), (x <= 0).to(x)], -1)


#: Several of each number, one of which a mask of x closes.
SEVERAL = {
    "a stack": lambda x: x[..., None] * masks(x),
    "a stack in front": lambda x: (x * masks(x).movedim(-1, 0)).movedim(0, -1),
    "a one-hot": lambda x: x[..., None] * F.one_hot((x > 0).long(), 2),
    "an einsum": lambda x: torch.einsum("nc,nck->nck", x, masks(x)),
    "scattered": lambda x: torch.zeros(len(x), 40).scatter(1, torch.arange(20) + 20 * (x > 0).long(), x),
    "repeated": lambda x: x.repeat(1, 2) * masks(x).movedim(-1, 1).flatten(1),
    "chosen": lambda x: torch.where(masks(x) > 0, x[..., None], 0),
}

#: None of these is.
NO_SEVERAL = {
    "routes": lambda x: x[..., None] * F.one_hot(x[:, :2].argmax(1), 2)[:, None],
    "masks of others": lambda x: x[..., None] * masks(x.roll(1, 1).sin()),
    "the largest half": lambda x: x[..., None] * (x >= x.topk(10)[0][:, -1:])[..., None] * torch.ones(2),
    "padding": lambda x: x[..., None] * (x != 0)[..., None] * torch.ones(2),
    "no numbers": lambda x: torch.where(torch.isnan(x)[..., None], 0, torch.stack([x, 2 * x], -1)),
}


def of_parts(parts, w):
    return lambda x, _: parts(x).flatten(1) @ torch.cat([w, w.flip(0)])


@pytest.mark.parametrize("count", [1, 5, len(ROWS)])
@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_of_each_number_one_may_be_a_relu(name, count):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(of_parts(SEVERAL[name], torch.as_tensor(WEIGHTS[2])), count)


@pytest.mark.parametrize("name", NO_SEVERAL)
def test_several_of_each_number_may_be_none(name):
    for count in (1, 5, len(ROWS)):
        explained(of_parts(NO_SEVERAL[name], torch.as_tensor(WEIGHTS[2])), count)


TOGETHER = {"a sum of a stack", "a mean of a stack", "parts of what was put together"}


def of_one_sign(spelled, shift):
    """Return what explains a ReLU of what no image takes to the other side of 0: what is in front of it is bounded."""
    first, second, third, images = map(torch.as_tensor, (*WEIGHTS, ROWS))
    return lambda: GuidedBackprop(lambda x: spelled((x @ first).tanh() @ second + shift, third)).explain(images, 1)


@pytest.mark.parametrize("shift", [100, -100])
@pytest.mark.parametrize("name", sorted(GUIDED.keys() - TOGETHER))
def test_what_its_operations_make_a_relu_is_refused_where_x_has_one_sign(name, shift):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        of_one_sign(lambda x, w: GUIDED[name](x) @ w, shift)()


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_none_by_its_operations_is_explained_where_x_has_one_sign(name):
    for shift in (100, -100):
        assert of_one_sign(lambda x, w: ORDINARY[name](x, w, F.relu), shift)().coverage


def test_another_rule_acts_on_the_sum_as_on_a_relu():
    spelled, plain = (lambda x, w: GUIDED["a sum"](x) @ w), (lambda x, w: F.relu(x) @ w)
    np.testing.assert_allclose(explained(spelled, method=RectGrad), explained(plain, method=RectGrad), rtol=1e-4)
    with pytest.raises(OpaqueRegionError, match="passes gradients where a gate is shut"):
        explained(spelled, method=DeconvNet)


@pytest.mark.parametrize("spelled", [lambda x, w: GUIDED["a sum"](x) @ w, REFUSED["weights"]])
def test_planted_fault_what_joins_a_guided_relu_is_not_looked_at(spelled, monkeypatch):
    monkeypatch.setattr(Noting, "beside", lambda self, size: [])
    assert np.abs(explained(spelled) - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_some_columns_behind_weights_are_told_by_several_rows():
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(some_columns_behind_weights)


#: A part of a value, which is cut out again each time that it is written.
PARTS = {
    "a slice": lambda x: x[:, 3:11],
    "a half": lambda x: x.chunk(2, 1)[1],
    "a slice of another shape": lambda x: x.reshape(-1, 5, 4)[:, 1:3].flatten(1),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_part_that_is_cut_out_twice_is_one_value(part):
    def spelled(rest):
        return lambda x, w: (lambda w: part(x) @ w + rest(part(x)) @ w)(w[: part(x).shape[1]])

    added = explained(lambda x, w: (part(x) + turned(part(x))) @ w[: part(x).shape[1]], 4)
    np.testing.assert_allclose(added, explained(lambda x, w: F.relu(part(x)) @ w[: part(x).shape[1]], 4), rtol=1e-5)
    for rest in (turned, torch.abs):
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            explained(spelled(rest), 2)
    assert np.isfinite(explained(spelled(lambda x: 0.5 * turned(x)), 2)).all()


@pytest.mark.parametrize("others", [0.5, 2.0])
def test_some_columns_are_told_whatever_the_others_are(others):
    factors = others - (1 + others) * COLUMNS
    for spelled in (lambda x, w: (x + F.relu(factors * x)) @ w, lambda x, w: x @ w + F.relu(factors * x) @ w):
        model, images = network_of(spelled)
        many = torch.randn((16, images.shape[1]), generator=torch.Generator().manual_seed(0))
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            GuidedBackprop(model).explain(many, labels=1)


@pytest.mark.parametrize("spelled", [REFUSED["a handful of numbers"], some_columns_behind_weights])
def test_planted_fault_a_part_is_closed_by_chance(spelled, monkeypatch):
    monkeypatch.setattr(evidence, "are_closed", lambda *arrays: False)
    explained(spelled)


def test_planted_fault_what_other_values_are_added_to_is_forgotten(monkeypatch):
    monkeypatch.setattr(Noting, "_lines", lambda self: ())
    found = explained(REFUSED["other values between"])
    right = explained(lambda x, w: (F.relu(x[:, :14]) + x[:, 6:]) @ w[:14])
    assert np.abs(found - right).max() > 0.2 * np.abs(right).max()


def test_what_is_a_leaky_relu_is_one_activation():
    slopes = torch.linspace(0.1, 0.5, 20)
    written = [
        lambda x: F.relu(x) + 0.1 * (x - F.relu(x)),
        lambda x: F.relu(x) + 0.1 * x.clamp(max=0),
        lambda x: F.relu(x) + slopes * (x - F.relu(x)),
        lambda x: F.relu(x) + slopes * (x - x.abs()) * 0.5,
    ]
    for each, slope in zip(written, [0.1, 0.1, slopes, slopes], strict=True):
        found = explained(lambda x, w, each=each: each(x) @ w)
        expected = explained(lambda x, w, slope=slope: F.prelu(x, torch.as_tensor(slope)) @ w)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def of_multiples(x):
    """Return ``relu(x)`` by the norm of rows that are made of one number each."""
    column = torch.linspace(-1, 2, 6)[None]
    return (x + (x[..., None] @ column).norm(dim=-1) / column.norm()) / 2


def test_the_norm_of_rows_of_one_number_each_is_a_magnitude(monkeypatch):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x, w: of_multiples(x) @ w)
    # A planted fault: the rows do not tell.
    monkeypatch.setattr(step, "_are_multiples", lambda *_: False)
    assert np.abs(explained(lambda x, w: of_multiples(x) @ w) - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_rows_of_many_numbers_are_told_from_multiples_of_one():
    rows = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert step._has_rows(rows, 2, [-1])
    assert step._has_rows(rows.double(), 2, [0, 1])
    # By its magnitudes it tells the sign of each; of one row nobody knows, nor of one number beside small ones.
    assert not step._has_rows(rows, 1, [-1])
    assert not step._has_rows(rows, 2, None)
    assert not step._has_rows(rows, 2, [0, 1, 2])
    assert not step._has_rows(rows * torch.tensor([1000, 1, 1, 1, 1]), 2, [-1])
    assert not step._has_rows(rows[..., :1] * torch.linspace(1, 2, 5), 2, [-1])
