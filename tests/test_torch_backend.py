"""What holds around the rule on PyTorch: labels, bad input, heads, dtypes, batches, threads, untouched state."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reference
from guided_backprop import (
    GuidedBackprop,
    GuidedBackpropError,
    ImageError,
    LabelError,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    OptionError,
    Saliency,
    ScoreError,
    layer_names,
)
from guided_backprop.backends.torch.model.images import placed
from networks import CLASSES, IMAGES, LABELS, mixed, positions
from networks_torch import Net, oracle, relu_net, to_torch
from spellings.functions import OwnRelu, magnitude_on_view
from spellings.models import compiled
from variants import each_variant

_each_variant = each_variant("as it is", "lean", "lean, optimised")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def images() -> torch.Tensor:
    return torch.tensor(IMAGES)


def explain(labels, **options):
    return GuidedBackprop(relu_net(), **options).explain(images(), labels)


# Labels.


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        np.array(LABELS),
        np.array(LABELS, np.uint8),
        torch.tensor(LABELS),
        torch.tensor(LABELS, dtype=torch.int32),
        np.eye(CLASSES)[LABELS],
        np.eye(CLASSES, dtype=int)[LABELS],
        torch.eye(CLASSES, dtype=torch.bfloat16)[LABELS],
    ],
)
def test_every_form_of_labels(labels):
    explanations = explain(labels)
    np.testing.assert_allclose(explanations, oracle(), **TOLERANCE)
    np.testing.assert_array_equal(explanations.labels, np.asarray(torch.as_tensor(labels).float()))


@pytest.mark.parametrize("labels", [2, np.int64(2), torch.tensor(2)])
def test_one_label_for_all_images(labels):
    explanations = explain(labels)
    np.testing.assert_allclose(explanations, oracle(labels=[2] * 4), **TOLERANCE)
    np.testing.assert_array_equal(explanations.labels, [2] * 4)


def test_no_labels_are_the_top_classes():
    model = relu_net()
    outputs = model(images()).detach().numpy()
    explanations = GuidedBackprop(model).explain(images())
    np.testing.assert_array_equal(explanations.labels, outputs.argmax(1))
    np.testing.assert_allclose(explanations.scores, outputs.max(1), **TOLERANCE)
    np.testing.assert_allclose(explanations.outputs, outputs, **TOLERANCE)
    np.testing.assert_allclose(explanations, oracle(labels=list(outputs.argmax(1))), **TOLERANCE)


def test_weights_are_a_weighted_score():
    weights = np.random.default_rng(0).normal(size=(4, CLASSES))
    net = mixed(reference.ReLU())
    expected = reference.attribution(net, IMAGES, weights, "guided")
    explanations = explain(weights)
    np.testing.assert_allclose(explanations, expected, **TOLERANCE)
    np.testing.assert_allclose(explanations.scores, (net.forward(IMAGES)[0] * weights).sum(1), **TOLERANCE)


def test_class_ids_sum_over_positions():
    model = to_torch(positions(2))
    weights = np.zeros((4, 2, 6, 6))
    weights[:, 1] = 1
    by_id, by_weights = (GuidedBackprop(model).explain(images(), labels) for labels in (1, weights))
    np.testing.assert_array_equal(by_id, by_weights)
    np.testing.assert_allclose(by_id.scores, by_weights.scores)


def test_one_output_per_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).double().eval()
    explanations = GuidedBackprop(model).explain(images())
    np.testing.assert_array_equal(explanations.labels, [0] * 4)
    np.testing.assert_allclose(explanations.scores, model(images()).detach())
    halved = GuidedBackprop(model).explain(images(), np.full(4, 0.5))
    np.testing.assert_allclose(np.asarray(halved) * 2, explanations, **TOLERANCE)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 5], r"in \[0, 5\); received labels\[3\]=5"),
        ([0, -1, 2, 3], r"received labels\[1\]=-1"),
        (5, r"received labels\[0\]=5"),
        ([0.0, 1.0, 2.0, 3.0], "integer"),
        ([0.5, 1, 2, 3], "integer"),
        ([0, 1, 2], "one per image; received 3 labels for 4 images"),
        (np.zeros((4, 4)), r"received labels of shape \(N, 4\)"),
        (np.zeros((4, 5)), "not all be zero"),
        (np.full((4, 5), np.nan), "finite"),
        (np.zeros((5, 5)), "one per image"),
        (["cat", "dog", "cat", "dog"], "numbers"),
        ("cat", "a word; received labels='cat'"),
        ([True, False, True, False], "numbers"),
        ([[0], [1, 2], [3], [4]], "numbers"),
        (object(), "numbers"),
        ([], "one per image"),
        ([1 + 2j] * 4, "numbers"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(LabelError, match=message):
        explain(labels)


def test_bad_labels_are_found_in_the_first_batch():
    calls = []
    model = relu_net()

    def counted(x):
        calls.append(len(x))
        return model(x)

    with pytest.raises(LabelError):
        GuidedBackprop(counted, batch_size=2).explain(images(), [0, 1, 2, 9])
    # Before it, single images may have been run to optimise.
    assert [each for each in calls if each > 1] == [2]


# Images.


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (images()[:, :2], ModelError, r"received images of shape \(4, 2, 8, 8\)"),
        (images().float(), ModelError, "torch.float32"),
        (images().to(torch.uint8), ImageError, "uint8"),
        (images().long(), ImageError, "int64"),
        (images() > 0, ImageError, "bool"),
        (images() * 1j, ImageError, "complex"),
        (IMAGES.astype(int), ImageError, "int64"),
        (IMAGES.tolist(), ImageError, "list"),
        (None, ImageError, "NoneType"),
        (torch.tensor(1.0), ImageError, "Tensor"),
        (images() * float("nan"), ImageError, "finite"),
        (images() / 0, ImageError, "finite"),
        (images().to_sparse(), ImageError, "dense"),
        (images().to("meta"), ImageError, "values"),
        (torch.nested.nested_tensor([images()[0], images()[1]], layout=torch.jagged), ImageError, "nested=True"),
        (IMAGES.astype(np.longdouble), ImageError, "float128"),
        (IMAGES.astype(str), ImageError, "<U"),
    ],
)
def test_bad_images(bad, error, message):
    with pytest.raises(error, match=message):
        GuidedBackprop(relu_net()).explain(bad, 0)


class ChannelsLast(nn.Module):
    """A convolution of images whose channels are last."""

    def __init__(self, move) -> None:
        super().__init__()
        self.conv, self._move = nn.Conv2d(3, 3, 3, padding=1), move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self._move(x)).movedim(-3, -1)


class In(nn.Module):
    """A convolution of what a function makes of the images."""

    def __init__(self, front, channels=3) -> None:
        super().__init__()
        self.conv, self._front = nn.Conv2d(channels, 3, 3), front

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self._front(x))


WITHOUT_BATCH = {
    "channels last": (lambda: ChannelsLast(lambda x: x.movedim(-1, -3)), (8, 8, 3)),
    "channels last, transposed": (lambda: ChannelsLast(lambda x: x.transpose(-1, -2).transpose(-2, -3)), (8, 8, 3)),
    "conv2d": (lambda: nn.Conv2d(3, 3, 3), (3, 8, 8)),
    "of one channel": (lambda: nn.Conv2d(1, 1, 3), (1, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(3, 3, 3), (3, 8)),
    "conv3d": (lambda: nn.Conv3d(3, 3, 3), (3, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 3, 3), (3, 8, 8)),
    "padded, pooled": (
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, padding_mode="circular", padding=1)),
        (3, 8, 8),
    ),
    "instance norm": (lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 3)), (3, 8, 8)),
    "norm by hand": (
        lambda: In(lambda x: (x - x.mean((-1, -2), keepdim=True)) / x.std((-1, -2), keepdim=True)),
        (3, 8, 8),
    ),
    "einsum": (lambda: In(lambda x: torch.einsum("...chw,dc->...dhw", x, torch.ones(3, 3))), (3, 8, 8)),
    "frequencies": (lambda: In(lambda x: torch.fft.irfft2(torch.fft.rfft2(x))), (3, 8, 8)),
    "places beside": (lambda: In(lambda x: torch.cat([x, torch.ones_like(x)], -3), 6), (3, 8, 8)),
    "pixels put together": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 3)), (3, 8, 8)),
}


@pytest.mark.parametrize("name", WITHOUT_BATCH)
def test_one_image_without_a_batch_axis_is_refused(name):
    build, shape = WITHOUT_BATCH[name]
    image, model = torch.rand(shape), nn.Sequential(build(), nn.ReLU()).eval()
    for method in (Saliency, GuidedBackprop):
        with pytest.raises(ImageError, match=r"takes for one image\. Pass images\[None\]"):
            method(model).explain(image, 0)
    assert len(GuidedBackprop(model).explain(image[None], 0)) == 1


def test_what_looks_like_one_image_and_is_a_batch():
    net = to_torch(positions(2, padding=1)).float()
    blur = torch.full((3, 1, 3, 3), 1 / 9)
    for model, batch in (
        (lambda x: torch.stack([net(image) for image in x]), torch.rand(2, 3, 8, 8)),
        (lambda x: net(x[:, None].expand(-1, 3, -1, -1)), torch.rand(3, 8, 8)),
        # Each image is a channel for a moment, and blurred alone.
        (lambda x: net(F.conv2d(x[None], blur, groups=3)[0][:, None].expand(-1, 3, -1, -1)), torch.rand(3, 8, 8)),
        (lambda x: net(x.unflatten(1, (3, 8, 8))), torch.rand(2, 192)),
        (
            lambda x: net(F.conv1d(x.T[None], torch.eye(192)[..., None])[0].T.unflatten(1, (3, 8, 8))),
            torch.rand(2, 192),
        ),
        (lambda x: net(x.permute(0, -1, 1, 2)), torch.rand(2, 8, 8, 3)),
        (lambda x: net(x[:, None].expand(-1, 3, -1, -1)), torch.rand(1, 8, 8)),
        (lambda x: torch.relu(F.conv1d(x[:, None], torch.ones(1, 1, 3)))[:, 0], torch.rand(1, 8)),
        (lambda x: torch.stack([net(image[None])[0] for image in x]), torch.rand(3, 3, 8, 8)),
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.rand(3, 8)),
    ):
        assert len(GuidedBackprop(model).explain(batch, 0)) == len(batch)


@pytest.mark.parametrize("reducer", [None, "absmax"])
def test_no_images_have_no_explanations(reducer):
    explanations = GuidedBackprop(relu_net(), reducer=reducer).explain(images()[:0])
    assert len(explanations) == 0
    assert explanations.attribution.shape == ((0, 3, 8, 8) if reducer is None else (0, 8, 8))
    assert list(explanations) == []
    assert len(explanations.labels) == len(explanations.scores) == 0


@pytest.mark.parametrize("labels", [[], np.zeros((0, CLASSES)), None, 3])
def test_no_images_take_any_empty_labels(labels):
    assert len(GuidedBackprop(relu_net()).explain(images()[:0], labels)) == 0


@pytest.mark.parametrize("view", [lambda array: array[:, ::-1], lambda array: array.astype(">f8")])
def test_numpy_arrays_in_any_memory_layout(view):
    stored = view(IMAGES)
    explanations = GuidedBackprop(relu_net()).explain(stored, LABELS)
    expected = GuidedBackprop(relu_net()).explain(torch.tensor(stored.astype("f8")), LABELS)
    np.testing.assert_allclose(explanations, expected, **TOLERANCE)
    assert np.asarray(explanations).dtype == stored.dtype


def test_an_array_goes_where_the_weights_are():
    """Told from a device that computes nothing: that a GPU explains arrays is tried where there is one."""
    elsewhere, array = nn.Linear(2, 2, device="meta"), np.zeros((1, 2), "f4")
    assert placed(elsewhere, array).device.type == "meta"
    assert placed(elsewhere, torch.zeros(1, 2)).device.type == "cpu"
    assert placed(nn.ReLU(), array).device.type == placed(torch.relu, array).device.type == "cpu"


def test_numpy_in_numpy_out():
    read_only = IMAGES.copy()
    read_only.flags.writeable = False
    explanations = GuidedBackprop(relu_net()).explain(read_only, LABELS)
    assert isinstance(explanations.attribution, np.ndarray)
    np.testing.assert_allclose(explanations, oracle(), **TOLERANCE)


# Models.


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        GuidedBackprop(relu_net().train()).explain(images(), 0)


def dropout(training):
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
        .double()
        .train(training)
    )


def batch_norm(training):
    return (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        .double()
        .train(training)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("build", [dropout, batch_norm])
@pytest.mark.parametrize(
    "hide", [lambda model: lambda x: model(x), lambda model: torch.export.export(model, (images(),)).module()]
)
def test_training_mode_is_refused_where_no_module_says_so(build, hide):
    with pytest.raises(ModelError, match="training mode"):
        GuidedBackprop(hide(build(True))).explain(images(), 0)
    GuidedBackprop(hide(build(False))).explain(images(), 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_in_training_mode_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout()))
    for model in (scripted, nn.Sequential(scripted, nn.Linear(3, 2))):
        with pytest.raises(ModelError, match="eval mode"):
            GuidedBackprop(model).explain(torch.rand(2, 4), 0)
        model.eval()
        GuidedBackprop(model).explain(torch.rand(2, 4), 0)
        model.train()


def test_one_part_in_training_mode_is_refused_by_name():
    model = relu_net()
    model.middle.train()
    with pytest.raises(ModelError, match="training=True on middle"):
        GuidedBackprop(model).explain(images(), 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: 1.0, "a real tensor"),
        (lambda x: x.sum(), "row per image"),
        (lambda x: x.sum(0), "row per image"),
        (lambda x: x.flatten(1) * 1j, "complex128"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_model_that_does_not_return_a_row_per_image(model, message):
    with pytest.raises(ModelError, match=message):
        Saliency(model).explain(images(), 0)


def test_a_model_that_is_none():
    with pytest.raises(ModelError, match="Pass the model itself"):
        GuidedBackprop(None)


def test_a_model_that_overflows():
    with pytest.raises(ScoreError, match="finite"):
        GuidedBackprop(lambda x: torch.relu(x).flatten(1) * 1e300 * 1e300).explain(images(), 0)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 1.5}, {"batch_size": True}, {"reducer": "median"}, {"vouch": {"Own": "no"}}],
)
def test_bad_options(options):
    with pytest.raises(OptionError, match="received"):
        GuidedBackprop(relu_net(), **options)


def test_reducer_needs_channels():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    with pytest.raises(OptionError, match="channels"):
        GuidedBackprop(model, reducer="mean").explain(torch.ones(2, 4), 0)


# Heads.


class InPlaceSigmoid(nn.Module):
    def forward(self, x):
        return x.sigmoid_()


HEADS = {
    "softmax": nn.Softmax(1),
    "log_softmax": nn.LogSoftmax(1),
    "sigmoid": nn.Sigmoid(),
    "log_sigmoid": nn.LogSigmoid(),
    "softmax behind moves": lambda x: F.softmax(x[:, :, None], 1).squeeze(2).to(torch.float64).clone(),
    "sigmoid in place": InPlaceSigmoid(),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_score_is_the_logit_in_front_of_the_head(head):
    net = relu_net()
    bare = GuidedBackprop(net).explain(images(), LABELS)
    method = GuidedBackprop(lambda x: HEADS[head](net(x)))
    for batch in (images(), images(), images()[:2]):
        explanations = method.explain(batch, LABELS[: len(batch)])
        np.testing.assert_allclose(explanations, np.asarray(bare)[: len(batch)], **TOLERANCE)
        np.testing.assert_allclose(explanations.scores, bare.scores[: len(batch)], **TOLERANCE)
        assert explanations.head == head.split()[0]
        assert (head.split()[0], 1, "undone") in explanations.coverage
        np.testing.assert_allclose(explanations.outputs, HEADS[head](net(batch)).detach())


@pytest.mark.parametrize("head", HEADS)
def test_a_head_can_be_kept(head):
    net = relu_net()
    explanations = GuidedBackprop(lambda x: HEADS[head](net(x)), undo_head=False).explain(images(), LABELS)
    assert explanations.head is None
    np.testing.assert_allclose(explanations.scores, explanations.outputs[range(4), LABELS])
    assert not np.allclose(explanations, oracle())


def test_a_head_of_another_size():
    """A fully convolutional network takes images of any size, and its head follows."""
    convolutions = to_torch(positions(2, padding=1))
    method, bare = GuidedBackprop(lambda x: convolutions(x).softmax(1)), GuidedBackprop(convolutions)
    for batch in (images(), images()[:, :, :5], images()[:1]):
        np.testing.assert_allclose(method.explain(batch, 1), bare.explain(batch, 1), **TOLERANCE)


def test_a_head_under_a_checkpoint():
    net = relu_net()
    model = lambda x: torch.utils.checkpoint.checkpoint(lambda x: net(x).softmax(1), x, use_reentrant=False)  # noqa: E731
    np.testing.assert_allclose(GuidedBackprop(model).explain(images(), LABELS), oracle(), **TOLERANCE)


def test_a_saturated_softmax_is_explained():
    net = relu_net()
    explanations = GuidedBackprop(lambda x: torch.softmax(net(x) * 1e4, 1)).explain(images(), LABELS)
    np.testing.assert_allclose(explanations, 1e4 * oracle(), rtol=1e-9)


def test_attention_is_no_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Softmax(1), nn.Linear(4, 2)).double().eval()
    explanations = GuidedBackprop(model).explain(images(), 0)
    assert explanations.head is None
    assert ("softmax", 1, "plain") in explanations.coverage


# Layers.


@pytest.mark.parametrize("layer", ["middle", "middle.1", 4])
def test_the_output_of_a_layer(layer):
    """Nothing after it is run, and the model is as it was."""
    model = relu_net()
    before = state(model, images())
    module = model.get_submodule(layer if isinstance(layer, str) else layer_names(model)[layer])
    found = []
    explanations = GuidedBackprop(model, output_layer=layer).explain(images(), 2)
    np.testing.assert_equal(state(model, images()), before)
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output.detach().numpy()))
    model(images())
    handle.remove()
    np.testing.assert_allclose(explanations.outputs, found[0], **TOLERANCE)
    np.testing.assert_allclose(explanations.scores, found[0][:, 2].reshape(4, -1).sum(1), **TOLERANCE)
    assert not np.allclose(explanations, GuidedBackprop(model).explain(images(), 2))


def test_the_map_of_a_layer_is_the_map_of_the_network_up_to_it():
    model = relu_net()
    cut = lambda x: model.middle(model.second(model.residual(model.stem(x))))  # noqa: E731
    np.testing.assert_allclose(
        GuidedBackprop(model, output_layer="middle").explain(images(), 2),
        GuidedBackprop(cut).explain(images(), 2),
        **TOLERANCE,
    )


@pytest.mark.parametrize(
    ("model", "layer", "error", "message"),
    [
        (relu_net(), "midle", OptionError, "Did you mean 'middle'"),
        (relu_net(), 99, OptionError, "received layer=99"),
        (lambda x: x, "middle", ModelError, "no layers by name"),
    ],
)
def test_bad_layers(model, layer, error, message):
    with pytest.raises(error, match=message):
        GuidedBackprop(model, output_layer=layer).explain(images(), 0)


def test_a_layer_that_is_not_run():
    model = relu_net()
    model.unused = nn.ReLU().eval()
    with pytest.raises(ModelError, match="received layer='unused', which was run 0 times"):
        GuidedBackprop(model, output_layer="unused").explain(images(), 0)


# dtypes, layouts, batches, reducers.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4), ("bfloat16", 0.2), ("float16", 0.05)]
)
def test_dtypes(dtype, tolerance):
    kind = getattr(torch, dtype)
    explanations = GuidedBackprop(relu_net().to(kind)).explain(images().to(kind), LABELS)
    assert explanations.attribution.dtype == kind
    error = np.abs(np.asarray(explanations, np.float64) - oracle())
    # A ReLU or a pool near a tie may flip in low precision; most of the map must agree.
    assert np.median(error) <= tolerance * np.abs(oracle()).mean()


def test_autocast():
    model = relu_net().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explanations = GuidedBackprop(model).explain(images().float(), LABELS)
    assert explanations.attribution.dtype == torch.float32
    error = np.abs(np.asarray(explanations, np.float64) - oracle())
    assert np.median(error) <= 0.2 * np.abs(oracle()).mean()


def test_channels_last_in_channels_last_out():
    batch = images().contiguous(memory_format=torch.channels_last)
    explanations = GuidedBackprop(relu_net()).explain(batch, LABELS)
    assert explanations.attribution.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(explanations, oracle(), **TOLERANCE)
    assert GuidedBackprop(relu_net()).explain(images(), LABELS).attribution.is_contiguous()


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batch_size_does_not_change_the_result(batch_size, kind):
    model = relu_net()
    seen = []
    model.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))

    batch = images() if kind == "torch" else IMAGES
    explanations = GuidedBackprop(model, batch_size=batch_size).explain(batch, LABELS)
    # Before them, single images may have been run to optimise.
    assert max(seen) == min(batch_size, 4)
    np.testing.assert_allclose(explanations, oracle(), **TOLERANCE)
    np.testing.assert_array_equal(explanations.labels, LABELS)
    assert len(explanations.scores) == len(explanations.outputs) == 4
    assert ("relu", 3, "guided") in explanations.coverage


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        ("mean", lambda a: a.mean(1)),
        ("sum", lambda a: a.sum(1)),
        ("max", lambda a: a.max(1)),
        ("min", lambda a: a.min(1)),
        ("absmax", lambda a: np.abs(a).max(1)),
    ],
)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_reducers(reducer, expected, kind):
    batch = images() if kind == "torch" else IMAGES
    explanations = GuidedBackprop(relu_net(), reducer=reducer, batch_size=3).explain(batch, LABELS)
    assert isinstance(explanations.attribution, type(batch))
    np.testing.assert_allclose(explanations, expected(oracle()), **TOLERANCE)
    assert explanations.reducer == reducer


# Nothing of the user's changes.


def state(model: nn.Module, batch: torch.Tensor) -> list[object]:
    """Everything of the user's that could have been touched, as values."""
    hooks = [
        {name: list(value) for name, value in vars(module).items() if "hooks" in name} for module in model.modules()
    ]
    tensors = [
        (name, value.clone(), value.requires_grad, value._version)
        for name, value in model.state_dict(keep_vars=True).items()
    ]
    leaf = batch.detach().clone().requires_grad_()
    output = model(leaf)
    return [
        hooks,
        [module.training for module in model.modules()],
        [(name, version, grad) for name, _, grad, version in tensors],
        [value.numpy() for _, value, _, _ in tensors if not value.requires_grad]
        + [value.detach().numpy() for _, value, _, _ in tensors],
        [None if parameter.grad is None else parameter.grad.numpy().copy() for parameter in model.parameters()],
        torch.get_rng_state().numpy(),
        batch.detach().numpy().copy(),
        batch._version,
        batch.requires_grad,
        batch.grad,
        output.detach().numpy(),
        torch.autograd.grad(output.sum(), leaf)[0].numpy(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


def broken(x):
    raise RuntimeError("planted")


SITUATIONS = {
    "success": ({}, 0, None),
    "bad label": ({}, 99, LabelError),
    "no ReLU": ({"activation": nn.GELU()}, 0, NoReluError),
    "opaque": ({"activation": OwnRelu.apply}, 0, OpaqueRegionError),
    "spelled": ({"activation": lambda x: x + (x.relu() - x).detach()}, 0, OpaqueRegionError),
    "model fails": ({"activation": broken}, 0, ModelError),
    "fails on the way back": ({"activation": magnitude_on_view}, 0, OpaqueRegionError),
    "model in place": ({"activation": nn.ReLU(inplace=True)}, 0, None),
    "training": ({"training": True}, 0, ModelError),
    "with a hook": ({"hook": True}, 0, None),
}


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_of_the_users_changes(situation, with_grad):
    setting, label, error = SITUATIONS[situation]
    model = Net(setting.get("activation", nn.ReLU()))
    watched = Net(nn.ReLU()) if error is ModelError and "activation" in setting else model
    batch = images().requires_grad_(with_grad)
    if with_grad:
        watched(batch).sum().backward()
        batch.grad = None
    if setting.get("hook"):
        model.stem.register_full_backward_hook(lambda module, inputs, outputs: None)
    before = state(watched, batch)
    model.train(setting.get("training", False))
    if error is None:
        GuidedBackprop(model).explain(batch, label)
    else:
        with pytest.raises(error):
            GuidedBackprop(model).explain(batch, label)
    model.eval()
    np.testing.assert_equal(state(watched, batch), before)


CHANGES = {
    "weights": lambda model, batch: model.stem.weight.data.add_(1e-9),
    "requires_grad": lambda model, batch: model.requires_grad_(False),
    "hooks": lambda model, batch: model.stem.register_forward_hook(lambda *_: None),
    "random numbers": lambda model, batch: torch.rand(1),
    "images": lambda model, batch: batch.add_(0),
    "grad": lambda model, batch: model(batch).sum().backward(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_fault_a_changed_state_is_caught(change):
    model, batch = relu_net(), images()
    before = state(model, batch)
    CHANGES[change](model, batch)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(state(model, batch), before)


def test_eight_threads_on_one_model():
    """Explaining, differentiating and predicting at once gives bit for bit what one thread gives."""
    model = relu_net()
    softmaxed = lambda x: torch.softmax(model(x), 1)  # noqa: E731
    method, watched = GuidedBackprop(model), GuidedBackprop(softmaxed)

    def guided(label):
        return method.explain(images(), label).attribution.numpy()

    def logit(label):
        return watched.explain(images(), label).attribution.numpy()

    def plain(label):
        leaf = images().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, label].sum(), leaf)[0].numpy()

    def predicted(label):
        with torch.no_grad():
            return model(images())[:, label].numpy()

    jobs = [(job, label) for job in (guided, logit, plain, predicted) for label in range(CLASSES)] * 10
    expected = {(job, label): job(label) for job, label in jobs}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: job[0](job[1]), jobs))
    for job, result in zip(jobs, results, strict=True):
        np.testing.assert_array_equal(result, expected[job])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_threads_that_explain_a_compiled_model_leave_it_compiled():
    model = compiled(relu_net())
    method = GuidedBackprop(model)

    def nodes(_):
        output = model(images().requires_grad_())
        return output.grad_fn.name()

    def guided(_):
        return np.asarray(method.explain(images(), LABELS))

    with ThreadPoolExecutor(8) as pool:
        names, maps = zip(*pool.map(lambda job: (nodes(job), guided(job)), range(40)), strict=True)
    assert set(names) == {"CompiledFunctionBackward"}
    for attribution in maps:
        np.testing.assert_allclose(attribution, oracle(), **TOLERANCE)


def test_no_graph_and_no_hook_stay_behind():
    explanations = explain(LABELS)
    assert explanations.attribution.grad_fn is None
    assert not explanations.attribution.requires_grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method", [GuidedBackprop, Saliency])
@pytest.mark.parametrize("vouch", [{}, {"torch::autograd::WarnNotImplemented": "plain"}])
def test_what_has_no_derivative_is_refused_for_every_rule(method, vouch):
    """PyTorch warns and returns zeros: a map of nothing."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(images()[0].numel(), 8), nn.ReLU(), nn.Linear(8, 3)).float().eval()
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    options = {} if method is Saliency else {"vouch": vouch}
    with pytest.raises(ModelError, match="derivative throughout"):
        method(quantised, **options).explain(images().float(), 1)


def test_every_error_of_the_library_is_caught_by_its_root():
    with pytest.raises(GuidedBackpropError):
        explain(99)
