"""Each recipe of docs/recipes.md runs as it stands; what it computes is compared with something independent of it."""

import copy
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import reference

# Before torchvision, and before what imports it.
import torchvision_operators  # isort: skip
from monai.networks.nets import DenseNet, UNet  # isort: skip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # isort: skip
from torchvision.models.detection import FCOS, RetinaNet  # isort: skip
from torchvision.models.detection.anchor_utils import AnchorGenerator  # isort: skip
from torchvision.ops.roi_align import _roi_align  # isort: skip

from guided_backprop import (
    Box,
    GuidedBackprop,
    LabelError,
    NoReluError,
    OpaqueRegionError,
    Saliency,
    render,
    stack_detections,
)

PAGE = Path(__file__).parents[1] / "docs/recipes.md"
BLOCKS = {
    heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for heading, text in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
}
NUMBERS = {heading: block for heading, block in BLOCKS.items() if block}


def run(heading: str, number: int = 0) -> dict[str, Any]:
    """Run a recipe, and return its names. Weights and images are drawn as nothing else draws them."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(BLOCKS[heading][number], f"{PAGE.name}: {heading}", "exec"), names)
    return names


def check(values: Any, right: np.ndarray, planted: np.ndarray, rtol: float = 1e-4) -> None:
    """Compare; ``planted`` is what a fault would have given, and the comparison must tell it."""
    size = np.abs(right).max()
    assert size > 0
    np.testing.assert_allclose(values, right, rtol=rtol, atol=rtol * size)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(planted, right, rtol=rtol, atol=rtol * size)


def in_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def of_modules(*modules: nn.Module) -> reference.Sequential:
    """Return the oracle's layers with the weights of torch's."""
    layers: list[reference.Layer] = []
    for module in [leaf for root in modules for leaf in root.modules()]:
        if isinstance(module, nn.Conv2d):
            sizes = module.stride, module.padding
            layers.append(reference.Conv2d(in_numpy(module.weight), in_numpy(module.bias), *sizes))
        elif isinstance(module, nn.Linear):
            layers.append(reference.Linear(in_numpy(module.weight), in_numpy(module.bias)))
        elif isinstance(module, nn.ReLU):
            layers.append(reference.ReLU())
    return reference.Sequential(tuple(layers))


def maps_of(network: reference.Layer, images: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Return the guided map, and what a missed ReLU would give."""
    return [reference.attribution(network, images, weights, rule) for rule in ("guided", "saliency")]


def test_each_recipe_is_tested():
    source = Path(__file__).read_text()
    assert len(NUMBERS) == 11
    for heading, blocks in NUMBERS.items():
        assert source.count(f'run("{heading}"') == len(blocks), heading


# Detectors.

MEAN, STD = (np.array(numbers)[:, None, None] for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def of_torchvision():
    return run("Detectors of torchvision")


def with_other_weights(detector: nn.Module, scale: float) -> nn.Module:
    """Draw weights that tell one score from another: those of a new detector are almost alike."""
    generator = torch.Generator().manual_seed(3)
    for parameter in detector.parameters():
        size = scale / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * size
    return detector.eval()


def explained(names: dict[str, Any], detector: nn.Module, *vouched: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Explain a detection of one image, and return it as well."""
    images = names["images"][:1]
    with torch.no_grad():
        first = detector(list(images))[0]
    # The surest one may be cut off to nothing at the border.
    place = int((first["boxes"][:, 2:] - first["boxes"][:, :2]).prod(1).bool().int().argmax())
    first = {key: tensor[place] for key, tensor in first.items()}
    method = GuidedBackprop(names["Boxes"](detector), vouch=dict.fromkeys(["index", *vouched], "plain"))
    explanations = method.explain(images, Box(first["boxes"], first["labels"]))
    np.testing.assert_allclose(explanations.scores, first["scores"], rtol=1e-6)
    return explanations, first


def test_a_retinanet(of_torchvision):
    limits = {"min_size": 64, "max_size": 64, "topk_candidates": 50, "detections_per_img": 10}
    with torch.random.fork_rng(devices=[]):
        anchors = AnchorGenerator(((16, 32),), ((1.0,),))
        detector = RetinaNet(copy.deepcopy(of_torchvision["backbone"]), 3, anchor_generator=anchors, **limits)
    detector = with_other_weights(detector, 1.6)
    explanations, first = explained(of_torchvision, detector)
    network = of_modules(detector.backbone, detector.head.classification_head)
    images = (in_numpy(of_torchvision["images"][:1]) - MEAN) / STD
    logits, _ = network.forward(images)
    probabilities = 1 / (1 + np.exp(-logits))
    # Of each cell two anchors of three classes.
    is_class = np.arange(6)[:, None, None] % 3 == int(first["labels"])
    entry = np.abs(probabilities - explanations.scores[0]) < 1e-6
    assert (entry & is_class).sum() == 1
    maps = maps_of(network, images, entry * is_class * probabilities * (1 - probabilities))
    check(explanations.attribution, *(each / STD for each in maps))


def test_a_faster_rcnn(of_torchvision):
    assert of_torchvision["explanations"].attribution.shape == (1, 3, 64, 64)
    detector = with_other_weights(copy.deepcopy(of_torchvision["detector"]), 1.4)
    explanations, first = explained(of_torchvision, detector)
    body, heads = of_modules(detector.backbone), detector.roi_heads
    head = of_modules(heads.box_head.fc6, nn.ReLU(), heads.box_head.fc7, nn.ReLU(), heads.box_predictor.cls_score)
    images = (in_numpy(of_torchvision["images"][:1]) - MEAN) / STD
    features, _ = body.forward(images)
    with torch.no_grad():
        inside, _ = detector.transform(list(of_torchvision["images"][:1]))
        proposals, _ = detector.rpn(inside, {"0": detector.backbone(inside.tensors)})
    left, top, right, bottom = (side / 8 for side in proposals[0].double().unbind(1))
    along = [
        torchvision_operators.shares(*ends, 7, 8, 2, aligned=False).numpy() for ends in ((top, bottom), (left, right))
    ]
    pooled = np.einsum("kih,kjw,chw->kcij", *along, features[0]).reshape(len(top), -1)
    logits, _ = head.forward(pooled)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = int(first["labels"])
    entry = np.argmin(np.abs(shares[:, label] - explanations.scores[0]))
    slope = np.zeros(shares.shape)
    slope[entry] = shares[entry, label] * ((np.arange(3) == label) - shares[entry])
    maps = []
    for rule in ("guided", "saliency"):
        at_pooled = reference.attribution(head, pooled, slope, rule).reshape(len(top), -1, 7, 7)
        at_features = np.einsum("kih,kjw,kcij->chw", *along, at_pooled)[None]
        maps.append(reference.attribution(body, images, at_features, rule) / STD)
    check(explanations.attribution, *maps)
    assert str(explanations.coverage).count("relu x4 guided") == 1


def test_an_fcos(of_torchvision):
    backbone = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.ReLU())
    backbone.out_channels = 32
    limits = {"min_size": 64, "max_size": 64, "topk_candidates": 50, "detections_per_img": 10}
    with torch.random.fork_rng(devices=[]):
        anchors = AnchorGenerator(((16,),), ((1.0,),))
        detector = FCOS(backbone, num_classes=3, anchor_generator=anchors, **limits).eval()
    detector = with_other_weights(detector, 1.4)
    with pytest.raises(OpaqueRegionError, match=r'vouch={"sub at _utils.py:\d+": "plain"}'):
        explained(of_torchvision, detector)
    explanations, first = explained(of_torchvision, detector, "add", "sub")
    images = of_torchvision["images"][:1]

    def before_suppression(images):
        inside = detector.transform(list(images))[0].tensors
        outputs = detector.head([detector.backbone(inside)])
        return torch.sqrt(outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid())[..., first["labels"]]

    with torch.no_grad():
        place = int((before_suppression(images) - explanations.scores[0]).abs().argmin())
    flat = GuidedBackprop(before_suppression).explain(images, place)
    plain = Saliency(before_suppression).explain(images, place)
    check(explanations.attribution, np.asarray(flat), np.asarray(plain))

    def without_boxes(images):
        detections = [{**found, "boxes": found["boxes"].detach()} for found in detector(list(images))]
        return stack_detections(detections, classes=3, count=10)

    again = GuidedBackprop(without_boxes, vouch={"index": "plain"}).explain(
        images, Box(first["boxes"], first["labels"])
    )
    check(again.attribution, np.asarray(flat), np.asarray(plain))


@pytest.mark.parametrize("aligned", [True, False])
def test_the_operators_in_python_are_torchvisions(aligned):
    rng = np.random.default_rng(0)
    features = torch.tensor(rng.normal(size=(2, 3, 9, 7)), requires_grad=True)
    regions = torch.tensor([[0, 1.3, 2.2, 5.6, 7.1], [1, 0.9, 1, 3, 4], [1, 2, 3, 2.1, 3.1]], dtype=torch.float64)
    pair = [
        align(features, regions, 0.8, 3, 2, 2, aligned)
        for align in (torch.ops.torchvision.roi_align, _roi_align.__wrapped__)
    ]
    gradient = torch.tensor(rng.normal(size=pair[0].shape))
    for one, other in (pair, [torch.autograd.grad(pooled, features, gradient)[0] for pooled in pair]):
        check(one.detach(), in_numpy(other), in_numpy(other.roll(1, 0)), rtol=1e-9)
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [2, 2, 6, 6], [9, 9, 9, 9.0]])
    assert torch.ops.torchvision.nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.1]), 0.5).tolist() == [1, 2, 3]


def detection(boxes=((2, 3, 8, 9),), scores=(0.75,), labels=(1,)):
    numbers = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "scores": torch.tensor(scores).float()}
    return numbers | {"labels": torch.tensor(labels, dtype=torch.long)}


def test_detections_of_several_images_are_one_output():
    two = detection([[0, 0, 4, 4], [1, 1, 3, 5]], [0.5, 0.25], [0, 2])
    output = stack_detections([detection(), two], classes=3, count=3)
    right = np.zeros((2, 3, 7))
    right[0, 0] = [2, 3, 8, 9, 0, 0.75, 0]
    right[1, :2] = [[0, 0, 4, 4, 0.5, 0, 0], [1, 1, 3, 5, 0, 0, 0.25]]
    np.testing.assert_array_equal(output, right)


def test_gradients_go_through_boxes_and_scores():
    """Of 12 numbers of an image three detections are made, two, or none: the gradient is that of the number."""
    weight = torch.tensor(np.random.default_rng(0).normal(size=(6, 12)) / 4)

    def found(rows):
        hidden = torch.relu(rows @ weight)
        corners = torch.cat([hidden[..., :2], hidden[..., :2] + 1 + hidden[..., 2:4]], dim=1)
        scores = torch.sigmoid(rows @ weight[:, :1])[:, 0] * 0.9
        return {"boxes": corners, "scores": scores, "labels": torch.arange(len(rows))}

    images = torch.tensor(np.random.default_rng(1).normal(size=(2, 3, 6)))
    model = lambda images: stack_detections([found(images[0]), found(images[1][:2])], classes=3, count=4)  # noqa: E731
    output = model(images)
    for of, column in (("class", 4 + 1), ("right", 2)):
        for method in (Saliency, GuidedBackprop):
            explanations = method(model).explain(images, Box(output[:, 1, :4], classes=1, of=of))
            leaf = images.clone().requires_grad_()
            (right,) = torch.autograd.grad(model(leaf)[:, 1, column].sum(), leaf)
            # The weights of a side are added up behind one ReLU: guided, where all are positive, it is the gradient.
            check(explanations.attribution, in_numpy(right), in_numpy(right.roll(1, 1)), rtol=1e-9)
            np.testing.assert_allclose(explanations.scores, output[:, 1, column], rtol=1e-12)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([torch.zeros(3)], r"dictionary of PyTorch tensors.*received detections\[0\]='Tensor'"),
        ([{"boxes": torch.zeros(0, 4)}], r"received detections\[0\]=\['boxes'\]"),
        ([detection(), detection() | {"boxes": [1]}], r"PyTorch.*received detections\[1\]"),
        ([detection(scores=(0.5, 0.5))], r"of shapes \(1, 4\), \(2,\) and \(1,\)"),
        ([detection() | {"labels": torch.tensor([0.5])}], "integer labels"),
        ([detection([[0, 0, 1, 1]] * 3, [0.5] * 3, [0] * 3)], r"received count=2 and 3 in detections\[0\]"),
        ([detection(labels=(2,))], r"received classes=2 and labels up to 2"),
        ([detection(labels=(-1,))], "classes must be more"),
        ([detection(scores=(1.5,))], r"scores must be in \[0, 1\].*from 1.5 to 1.5"),
        ([detection((), (), ())] * 2, "received none in 2 images"),
    ],
)
def test_detections_that_are_none_are_refused(detections, message):
    with pytest.raises(LabelError, match=message):
        stack_detections(detections, classes=2, count=2)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box([2, 3, 8, 9], classes=0), r"a candidate that overlaps the box must have a score.*of class 0 are 0"),
        (Box([20, 20, 30, 30], classes=1), "overlaps none"),
        (Box([0, 0, 1, 1], classes=1), "overlaps none"),
    ],
)
def test_what_was_not_detected_is_not_explained(box, message):
    model = lambda rows: stack_detections([detection() | {"scores": rows[0]}], 2, 3)  # noqa: E731
    rows = torch.tensor([[0.75]])
    assert Saliency(model).explain(rows, Box([2, 3, 8, 9], classes=1)).scores == [0.75]
    with pytest.raises(LabelError, match=message):
        Saliency(model).explain(rows, box)


def best(output: np.ndarray, reference_box: list[float], scores: np.ndarray) -> int:
    """Return the candidate of the largest IoU times score, by the formula."""
    low, high = np.maximum(output[:, :2], reference_box[:2]), np.minimum(output[:, 2:4], reference_box[2:])
    both = (high - low).clip(0).prod(1)
    areas = (output[:, 2:4] - output[:, :2]).prod(1) + np.prod(np.subtract(reference_box[2:], reference_box[:2]))
    return int((both / (areas - both) * scores).argmax())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_detr():
    names = run("DETR")
    images, explanations = names["images"], names["explanations"]
    output = names["detr"](images)
    logits, sizes = in_numpy(output["logits"]), in_numpy(output["pred_boxes"])
    corners = np.concatenate([sizes[..., :2] - sizes[..., 2:] / 2, sizes[..., :2] + sizes[..., 2:] / 2], axis=2)
    queries = [
        best(row, [0.2, 0.2, 0.7, 0.8], sigmoid(logit[:, 1])) for row, logit in zip(corners, logits, strict=True)
    ]
    np.testing.assert_allclose(explanations.scores, logits[[0, 1], queries, 1], rtol=1e-5)
    entries = [(query, 1) for query in queries]
    direct = GuidedBackprop(names["detr"], output="logits").explain(images, entries)
    others = GuidedBackprop(names["detr"], output="logits").explain(images, [(query, 0) for query in queries])
    check(explanations.attribution, np.asarray(direct), np.asarray(others))


def test_yolo():
    names = run("YOLO")
    network, images = of_modules(names["yolo"]), in_numpy(names["images"])
    grid, _ = network.forward(images)
    rows, columns = np.mgrid[:4, :4]
    centre = (sigmoid(grid[:, :2]) + np.stack([columns, rows])) * 8
    size = np.exp(grid[:, 2:4]) * 8
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1).reshape(2, 4, 16).swapaxes(1, 2)
    scores = (sigmoid(grid[:, 4]) * sigmoid(grid[:, 7])).reshape(2, 16)
    weights = np.zeros((2, 8, 16))
    for row in range(2):
        weights[row, 7, best(boxes[row], [8, 8, 16, 16], scores[row])] = 1
    maps = maps_of(network, images, weights.reshape(2, 8, 4, 4))
    check(names["explanations"].attribution, *maps)


def test_yolo_of_ultralytics():
    names = run("YOLO", 1)
    network, images = of_modules(names["head"]), in_numpy(names["images"])
    logits, _ = network.forward(images)
    output = 20 * np.log1p(np.exp(logits)).reshape(2, 7, 16).swapaxes(1, 2)
    boxes = np.concatenate([output[..., :2] - output[..., 2:4] / 2, output[..., :2] + output[..., 2:4] / 2], axis=2)
    weights = np.zeros((2, 7, 16))
    for row in range(2):
        # These scores are no probabilities; a Box takes their sigmoid to choose.
        place = best(boxes[row], [4, 4, 24, 24], sigmoid(output[row, :, 6]))
        weights[row, 6, place] = 20 * sigmoid(logits.reshape(2, 7, 16)[row, 6, place])
    check(names["explanations"].attribution, *maps_of(network, images, weights.reshape(logits.shape)))


# Segmentation, volumes, series.


def test_a_predicted_mask():
    names = run("Segmentation: the predicted mask")
    output = in_numpy(names["segmenter"](names["images"])["out"])
    predicted = output.argmax(1)
    labels = [np.bincount(row.ravel(), minlength=4).argmax() for row in predicted]
    assert names["labels"].tolist() == labels
    is_label = np.eye(4)[labels][:, :, None, None]
    weights = is_label * (predicted[:, None] == np.array(labels)[:, None, None, None])
    np.testing.assert_allclose(names["explanations"].scores, (weights * output).sum((1, 2, 3)), rtol=1e-5)
    method = GuidedBackprop(names["segmenter"], output="out")
    right, everywhere = (method.explain(names["images"], each) for each in (weights, is_label * np.ones(output.shape)))
    check(names["explanations"].attribution, np.asarray(right), np.asarray(everywhere))


@pytest.fixture(scope="module")
def volumes():
    return run("Volumes: MONAI and NIfTI")


def test_a_map_is_saved_as_a_scan(volumes, tmp_path):
    import nibabel

    nibabel.save(volumes["saved"], tmp_path / "map.nii.gz")
    read, scan = nibabel.load(tmp_path / "map.nii.gz"), volumes["scan"]
    np.testing.assert_array_equal(read.get_fdata(dtype=np.float32), volumes["explanations"].attribution[0, 0])
    np.testing.assert_array_equal(read.affine, np.diag([2, 2, 3, 1]))
    assert read.shape == scan.shape
    assert read.header.get_zooms() == (2, 2, 3)
    assert volumes["axial"].shape == (20, 24, 3)
    # What the recipe warns of.
    rounded = nibabel.Nifti1Image(volumes["attribution"], scan.affine, scan.header)
    nibabel.save(rounded, tmp_path / "rounded.nii.gz")
    assert (nibabel.load(tmp_path / "rounded.nii.gz").get_fdata(dtype=np.float32) != volumes["attribution"]).any()


class Guided(torch.autograd.Function):
    """The rule, by its formula."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(min=0) * (ctx.saved_tensors[0] > 0)


class GuidedRelu(nn.Module):
    def forward(self, x):
        return Guided.apply(x)


def by_hand(network: nn.Module, images: torch.Tensor, score: Any) -> np.ndarray:
    """Return the guided map of a network whose ReLUs are all modules: each is replaced in a copy."""
    other = copy.deepcopy(network)
    for parent in list(other.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, GuidedRelu())
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(other(leaf)).sum(), leaf)
    return in_numpy(gradient)


def test_networks_of_monai(volumes):
    images, region = volumes["images"], volumes["region"]
    assert images.shape == (1, 1, 20, 24, 16)
    for network, score, explanations in (
        (volumes["classifier"], lambda output: output[:, 1], volumes["explanations"]),
        (volumes["segmenter"], lambda output: (output[:, 1] * region).sum((1, 2, 3)), volumes["of_the_region"]),
    ):
        leaf = images.clone().requires_grad_()
        (plain,) = torch.autograd.grad(score(network(leaf)).sum(), leaf)
        check(explanations.attribution, by_hand(network, images, score), in_numpy(plain))
    assert isinstance(volumes["classifier"], DenseNet)
    with torch.random.fork_rng(devices=[]):
        with_prelus = UNet(3, 1, 2, channels=(4, 8), strides=(2,)).eval()
    with pytest.raises(NoReluError):
        GuidedBackprop(with_prelus).explain(images, 1, mask=torch.ones(images.shape[2:]))
    assert GuidedBackprop(with_prelus, smooth="guide").explain(images, 1).attribution.any()


def test_eeg():
    names = run("EEG")
    right = by_hand(names["network"], names["epochs"], lambda output: output[:, 1])
    plain = Saliency(names["network"]).explain(names["epochs"], 1).attribution
    check(names["explanations"].attribution, right, in_numpy(plain))
    np.testing.assert_allclose([*names["by_electrode"].values()], np.abs(right).mean((0, 2)), rtol=1e-4)
    assert [*names["by_electrode"]] == names["electrodes"]


def test_audio():
    """There is no ReLU in front of the network: the map of the waveform is what the spectrogram's derivative gives."""
    names = run("Audio")
    leaf = names["waves"].clone().requires_grad_()
    spectrogram = names["front"](leaf)
    at_spectrogram = by_hand(names["network"], spectrogram.detach(), lambda output: output[:, 1])
    plain = in_numpy(Saliency(names["network"]).explain(spectrogram.detach(), 1).attribution)
    check(names["of_the_spectrogram"].attribution, at_spectrogram, plain)
    (right,) = torch.autograd.grad(spectrogram, leaf, torch.tensor(at_spectrogram, dtype=torch.float32))
    check(names["of_the_waveform"].attribution, in_numpy(right), -in_numpy(right))


# Callbacks.


def pictures_of(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Return the pictures that TensorBoard reads from a folder, each with its step."""
    pictures: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path in folder.rglob("events*"):
        events = EventAccumulator(str(path), size_guidance={"images": 0, "tensors": 0}).Reload()
        for tag in events.Tags()["images"]:
            texts = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
            pictures[tag] = [(step, decoded(text)) for step, text in texts]
        for tag in events.Tags()["tensors"]:
            tensors = [(event.step, event.tensor_proto.string_val[2:]) for event in events.Tensors(tag)]
            pictures[tag] = [(step, np.stack([decoded(text) for text in texts])) for step, texts in tensors]
    return pictures


def decoded(text: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(text)))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def is_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def left_in_eval_mode(model, _epoch):
    model.eval()


@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_training_loop_ends_in_the_same_weights(tmp_path):
    names = run("PyTorch")
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)]
    fixed, labels = names["fixed"][:2], names["labels"][:2]
    ends = {}
    with names["SummaryWriter"](str(tmp_path / "other")) as writer:
        for name, after in {
            "without": lambda model, epoch: None,
            "with": lambda model, epoch: names["write_maps"](writer, model, fixed, labels, epoch),
            "planted": left_in_eval_mode,
        }.items():
            model = copy.deepcopy(nn.Sequential(*layers))
            # Frozen, as is usual: neither all modules are in training mode, nor none.
            model[1].eval()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                names["train"](model, names["batches"], 2, after)
                ends[name] = weights_of(model), torch.get_rng_state().tolist(), [part.training for part in model]
            gradients = [in_numpy(parameter.grad) for parameter in model.parameters()]
            ends[name] += (gradients,)
    assert is_same(ends["with"][0], ends["without"][0])
    assert ends["with"][1:3] == ends["without"][1:3]
    assert all(map(np.array_equal, ends["with"][3], ends["without"][3]))
    assert not is_same(ends["planted"][0], ends["without"][0])
    pictures = pictures_of(tmp_path / "runs")
    assert {tag: [step for step, _ in steps] for tag, steps in pictures.items()} == {
        "guided/0": [0, 1],
        "guided/1": [0, 1],
    }
    last = np.asarray(GuidedBackprop(names["model"].eval()).explain(names["fixed"][:2], labels))
    for place in range(2):
        np.testing.assert_array_equal(
            pictures[f"guided/{place}"][1][1], render.diverging(np.moveaxis(last[place], 0, -1))
        )


@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.filterwarnings("ignore")
def test_lightning_ends_in_the_same_weights(tmp_path):
    names = run("Lightning")
    with torch.random.fork_rng(devices=[]):
        start = names["Classifier"]()
    ends = []
    for callbacks in ([], [names["Maps"](names["images"][:2], names["labels"][:2])]):
        model = copy.deepcopy(start)
        logger = names["TensorBoardLogger"](str(tmp_path / "other")) if callbacks else False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            names["trainer"](*callbacks, logger=logger).fit(model, names["batches"])
            ends.append((weights_of(model), torch.get_rng_state().tolist()))
    assert is_same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not is_same(ends[0][0], weights_of(start))
    pictures = pictures_of(tmp_path / "runs")
    assert {tag: [step for step, _ in steps] for tag, steps in pictures.items()} == {
        "guided/0": [0, 1],
        "guided/1": [0, 1],
    }


@pytest.mark.usefixtures("_in_a_folder")
def test_keras_ends_in_the_same_weights(tmp_path):
    names = run("Keras")
    start, ends = names["network"]().get_weights(), []
    for callbacks in ([], [names["Maps"](names["images"][:2], names["labels"][:2], "other")]):
        keras.utils.set_random_seed(1)
        model = names["network"]()
        model.set_weights(start)
        model.fit(names["images"], names["labels"], batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        ends.append(model.get_weights())
    assert all(map(np.array_equal, *ends))
    assert not all(map(np.array_equal, ends[0], start))
    ((steps),) = pictures_of(tmp_path / "runs").values()
    assert [step for step, _ in steps] == [0, 1]
    last = np.asarray(GuidedBackprop(names["model"]).explain(names["images"][:2], names["labels"][:2]))
    np.testing.assert_array_equal(steps[1][1], np.stack([render.diverging(each) for each in last]))


def test_heatmap_fields():
    names = run("Heatmap fields")
    assert len(names["fields"]) == 2
    for attribution, (magnitude, signed) in zip(np.asarray(names["explanations"]), names["fields"], strict=True):
        for field, low in ((magnitude, 0), (signed, -1)):
            assert field["map"].shape == (8, 8)
            assert field["map"].dtype == np.float32
            assert field["range"] == [low, 1]
            assert low <= field["map"].min() < field["map"].max() <= 1
        largest, mean = np.abs(attribution).max(0), attribution.mean(0)
        check(magnitude["map"], (largest / np.percentile(largest, 99)).clip(0, 1), largest)
        check(signed["map"], (mean / np.percentile(np.abs(mean), 99)).clip(-1, 1), mean)
