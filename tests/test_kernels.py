"""Convolutions and linear layers by oneDNN: as PyTorch's own both ways, used where offered, never of old weights."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from guided_backprop import DeconvNet, GuidedBackprop, Saliency, compare
from guided_backprop.backends.torch.fast import kernels
from guided_backprop.backends.torch.fast.calls import Convolution, Norm
from guided_backprop.backends.torch.fast.kernels import NO_TAPS, Kernel
from networks import IMAGES
from networks_torch import Net, oracle
from spellings import column
from spellings.arithmetic import ARITHMETIC
from spellings.relus import RELUS
from test_optimize import CHANGES, Own, conv, images, names_of

# Two float32 implementations that add up in different orders.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
ACTIVATIONS = column(RELUS | ARITHMETIC, "torch", "guided")
OFFERED = hasattr(torch.ops.mkldnn, "_reorder_convolution_transpose_weight")


@pytest.fixture(autouse=True, scope="module")
def small_ones_are_packed():
    """Pack the small convolutions of these tests as well, where that does not pay; linear layers alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_LEAST_WORK", 0)
        patch.setattr(kernels, "_LEAST_PRODUCT", 0)
        yield


def singles(*shape: int, seed: int = 0) -> torch.Tensor:
    return images(*shape, seed=seed).float()


def model_of(*layers: nn.Module) -> nn.Module:
    """Return a model in float32 whose batch-norms do something."""
    model = nn.Sequential(*layers).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-2, 2)
                module.bias.normal_()
    return model


def packed_of(method: GuidedBackprop, batch: torch.Tensor) -> int:
    """Return how many nodes of the graph are convolutions with packed weights."""
    return names_of(method, batch).count("PackedConvolutionBackward")


def products_of(method: GuidedBackprop, batch: torch.Tensor) -> int:
    """Return how many nodes of the graph are linear layers by oneDNN."""
    return names_of(method, batch).count("MatrixProductBackward")


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.sampled_from([(5, 6, 1), (4, 6, 2), (6, 6, 6), (5, 3, 1), (20, 7, 1)]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.fixed_dictionaries(
        {"stride": PAIR, "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)), "dilation": PAIR}
    ),
    st.tuples(st.integers(13, 18), st.integers(13, 18)),
    st.booleans(),
)
def test_a_packed_convolution(channels, taps, windows, size, has_norm):
    inputs, outputs, groups = channels
    # Of a size that keeps results near 1, where float32 rounds to 1e-7.
    weight, bias = images(outputs, inputs // groups, *taps) / 10, images(outputs, seed=1)
    x = images(2, inputs, *size, seed=2).requires_grad_()
    norm = nn.BatchNorm2d(outputs).double().eval()
    with torch.no_grad():
        norm.running_mean.copy_(images(outputs, seed=3))
        norm.weight.copy_(images(outputs, seed=4))
    options = windows | {"groups": groups}
    expected = F.conv2d(x, weight, bias, **options)
    expected = norm(expected) if has_norm else expected
    g = images(*expected.shape, seed=5)
    (right,) = torch.autograd.grad(expected, x, g)

    single = norm.float()
    folded = Norm(single.running_mean, single.running_var, single.weight, single.bias) if has_norm else None
    kernel = Kernel(weight.float(), bias.float(), folded)
    leaf = x.detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    call = Convolution(torch.conv2d, leaf, kernel.weight, kernel.bias, **options)
    found = kernel.convolve(call, NO_TAPS, packs=True)
    assert (found.grad_fn.name() == "PackedConvolutionBackward") == OFFERED
    np.testing.assert_allclose(found.detach(), expected.detach(), **TOLERANCE)
    # What arrives has a layout of its own.
    (back,) = torch.autograd.grad(found, leaf, g.float())
    np.testing.assert_allclose(back, right, **TOLERANCE)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(right.roll(1, 3), right, **TOLERANCE)


@pytest.mark.parametrize("memory", [None, "lean"])
def test_packed_for_images_of_any_size_and_number(memory):
    model = model_of(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(groups=4), nn.ReLU6(), conv(bias=False))
    fast = GuidedBackprop(model, memory=memory).optimize(singles(1, 4, 9, 8))
    for shape in ((1, 4, 9, 8), (3, 4, 9, 8), (2, 4, 14, 5), (1, 4, 9, 8)):
        batch = singles(*shape, seed=len(shape))
        assert packed_of(fast, batch) == 3 * OFFERED
        weights = singles(*model(batch).shape, seed=9)
        np.testing.assert_allclose(
            fast.explain(batch, weights), GuidedBackprop(model).explain(batch, weights), **TOLERANCE
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spelling", ACTIVATIONS)
def test_every_spelling_of_a_relu_in_float32(spelling):
    model, labels = Net(ACTIVATIONS[spelling]).float(), [0, 3, 4, 1]
    batch = torch.tensor(IMAGES, dtype=torch.float32)
    fast = GuidedBackprop(model).optimize(batch[:1])
    np.testing.assert_allclose(fast.explain(batch, labels), oracle(labels=labels), **TOLERANCE)


def _replaced_bias(model: nn.Module) -> None:
    model[0].bias = nn.Parameter(model[0].bias + 1)


def _bias_through_data(model: nn.Module) -> None:
    model[0].bias.data[1] += 1


def _through_numpy(model: nn.Module) -> None:
    model[3].weight.detach().numpy()[1, 1] = 0


def _other_storage(model: nn.Module) -> None:
    model[3].weight.data = model[3].weight.data * -0.5


def _other_channels(model: nn.Module) -> None:
    model[0].weight.data.copy_(model[0].weight.flip(0))


def _other_taps(model: nn.Module) -> None:
    model[0].weight.data.copy_(model[0].weight.flip(3))


@pytest.mark.parametrize(
    "change",
    [
        *CHANGES,
        *(_replaced_bias, _bias_through_data, _through_numpy, _other_storage, _other_channels, _other_taps),
    ],
    ids=lambda each: each.__name__,
)
def test_changed_weights_count_at_once(change):
    model = model_of(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
    batch = singles(2, 4, 9, 8)
    fast = GuidedBackprop(model).optimize(batch)
    before = np.asarray(fast.explain(batch, 1))
    with torch.no_grad():
        change(model)
    after = fast.explain(batch, 1)
    np.testing.assert_allclose(after, GuidedBackprop(model).explain(batch, 1), **TOLERANCE)
    assert not np.allclose(after, before, **TOLERANCE)


def test_weights_that_the_model_itself_changes_on_the_way_count_at_once():
    """As in networks that choose a kernel for the image: nothing of the last one may be left."""

    def forward(self, x):
        self.conv.weight.data.fill_(x.mean().item())
        return self.last(torch.relu(self.norm(self.conv(x))))

    model = Own(forward, conv=conv(), norm=nn.BatchNorm2d(4), last=conv()).eval()
    one, other = singles(2, 4, 9, 8) + 1, singles(2, 4, 9, 8, seed=1) - 2
    fast = GuidedBackprop(model).optimize(one)
    assert packed_of(fast, one) == 2 * OFFERED
    for batch in (one, one, other, other, one):
        found = np.asarray(fast.explain(batch, 1))
        np.testing.assert_allclose(found, GuidedBackprop(model).explain(batch, 1), **TOLERANCE)


# Linear layers.


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_linear_layer(shape, inputs, outputs, how):
    has_bias, is_turned, is_expanded = how
    weight, bias = images(outputs, inputs), images(outputs, seed=1) if has_bias else None
    x = images(*shape, inputs, seed=2).requires_grad_()
    expected = F.linear(x, weight, bias)
    g = images(outputs, seed=3).expand(expected.shape) if is_expanded else images(*expected.shape, seed=3)
    (right,) = torch.autograd.grad(expected, x, g)

    leaf, single = x.detach().float().requires_grad_(), weight.float()
    # Neither what comes in nor the weights need lie in order.
    given_ = leaf.mT.contiguous().mT if is_turned and leaf.ndim > 1 else leaf * 1
    single = single.t().contiguous().t() if is_turned else single
    found = kernels.multiplied(F.linear, (given_, single), {"bias": None if bias is None else bias.float()})
    assert (found.grad_fn.name() == "MatrixProductBackward") == OFFERED
    np.testing.assert_allclose(found.detach(), expected.detach(), **TOLERANCE)
    (back,) = torch.autograd.grad(found, leaf, g.float())
    np.testing.assert_allclose(back, right, **TOLERANCE)
    # A planted fault: another weight.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(F.linear(x, weight + 1, bias).detach(), expected.detach(), **TOLERANCE)


def head() -> nn.Module:
    layers = nn.Linear(288, 9), nn.ReLU(), nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU6(), nn.Linear(8, 5)
    return model_of(conv(), nn.ReLU(), nn.Flatten(), *layers)


@pytest.mark.parametrize("kind", [Saliency, DeconvNet, GuidedBackprop])
@pytest.mark.parametrize("memory", [None, "lean"])
def test_linear_layers_of_a_model(memory, kind):
    model, batch = head(), 3 * singles(3, 4, 9, 8)
    fast = kind(model, memory=memory).optimize(batch[:1])
    assert products_of(fast, batch) == 3 * OFFERED
    expected, found = kind(model).explain(batch, "top3"), fast.explain(batch, "top3")
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert found.coverage == expected.coverage
    for other in {Saliency, DeconvNet, GuidedBackprop} - {kind}:
        assert not np.allclose(found, other(model).explain(batch, "top3"), **TOLERANCE)
    # The weights are the model's own.
    with torch.no_grad():
        model[3].weight.data.mul_(-1)
    changed = fast.explain(batch, 1)
    np.testing.assert_allclose(changed, kind(model).explain(batch, 1), **TOLERANCE)
    assert not np.allclose(changed, expected.attribution[:, 0], **TOLERANCE)


def _weight_of_the_images(self, x):
    return F.linear(torch.relu(x.mean((2, 3))), x.mean(0).flatten(1)[:, :4])


def _bias_of_the_images(self, x):
    return F.linear(torch.relu(x.mean((2, 3))), torch.eye(4), x.mean((0, 2, 3)))


@pytest.mark.parametrize("forward", [_weight_of_the_images, _bias_of_the_images])
def test_a_linear_layer_that_the_images_make(forward):
    model, batch = Own(forward).eval(), singles(2, 4, 9, 8)
    fast = GuidedBackprop(model).optimize(batch)
    assert products_of(fast, batch) == 0
    np.testing.assert_allclose(fast.explain(batch, 1), GuidedBackprop(model).explain(batch, 1), **TOLERANCE)


BIASES = [
    lambda values: values[:, 0],
    lambda values: values[0, :1].expand(len(values)),
    lambda values: values.flatten()[:: values.shape[1]],
]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", [Saliency, GuidedBackprop])
def test_a_bias_that_does_not_lie_in_order(bias, kind):
    """Put there after the example, so that no run on it tells."""
    batch = 2 * singles(3, 4, 9, 8)
    for position, model in ((0, model_of(conv(), nn.ReLU(), conv())), (3, head())):
        fast = kind(model).optimize(batch)
        model[position].bias.data = bias(3 * singles(len(model[position].bias), 4, seed=5))
        np.testing.assert_allclose(fast.explain(batch, 1), kind(model).explain(batch, 1), **TOLERANCE)


def _bias_kept_from_the_images(self, x):
    self.kept.detach_().copy_(5 * x.mean((0, 2, 3)))
    return F.conv2d(torch.relu(x), self.conv.weight, self.kept)


def _norm_kept_from_the_images(self, x):
    self.kept.detach_().copy_(5 * x.mean((0, 2, 3)))
    ones = self.norm.running_mean, self.norm.running_var
    return torch.relu(F.batch_norm(self.conv(torch.relu(x)), *ones, self.norm.weight, self.kept))


def _bias_of_the_first(self, x):
    return torch.relu(F.conv2d(x, self.stem.weight, 5 * x.mean((0, 2, 3)), 2))


@pytest.mark.parametrize("forward", [_bias_kept_from_the_images, _norm_kept_from_the_images, _bias_of_the_first])
def test_a_bias_that_the_images_make(forward):
    layers = {"conv": conv(), "norm": nn.BatchNorm2d(4), "stem": nn.Conv2d(4, 4, 5)}
    model, batch = Own(forward, **layers).eval(), singles(2, 4, 9, 8)
    model.register_buffer("kept", torch.zeros(4))
    fast = GuidedBackprop(model).optimize(batch)
    np.testing.assert_allclose(fast.explain(batch, 1), GuidedBackprop(model).explain(batch, 1), **TOLERANCE)


@pytest.mark.parametrize("is_first_seen_late", [False, True])
def test_a_linear_layer_that_learns_on_the_way(is_first_seen_late, monkeypatch):
    def forward(self, x):
        first = x.flatten(1)
        self.a.load_state_dict(start)
        with torch.enable_grad():
            (torch.relu(self.a(first.detach())) ** 2).mean().backward()
        with torch.no_grad():
            for each in self.a.parameters():
                if each.grad is not None:
                    each.sub_(each.grad * 3)
                    each.grad = None
        return torch.relu(self.a(first))

    model, batch = Own(forward, a=model_of(nn.Linear(288, 9))[0]).eval(), singles(3, 4, 9, 8)
    start = {name: values.clone() for name, values in model.a.state_dict().items()}
    # On the example it is small, so that no run on it tells.
    monkeypatch.setattr(kernels, "_LEAST_PRODUCT", 3 * 288 * 9 if is_first_seen_late else 0)
    fast = GuidedBackprop(model).optimize(batch[:1])
    expected = np.asarray(GuidedBackprop(model).explain(batch, 1))
    np.testing.assert_allclose(fast.explain(batch, 1), expected, **TOLERANCE)


def test_a_sparse_gradient_at_a_linear_layer():
    picked = torch.tensor([[1], [0], [3]])
    model = Own(lambda self, x: torch.gather(self.inner(x), 1, picked, sparse_grad=True), inner=head()).eval()
    batch = singles(3, 4, 9, 8)
    fast = GuidedBackprop(model).optimize(batch)
    np.testing.assert_allclose(fast.explain(batch, 0), GuidedBackprop(model).explain(batch, 0), **TOLERANCE)


def test_a_change_of_a_small_channel_beside_large_ones():
    model = model_of(nn.Conv2d(4, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))
    batch = singles(2, 4, 9, 8)
    with torch.no_grad():
        model[0].weight[1].mul_(1e-7)
        model[2].weight[:, 1].div_(1e-7)
    fast = GuidedBackprop(model).optimize(batch)
    before = np.asarray(fast.explain(batch, 1))
    model[0].weight.data[1].mul_(-1.5)
    after = fast.explain(batch, 1)
    scale = 1e-4 * float(np.abs(before).max())
    np.testing.assert_allclose(after, GuidedBackprop(model).explain(batch, 1), rtol=1e-3, atol=scale)
    assert not np.allclose(after, before, rtol=1e-3, atol=scale)


# Gradients that several operations add up.


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), min_size=2, max_size=9))
def test_any_graph_of_convolutions_and_sums(steps):
    """What works in place must not touch a gradient that another branch still needs."""

    def forward(self, x):
        values = [x]
        for position, (one, other, what) in enumerate(steps):
            first, second = values[one % len(values)], values[other % len(values)]
            made = self[position](first) if what else first
            values.append([first + second, made, made + second, torch.relu(made) - second][what])
            values.append(torch.relu(values[-1]))
        return sum(values).mean((2, 3))

    layers = model_of(*[conv() for _ in steps])
    model, batch = Own(lambda self, x: forward(self.layers, x), layers=layers).eval(), singles(2, 4, 5, 4)
    usual, fast = ([kind(model) for kind in (Saliency, DeconvNet, GuidedBackprop)] for _ in range(2))
    subject = fast[0].optimize(batch[:1]).subject
    for method in fast:
        method.subject = subject
    # From one forward pass each.
    for found, expected in zip(compare(batch, "top2", fast), compare(batch, "top2", usual), strict=True):
        largest = np.abs(np.asarray(expected)).max()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_where_weights_are_not_packed():
    model = model_of(conv(), nn.ReLU(), conv(), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    batch = singles(2, 4, 9, 8)

    def ours(method: GuidedBackprop) -> tuple[int, int]:
        return packed_of(method, batch), products_of(method, batch)

    fast = GuidedBackprop(model).optimize(batch)
    assert ours(fast) == (2 * OFFERED, OFFERED)
    with torch.backends.mkldnn.flags(enabled=False):
        assert ours(fast) == (0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(fast) == (0, 0)
    block = Own(lambda self, x: checkpoint(self.inner, x, use_reentrant=False), inner=model).eval()
    fast = GuidedBackprop(block).optimize(batch)
    assert ours(fast) == (0, 0)
    np.testing.assert_allclose(fast.explain(batch, 1), GuidedBackprop(model).explain(batch, 1), **TOLERANCE)
    twice = Own(lambda self, x: self.conv(torch.relu(self.conv(x))), conv=model[0]).eval()
    assert packed_of(GuidedBackprop(twice).optimize(batch), batch) == 0


def test_only_what_is_large_enough_is_packed(monkeypatch):
    # 4 x 4 channels, 3 x 3 taps: the larger image takes 144 * 90 * 80 multiplications.
    model, small, large = model_of(conv(), nn.ReLU()), singles(1, 4, 9, 8), singles(1, 4, 90, 80)
    monkeypatch.setattr(kernels, "_LEAST_WORK", 1_000_000)
    fast = GuidedBackprop(model).optimize(small)
    assert [packed_of(fast, batch) for batch in (small, large)] == [0, int(OFFERED)]
    for batch in (small, large):
        np.testing.assert_allclose(fast.explain(batch, 1), GuidedBackprop(model).explain(batch, 1), **TOLERANCE)
    monkeypatch.setattr(kernels, "_LEAST_PRODUCT", 2 * 288 * 9)
    fast = GuidedBackprop(head()).optimize(small)
    assert [products_of(fast, singles(count, 4, 9, 8)) for count in (1, 2)] == [0, int(OFFERED)]


def test_eight_threads_of_different_sizes():
    model = model_of(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.ReLU())
    batches = [singles(1 + seed % 3, 4, 9 + seed % 2, 8, seed=seed) for seed in range(8)]
    expected = [np.asarray(GuidedBackprop(model).explain(batch, 1)) for batch in batches]
    fast = GuidedBackprop(model).optimize(batches[0])

    def work(number: int) -> None:
        for _ in range(25):
            np.testing.assert_allclose(fast.explain(batches[number], 1), expected[number], **TOLERANCE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
