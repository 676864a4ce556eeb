"""A mask, a sign or a part of a value that meets weights before or beside the value: a ReLU that no value shows."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.backends import choices, nomination, noting, step
from guided_backprop.backends.choices import judge_weighed
from guided_backprop.backends.evidence import joined
from guided_backprop.backends.notes import Ranks
from guided_backprop.backends.spelling import Verdict
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, oracle

RNG = np.random.default_rng(0)
FRAMEWORKS = ["torch", "jax", "tensorflow"]
X, G = RNG.normal(size=(2, 5, 12))

SHUT = {
    "below 0": X > 0,
    "above 0": X < 0,
    "below another number": X > 0.3,
    "below 0, and some above": (X > 0) & (RNG.random(X.shape) < 0.7),
}
OPEN = {
    "nowhere": np.ones(X.shape, bool),
    "anywhere": RNG.random(X.shape) < 0.5,
    "around 0": np.abs(X) > 0.3,
    "by rows": np.median(X, 1, keepdims=True) < X,
    "by another value": G > 0,
    "all but one": (X > 0) | np.isin(X, X[X < 0][3]),
}


@pytest.mark.parametrize("name", SHUT)
def test_a_derivative_that_is_0_on_one_side_is_that_of_a_relu(name):
    assert judge_weighed(X, G * SHUT[name]) is Verdict.PARTIAL
    # What rounding leaves of a sum of opposite numbers is none.
    assert judge_weighed(X, np.where(SHUT[name], G, 1e-7 * G)) is Verdict.PARTIAL
    assert judge_weighed(X, G * SHUT[name], is_of_one_sign=True) is Verdict.NONE


@pytest.mark.parametrize("name", OPEN)
def test_other_derivatives_are_none(name):
    assert judge_weighed(X, G * OPEN[name]) is Verdict.NONE


def test_few_values_tell_nothing():
    assert judge_weighed(X[:1, :6], (G * SHUT["below 0"])[:1, :6]) is Verdict.UNSETTLED
    assert judge_weighed(np.abs(X), G) is Verdict.UNSETTLED


def test_a_rank_is_no_threshold():
    assert judge_weighed(X, G * SHUT["below 0"], Ranks.ALL) is Verdict.NONE
    assert judge_weighed(X, G * SHUT["below 0"], Ranks.SOME) is Verdict.PARTIAL
    assert judge_weighed(X[:1].repeat(2, 0), (G * SHUT["below 0"])[:2], Ranks.SOME) is not Verdict.PARTIAL


class Library:
    """What the spellings need of a framework, under one name each."""

    def __init__(self, framework):
        self.xp = pytest.importorskip({"jax": "jax.numpy"}.get(framework, framework))
        self.framework = framework
        if framework == "torch":
            self.array, self.relu, self.leaky = self.xp.as_tensor, self.xp.relu, self.xp.nn.functional.leaky_relu
        elif framework == "jax":
            self.jax = pytest.importorskip("jax")
            self.array, self.relu, self.leaky = self.xp.asarray, self.jax.nn.relu, self.jax.nn.leaky_relu
        else:
            self.array, self.relu, self.leaky = self.xp.constant, self.xp.nn.relu, self.xp.nn.leaky_relu

    def number(self, mask):
        """Return 1 where a mask is, and 0 elsewhere."""
        if self.framework == "tensorflow":
            return self.xp.cast(mask, "float32")
        return mask.float() if self.framework == "torch" else mask.astype("float32")

    def joined(self, *values, axis=1):
        concatenate = getattr(self.xp, "concatenate", None) or self.xp.concat
        return concatenate(list(values), axis)

    def columns(self, w):
        return [w[:, number] for number in range(w.shape[1])]

    def added_up(self, x):
        return self.xp.reduce_sum(x, 1) if self.framework == "tensorflow" else x.sum(1)

    def norm(self, x):
        """Return the sum of the magnitudes of each row."""
        if self.framework == "tensorflow":
            return self.xp.norm(x, ord=1, axis=1)
        return self.xp.norm(x, p=1, dim=1) if self.framework == "torch" else self.xp.linalg.norm(x, 1, axis=1)

    def taken(self, table, ids):
        return self.xp.gather(table, ids) if self.framework == "tensorflow" else table[ids]

    def sum_of_the_positive(self, x, w):
        """Return the products of positive numbers with their weights, added up row by row."""
        if self.framework == "torch":
            row, column = (x > 0).nonzero(as_tuple=True)
            start = self.xp.zeros(len(x), w.shape[1])
            return start.index_add(0, row, x[row, column][:, None] * w[column])
        if self.framework == "jax":
            added_up = lambda row: self.jax.ops.segment_sum(row[:, None] * w, (row > 0).astype(int), 2)[1]  # noqa: E731
            return self.jax.vmap(added_up)(x)
        places = self.xp.where(x > 0)
        products = self.xp.gather_nd(x, places)[:, None] * self.xp.gather(w, places[:, 1])
        return self.xp.math.unsorted_segment_sum(products, places[:, 0], x.shape[0])


def row_by_row(lib, x, w):
    rows = [x[number] for number in range(x.shape[0])]
    return lib.xp.stack([lib.xp.einsum("k,km->m", r, lib.number(r > 0)[:, None] * w) for r in rows])


#: Each is ``relu(x) @ w``.
HIDDEN = {
    "a mask in the weights": lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, lib.number(x > 0)[..., None] * w),
    "a mask in the weights of a row": row_by_row,
    "a mask of a multiple": lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, lib.number(2 * x > 0)[..., None] * w),
    "a mask of a curve": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.number(lib.xp.tanh(2 * x) + 1 > 1)[..., None] * w
    ),
    "a mask of a sum of curves": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.number(lib.xp.tanh(x) + lib.xp.sinh(x) > 0)[..., None] * w
    ),
    "a mask by rounding": lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, lib.xp.floor(x / 1000 + 1)[..., None] * w),
    "a mask of a curve, of a multiple of x": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", 3 * x, lib.number(lib.xp.exp(x) > 1)[..., None] * (w / 3)
    ),
    "weights that a mask chose": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.xp.where((x > 0)[..., None], w, 0 * w)
    ),
    "an embedding by sign": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.taken(lib.joined(w, 0 * w[:1], axis=0), lib.xp.where(x > 0, lib.array(np.arange(20)), 20))
    ),
    "what is selected and then added up": lambda lib, x, w: lib.sum_of_the_positive(x, w),
    "a magnitude": lambda lib, x, w: (x @ w + abs(x) @ w) / 2,
    "a sign": lambda lib, x, w: (x @ w + (lib.xp.sign(x) * x) @ w) / 2,
    "a magnitude of the opposite": lambda lib, x, w: (x @ w + abs(-x) @ w) / 2,
    "a magnitude of a shift": lambda lib, x, w: (x @ w + abs((x + 1) - 1) @ w) / 2,
    "a magnitude beside": lambda lib, x, w: lib.joined(x, abs(x)) @ lib.joined(w, w, axis=0) / 2,
    "the larger of x and -x": lambda lib, x, w: (x @ w + lib.xp.maximum(x, -x) @ w) / 2,
    "a root of a square": lambda lib, x, w: (x @ w + lib.xp.sqrt(x * x) @ w) / 2,
    "norms of rows": lambda lib, x, w: lib.xp.stack(
        [
            (lib.added_up(x * column) + lib.norm(x * lib.relu(column)) - lib.norm(x * lib.relu(-column))) / 2
            for column in lib.columns(w)
        ],
        1,
    ),
    "magnitudes beside those of the opposite": lambda lib, x, w: (
        (x @ w + abs(lib.joined(x, -x)) @ lib.joined(w, 0 * w, axis=0)) / 2
    ),
    "a leak taken away": lambda lib, x, w: 2 * (lib.leaky(x, 0.5) @ w) - x @ w,
}

#: None is a ReLU of x.
ORDINARY = {
    "the larger of x and a part of it": lambda lib, x, w: lib.xp.maximum(x, 0.2 * x) @ w,
    "a magnitude": lambda lib, x, w: x @ w + 0.5 * abs(x) @ w,
    "a magnitude with weights of its own": lambda lib, x, w: x @ w + abs(x) @ (w * w),
    "a mask of another value": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.number(lib.xp.einsum("nk,km,jm->nj", x, w, w) > 0)[..., None] * w
    ),
    "a mask of what is far from 0": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.number(x * x > 0.1)[..., None] * w
    ),
    "a mask of a curve of another value": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, lib.number(lib.xp.tanh(lib.xp.einsum("nk,km,jm->nj", x, w, w)) > 0)[..., None] * w
    ),
    "a mask of padding": lambda lib, x, w: lib.xp.einsum(
        "nk,km->nm", x, lib.array((np.arange(20) < 15).astype("float32"))[:, None] * w
    ),
    "a leak": lambda lib, x, w: lib.leaky(x, 0.5) @ w,
    "a root mean square": lambda lib, x, w: x @ w / lib.xp.sqrt(lib.added_up(x * x)[:, None]),
    "roots of squares": lambda lib, x, w: x @ w + lib.xp.sqrt(x * x + 1) @ w,
    "a norm of rows": lambda lib, x, w: x @ w / lib.norm(x)[:, None],
    "weights that another value chose": lambda lib, x, w: lib.xp.where((x @ w)[:, :1] > 0, x @ w, 2 * (x @ w)),
    "an embedding by sign": lambda lib, x, w: (
        x @ w + lib.xp.einsum("nkm->nm", lib.taken(w, lib.xp.where(x > 0, lib.array(np.arange(20)), 3)))
    ),
}


def apart(lib, x, w):
    """Return what is ``relu(x) @ w``: of two values one is taken away again."""
    other = lib.xp.tanh(lib.xp.roll(x, 1, 1))
    return lib.xp.maximum(x + other, other) @ w - other @ w


def by_row(spelled):
    return lambda lib, x, w: spelled(lib, x[None], w)[0]


def mapped(lib, spelled, x, w):
    of_row = lambda row: by_row(spelled)(lib, row, w)  # noqa: E731
    return lib.jax.lax.map(of_row, x) if lib.framework == "jax" else lib.xp.map_fn(of_row, x)


def branched(lib, spelled, x, w):
    if lib.framework == "jax":
        return lib.jax.lax.cond(x.sum() > -1e9, lambda x: spelled(lib, x, w), lambda x: x @ w, x)
    return lib.xp.cond(lib.xp.reduce_sum(x) > -1e9, lambda: spelled(lib, x, w), lambda: x @ w)


def turned(lib, spelled, x, w):
    turn = lambda number, y, out: (number + 1, y, spelled(lib, y, w) + 0 * out)  # noqa: E731
    if lib.framework == "jax":
        return lib.jax.lax.fori_loop(0, 1, lambda number, pair: turn(number, *pair)[1:], (x, 0 * (x @ w)))[1]
    return lib.xp.while_loop(lambda number, y, out: number < 1, turn, (0, x, 0 * (x @ w)))[2]


#: What holds other operations, of which only what comes out is seen from outside.
HOLDING = {"a map": mapped, "a branch": branched, "a loop": turned}
HELD = {"a mask": HIDDEN["a mask in the weights"], "a magnitude": HIDDEN["a magnitude"], "one of two": apart}


def network_of(framework, spelled):
    """Return a model with a ReLU of its own in front of what is spelled, and its images."""
    lib = Library(framework)
    first, second, third, images = map(lib.array, (*WEIGHTS, ROWS))
    return lambda x: lib.xp.tanh(spelled(lib, lib.relu(x @ first) @ second - 0.2, third)), images


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_relu_behind_weights_is_refused(framework, name):
    model, images = network_of(framework, HIDDEN[name])
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


def of_a_derivative(lib, x, w):
    """Return the products with the derivative of ``relu(x) @ w``, as PyTorch's transforms give it."""
    derivative = lib.xp.func.jacrev(lambda row: lib.relu(row) @ w)
    return lib.xp.einsum("nk,nmk->nm", x, lib.xp.func.vmap(derivative)(x))


def of_a_gradient(lib, x, w):
    """Return the products with the derivative of what is detached, taken inside of the model."""
    with lib.xp.enable_grad():
        inner = x.detach().requires_grad_()
        (mask,) = lib.xp.autograd.grad(lib.relu(inner).sum(), inner)
    return lib.xp.einsum("nk,nkm->nm", x, mask[..., None] * w)


def ended(cut):
    """Return the products of the largest numbers of each row, which is cut where the positive ones end."""

    def spelled(lib, x, w):
        rows = []
        for row in x:
            values, order = row.sort(descending=True)
            kept = cut(values, (row > 0).sum())
            rows.append(kept @ w[order[: len(kept)]])
        return lib.xp.stack(rows)

    return spelled


def of_a_backward_pass(name, *bounds, of=lambda x, w: x):
    """Return the products with weights that went through the derivative of an operation, as of a ReLU."""

    def spelled(lib, x, w):
        weights, gates = lib.xp.broadcast_tensors(w, of(x, w)[..., None])
        return lib.xp.einsum("nk,nkm->nm", x, getattr(lib.xp.ops.aten, name)(weights, gates, *bounds))

    return spelled


def of_what_is_detached(mask):
    return lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, mask(lib, x.detach())[..., None] * w)


#: PyTorch: the mask of what is detached, which has no derivative of its own, or of a multiple; or one that passes
#: zeros back, as a sign does, and the derivative of a ReLU.
OF_ANOTHER = {
    "a mask of what is detached": of_what_is_detached(lambda lib, d: d > 0),
    "a mask of a copy of what is detached": of_what_is_detached(lambda lib, d: d.clone() > 0),
    "a mask of a view of what is detached": of_what_is_detached(lambda lib, d: d.view(-1, 2, 10).flatten(1) > 0),
    "a step of what is detached": of_what_is_detached(lambda lib, d: lib.xp.heaviside(d, lib.xp.zeros(()))),
    "a ReLU of what is detached": of_what_is_detached(lambda lib, d: d.relu() / d),
    "a mask of the data": lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, (x.data > 0)[..., None] * w),
    "a mask of a multiple": lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, (2 * x > 0)[..., None] * w),
    "a mask of a detached multiple": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, ((2 * x).detach() > 0)[..., None] * w
    ),
    "a magnitude of a multiple": lambda lib, x, w: (x @ w + abs(x * 2) @ w / 2) / 2,
    "a sign of a curve": lambda lib, x, w: lib.xp.einsum(
        "nk,nkm->nm", x, (lib.xp.sign(lib.xp.tanh(x)) / 2 + 0.5)[..., None] * w
    ),
    "a row that ends": ended(lambda values, end: values[: int(end)]),
    "a row that is split": ended(lambda values, end: values.tensor_split(end[None].cpu())[0]),
    "a derivative": of_a_derivative,
    "a gradient inside of the model": of_a_gradient,
    "a derivative of a ReLU": of_a_backward_pass("threshold_backward", 0.0),
    "a derivative of a hard tanh": of_a_backward_pass("hardtanh_backward", 0.0, 1e9),
    "a derivative of a leaky ReLU": of_a_backward_pass("leaky_relu_backward", 0.0, False),
}


@pytest.mark.parametrize("name", OF_ANOTHER)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_mask_of_what_has_another_derivative_is_refused_in_pytorch(name, count):
    model, images = network_of("torch", OF_ANOTHER[name])
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images[:count], labels=1)


def test_what_is_detached_and_no_mask_of_x_is_plain_in_pytorch():
    """As rows shifted by their own mean, and weights by what is detached of another value."""
    model, images = network_of("torch", lambda lib, x, w: (x - x.detach().mean(1, keepdim=True)) @ w)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()
    model, images = network_of("torch", lambda lib, x, w: x @ w * ((x @ w).detach()[:, :1] > 0))
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_a_derivative_that_is_no_mask_of_what_it_meets_is_plain_in_pytorch():
    """As one of another value, and one of a curve."""
    other = of_a_backward_pass("threshold_backward", 0.0, of=lambda x, w: x @ w @ w.T)
    model, images = network_of("torch", other)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()
    model, images = network_of("torch", of_a_backward_pass("tanh_backward"))
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_a_row_that_ends_elsewhere_is_plain_in_pytorch():
    def spelled(lib, x, w):
        end = int((x.sum() > -1e9) * 15)
        return x[:, :end] @ w[:end]

    model, images = network_of("torch", spelled)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_planted_fault_where_a_row_ends_is_no_place(monkeypatch):
    watched = pytest.importorskip("guided_backprop.backends.torch.hidden.step")
    monkeypatch.setattr(watched, "_ENDS", frozenset())
    model, images = network_of("torch", OF_ANOTHER["a row that ends"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_planted_fault_what_passes_zeros_back_is_no_mask(monkeypatch):
    monkeypatch.setattr(noting, "_STEPS", frozenset())
    # It is told besides of the ReLU whose derivative it is.
    monkeypatch.setattr(noting.Noting, "beside", lambda self, size: [])
    model, images = network_of("torch", OF_ANOTHER["a derivative"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_planted_fault_what_was_detached_is_not_followed_leaves_a_wrong_map(monkeypatch):
    notes = pytest.importorskip("guided_backprop.backends.torch.hidden.notes")
    # It is told besides of what x is a shift of, and of what meets the mask.
    monkeypatch.setattr(nomination.Step, "_roots", lambda self: ())
    monkeypatch.setattr(nomination.Step, "_met", lambda self: [])
    model, images = network_of("torch", OF_ANOTHER["a mask of what is detached"])
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)
    monkeypatch.setattr(notes.Notes, "source_of", lambda self, tensor: None)
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("mode", ["floor", "trunc"])
@pytest.mark.parametrize("name", ["div", "divide", "div_"])
def test_a_quotient_that_is_rounded_is_a_step_in_pytorch(name, mode):
    def spelled(lib, x, w):
        shift = 1000 if mode == "trunc" else 0
        divide = getattr(lib.xp if name != "div_" else lib.xp.Tensor, name)
        return (x * (1 - shift // 1000 + divide(x + shift, 1000, rounding_mode=mode))) @ w

    model, images = network_of("torch", spelled)
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    np.testing.assert_allclose(found, oracle(), rtol=1e-4, atol=1e-6)


def running_sums(lib, x, w):
    """Return the sum of the largest products, as many as there are positive numbers."""
    ordered, order = x.sort(1, descending=True)
    sums = (ordered[..., None] * w[order]).cumsum(1)
    return sums[lib.xp.arange(len(x)), (x > 0).sum(1) - 1]


@pytest.mark.parametrize("name", [*HIDDEN, "running sums"])
@pytest.mark.parametrize("count", [1, 2])
def test_few_images_hide_none_in_pytorch(name, count):
    model, images = network_of("torch", (HIDDEN | {"running sums": running_sums})[name])
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images[:count], labels=1)


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("count", [1, 2])
def test_few_images_make_none_of_what_is_none_in_pytorch(name, count):
    model, images = network_of("torch", ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images[:count], labels=1))).all()


def test_what_is_open_for_most_of_a_few_is_no_relu_in_pytorch():
    """Of x and what is made of it the larger one is x for most of the positive ones, and for none of a dozen others."""
    case = pytest.importorskip("guided_backprop.backends.torch.hidden.case")
    few, g = X.copy(), G * (X > 0)
    g[few == few.max()] = 0
    assert judge_weighed(few, g) is Verdict.PARTIAL
    assert not case.evidence.is_apart(few, g)
    assert case.evidence.is_apart(few, G * (X > 0.3))


def test_other_images_are_asked_once():
    runs = []

    def counted(x):
        runs.append(x)
        return model(x)

    # Whatever the images are, x is 0 there.
    model, images = network_of("torch", lambda lib, x, w: x @ w + abs(0 * x) @ w)
    explainer = GuidedBackprop(counted)
    explainer.explain(images[:1], labels=1)
    assert len(runs) == 4
    explainer.explain(images[1:2], labels=1)
    assert len(runs) <= 6


def test_planted_fault_without_other_images_few_rows_hide_a_relu(monkeypatch):
    spelled = pytest.importorskip("guided_backprop.backends.torch.hidden.spelled")
    monkeypatch.setattr(spelled, "_behind", lambda watch, path, inside, wanted, relus: {})
    model, images = network_of("torch", HIDDEN["norms of rows"])
    GuidedBackprop(model).explain(images[:1], labels=1)


def model_that_holds(framework, holding, spelled, count=20):
    """Return a model that ends in a loop or a branch, with a ReLU of its own in front, and one image of few values."""
    lib = Library(framework)
    first, second, third = (
        lib.array(np.random.default_rng(seed).normal(size=size).astype("float32") / 3)
        for seed, size in enumerate([(12, 12), (12, count), (count, 9)])
    )
    images = np.random.default_rng(7).normal(size=(4 if count > 8 else 2, 12)).astype("float32")
    model = lambda x: HOLDING[holding](lib, spelled, lib.relu(x @ first) @ second - 0.2, third)  # noqa: E731
    return model, lib.array(images)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("holding", HOLDING)
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_a_relu_behind_weights_inside_of_what_holds_it_is_refused(framework, holding, name):
    for count in (20, 6):
        model, images = model_that_holds(framework, holding, HELD[name], count)
        with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
            GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize("name", ["a magnitude", "a leak", "a magnitude with weights of its own"])
@pytest.mark.parametrize("holding", HOLDING)
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_what_is_none_inside_is_plain(framework, holding, name):
    model, images = model_that_holds(framework, holding, ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_planted_fault_what_comes_out_of_a_loop_is_not_asked(monkeypatch):
    taint = pytest.importorskip("guided_backprop.backends.tensorflow.hidden.taint")
    monkeypatch.setattr(taint, "_weighed_inside", lambda note: [])
    model, images = model_that_holds("tensorflow", "a map", HELD["a mask"])
    GuidedBackprop(model).explain(images, labels=1)


def test_few_values_of_one_look_are_more_of_several():
    first, second = (X[:1], 5 * (G * SHUT["below 0"])[:1]), (-X[:1], (G * SHUT["above 0"])[:1])
    assert judge_weighed(*first) is Verdict.UNSETTLED
    assert judge_weighed(*joined([first, second])) is Verdict.PARTIAL
    assert judge_weighed(*joined([first, (-X[:1], G[:1])])) is Verdict.NONE
    # What is not finite tells nothing, and warns of nothing.
    assert judge_weighed(*joined([first, (-X[:1], np.inf * G[:1])])) is Verdict.NONE
    # Of another shape, or of which nothing is led, the last one counts alone.
    assert joined([first, (X[:2], G[:2])])[0].shape == (2, 12)
    assert joined([first, (X[:1], 0 * G[:1])])[0].shape == (1, 12)


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_none_is_plain(framework, name):
    model, images = network_of(framework, ORDINARY[name])
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_a_vouch_covers_its_place_alone():
    """PyTorch: beside what is vouched for another ReLU behind weights is refused; what is made of it is not."""
    pytest.importorskip("torch")

    def spelled(lib, x, w):
        first = x @ w + abs(x) @ w
        second = x @ w - abs(x) @ w
        return first @ w[:9] + second

    model, images = network_of("torch", spelled)
    places = list[str]()
    for _ in range(2):
        with pytest.raises(OpaqueRegionError) as refused:
            GuidedBackprop(model, vouch=dict.fromkeys(places, "plain")).explain(images, labels=1)
        places.append(str(refused.value).partition('vouch={"')[2].partition('"')[0])
    assert len(set(places)) == 2
    assert GuidedBackprop(model, vouch=dict.fromkeys(places, "plain")).explain(images, labels=1).shape == images.shape
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model, vouch={"sort": "plain"}).explain(images, labels=1)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_a_magnitude_of_a_multiple_behind_weights_is_refused(framework):
    model, images = network_of(framework, lambda lib, x, w: (x @ w + abs(x * 2) @ w / 2) / 2)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


ONE_IMAGE = [("jax", "norms of rows"), ("jax", "what is selected and then added up")]
ONE_IMAGE += [("tensorflow", "norms of rows"), ("tensorflow", "what is selected and then added up")]


@pytest.mark.parametrize(("framework", "name"), ONE_IMAGE)
def test_one_image_is_enough_where_nothing_is_chosen_by_a_sum(framework, name):
    model, images = network_of(framework, HIDDEN[name])
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images[:1], labels=1)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_planted_fault_a_sum_that_compares_leaves_a_wrong_map_of_one_image(framework, monkeypatch):
    compared = step.Given.ranked
    monkeypatch.setattr(step.Given, "ranked", lambda self, size=None: compared(self, size) | self.summed(size))
    # Further images tell it all the same.
    behind = pytest.importorskip(f"guided_backprop.backends.{framework}.hidden.behind")
    monkeypatch.setattr(behind, "needs_more_images", lambda count, shape, ranks: False)
    model, images = network_of(framework, HIDDEN["norms of rows"])
    found = np.asarray(GuidedBackprop(model).explain(images[:1], labels=1))
    assert np.abs(found - oracle()[:1]).max() > 0.1 * np.abs(oracle()[:1]).max()


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_what_is_above_the_mean_of_one_image_is_no_relu(framework):
    def masked(lib, x, w):
        mean = lib.added_up(x)[:, None] / 20
        return lib.xp.einsum("nk,nkm->nm", x, lib.number(x > mean)[..., None] * w)

    model, images = network_of(framework, masked)
    for number in range(4):
        found = GuidedBackprop(model).explain(images[number : number + 1], labels=1)
        assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_explicit_relu_is_guided(framework):
    model, images = network_of(framework, lambda lib, x, w: lib.relu(x) @ w)
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    np.testing.assert_allclose(found, oracle(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_without_the_derivative_the_map_is_wrong(framework, monkeypatch):
    """A taint that stops at the weights leaves a map that is none of this method."""
    monkeypatch.setattr(nomination.Step, "_weighed", lambda self, size: iter(()))
    model, images = network_of(framework, HIDDEN["a mask in the weights"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_planted_fault_values_of_one_side_alone_are_no_evidence(monkeypatch):
    monkeypatch.setattr(choices, "_LEAST_WAYS", 1)
    assert judge_weighed(X[:1, :6], (G * SHUT["below 0"])[:1, :6]) is Verdict.PARTIAL


def test_a_mask_of_a_view_is_that_of_the_value():
    """PyTorch: a mask of ``x[:, None]`` lies beside the way from x to the result."""
    torch = pytest.importorskip("torch")
    spelled = lambda lib, x, w: torch.vmap(lambda r: r @ torch.where(r[:, None] > 0, w, 0.0))(x)  # noqa: E731
    model, images = network_of("torch", spelled)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_a_multiple_that_is_not_followed_leaves_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(nomination.Step, "_roots", lambda self: ())
    monkeypatch.setattr(nomination.Step, "_common", ())
    model, images = network_of(framework, HIDDEN["a magnitude of the opposite"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_a_square_that_is_not_followed_leaves_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(nomination.Step, "_curves", lambda self, size: iter(()))
    model, images = network_of(framework, HIDDEN["a root of a square"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_what_meets_the_mask_and_was_not_compared_leaves_a_wrong_map(framework, monkeypatch):
    monkeypatch.setattr(nomination.Step, "_met", lambda self: [])
    model, images = network_of(framework, HIDDEN["a mask of a sum of curves"])
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def differentiated(lib, spelled, x, w):
    """Return the derivative of a sum of what is spelled, worked out inside of the model."""
    with lib.xp.GradientTape() as tape:
        tape.watch(x)
        y = lib.xp.reduce_sum(spelled(x))
    return tape.gradient(y, x)


def by_jacobian(lib, x, w):
    with lib.xp.GradientTape() as tape:
        tape.watch(x)
        y = lib.relu(x) @ w
    return lib.xp.einsum("nk,nmk->nm", x, tape.batch_jacobian(y, x))


#: Of x, and of what is made of it once, each is ``relu(a - b) @ w`` of these two.
NESTED = {
    "b of a": lambda tf, x, made, w: tf.maximum(x, made) @ w - made @ w,
    "a of b": lambda tf, x, made, w: tf.maximum(made, x) @ w - x @ w,
    "a of b, and the smaller": lambda tf, x, made, w: x @ w - tf.minimum(x, x + made) @ w,
}


def of_what_is_made_of_it(spelled):
    return lambda lib, x, w: spelled(lib.xp, x, lib.xp.tanh(lib.xp.roll(x, 1, 1) - 0.3), w)


@pytest.mark.parametrize("name", NESTED)
def test_a_maximum_of_a_value_and_what_is_made_of_it_is_refused_in_tensorflow(name):
    model, images = network_of("tensorflow", of_what_is_made_of_it(NESTED[name]))
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda tf, x, made, w: tf.maximum(x, made) @ w - (2 * made) @ w,
        lambda tf, x, made, w: x @ w + tf.maximum(x, made) @ (w * w),
        lambda tf, x, made, w: tf.maximum(x, made) @ w - made @ w / 2 - x @ w / 2,
    ],
)
def test_another_maximum_of_what_is_made_of_it_is_plain_in_tensorflow(spelled):
    model, images = network_of("tensorflow", of_what_is_made_of_it(spelled))
    assert GuidedBackprop(model).explain(images, labels=1).coverage


def test_planted_fault_what_comes_through_the_other_leaves_a_wrong_map(monkeypatch):
    derivatives = pytest.importorskip("guided_backprop.backends.tensorflow.hidden.derivatives")
    monkeypatch.setattr(derivatives.Derivatives, "_nested", lambda derivatives, refs: ())
    written = lambda tf, x, made, w: tf.nn.relu(x - made) @ w  # noqa: E731
    maps = []
    for spelled in (NESTED["b of a"], written):
        model, images = network_of("tensorflow", of_what_is_made_of_it(spelled))
        maps.append(np.asarray(GuidedBackprop(model).explain(images, labels=1)))
    assert np.abs(maps[0] - maps[1]).max() > 0.1 * np.abs(maps[1]).max()


def by_derivative(lib, x, w):
    return lib.xp.einsum("nk,nkm->nm", x, differentiated(lib, lib.relu, x, w)[..., None] * w)


def by_relu6(lib, x, w):
    small = lambda x: 100 * lib.xp.nn.relu6(x / 100)  # noqa: E731
    return lib.xp.einsum("nk,nkm->nm", x, differentiated(lib, small, x, w)[..., None] * w)


@pytest.mark.parametrize("spelled", [by_derivative, by_jacobian, by_relu6])
def test_a_derivative_of_a_relu_in_the_weights_is_refused(spelled):
    """TensorFlow: it is a step towards what the ReLU is of."""
    model, images = network_of("tensorflow", spelled)
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        GuidedBackprop(model).explain(images, labels=1)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda lib, x, w: x @ w + differentiated(lib, lib.relu, x, w) @ w,
        lambda lib, x, w: lib.xp.einsum("nk,nkm->nm", x, differentiated(lib, lib.xp.tanh, x, w)[..., None] * w),
    ],
)
def test_other_derivatives_in_a_model_are_plain(spelled):
    model, images = network_of("tensorflow", spelled)
    assert np.isfinite(np.asarray(GuidedBackprop(model).explain(images, labels=1))).all()


def test_planted_fault_a_derivative_that_is_no_step_leaves_a_wrong_map(monkeypatch):
    traces = pytest.importorskip("guided_backprop.backends.tensorflow.hidden.traces")
    monkeypatch.setattr(traces, "_STEPS", {})
    monkeypatch.setattr(noting.Noting, "beside", lambda self, size: [])
    model, images = network_of("tensorflow", by_derivative)
    found = np.asarray(GuidedBackprop(model).explain(images, labels=1))
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def test_linear_attention_is_plain_in_jax():
    """Its sums of ``elu(x) + 1`` are given an axis more: that repeats nothing, and is no ReLU of what it was."""
    jax = pytest.importorskip("jax")
    first, _, third = WEIGHTS
    heads = lambda h: h.reshape(len(h), -1, 4)  # noqa: E731

    def attended(relu, elu):
        def model(x):
            h = heads(relu(x @ first)[:, :4])
            return (h * (elu(h - 0.1) + 1).sum(-1)[..., None]).reshape(len(h), 4) @ third[:4]

        return model

    @jax.custom_vjp
    def guided(x):
        return jax.nn.relu(x)

    guided.defvjp(lambda x: (guided(x), x), lambda x, g: ((x > 0) * jax.nn.relu(g),))
    found = GuidedBackprop(attended(jax.nn.relu, jax.nn.elu)).explain(jax.numpy.asarray(ROWS), labels=1)
    y, back = jax.vjp(attended(guided, jax.nn.elu), jax.numpy.asarray(ROWS))
    (expected,) = back(jax.numpy.zeros(y.shape, y.dtype).at[:, 1].set(1))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-6)
