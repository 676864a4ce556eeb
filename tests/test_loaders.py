"""Models by name and from files: the real loaders, on small models in the loaders' own formats and caches.

No network is used: what would be fetched lies where the library would have put it. Outputs are compared with those of
the network that was stored, on what its own library's preprocessing makes of the photo.
"""

import torchvision_operators  # isort: skip
import sys
from pathlib import Path

import h5py
import huggingface_hub
import keras
import numpy as np
import onnx
import onnx2torch
import pytest
import timm
import torch
import torchvision
import transformers
from keras.src.legacy.saving import legacy_h5_format
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from guided_backprop import GuidedBackprop, MissingExtraError, ModelError, OptionError, explain_photos, load_model
from guided_backprop.models import VisionModel
from spots import spot_error

assert torchvision_operators
# What the libraries say of each other's versions, when they store and read.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving:UserWarning"),
]
PHOTO = Image.fromarray(np.random.default_rng(3).integers(0, 256, (30, 44, 3), np.uint8)).resize((88, 60))
BEASTS = ("cat", "dog", "cup")
SCALED = {"scale": "1/255", "mean": (0.4, 0.5, 0.6), "std": 0.25}


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)]
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), *head).eval()


def trained(network: torch.nn.Module, size: int = 32) -> torch.nn.Module:
    """Return a network whose statistics have seen something."""
    torch.manual_seed(1)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, size, size))
    return network.eval()


def assert_says(vision: VisionModel, expected: object) -> None:
    """Compare the outputs of the explained network for the photo, and that its ReLUs are guided."""
    explanations = GuidedBackprop(vision.network).explain(vision.images([PHOTO]))
    expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected)
    assert_allclose(explanations.outputs, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_allclose(explanations.outputs, expected[:, ::-1], rtol=1e-4, atol=1e-5)
    assert "guided" in str(explanations.coverage)


# By name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is each library's cache, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_torchvisions_models_come_with_their_transforms_and_names(cache):
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    stored = torchvision.models.squeezenet1_1(weights=None).eval()
    torch.nn.init.normal_(stored.classifier[1].bias)
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(stored.state_dict(), folder / weights.url.rpartition("/")[2])
    vision = load_model("torchvision:squeezenet1_1")
    assert str(vision) == (
        "squeezenet1_1 (IMAGENET1K_V1): 224 x 224, bilinear, crop .875, pixels / 255, mean .485 .456 .406, "
        "std .229 .224 .225, 1000 classes"
    )
    assert vision.class_name(281) == "281 tabby"
    assert_says(vision, stored(weights.transforms()(PHOTO)[None]))
    assert spot_error(vision.preprocess, vision.view(640, 480)) < 0.2
    assert load_model("torchvision:squeezenet1_1@IMAGENET1K_V1", classes=["a"]).class_names == ("a",)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet51", "Names like it are .*resnet50"),
        ("torchvision:fcn_resnet50", "must be one that its library has"),
        ("torchvision:resnet18@V7", "weights must be of IMAGENET1K_V1; received"),
        ("timm:resnet51d", "Names like it are .*resnet50d"),
        ("keras:ResNet51", "Names like it are .*ResNet50"),
        ("keras:resnet", "must be one that its library has"),
        ("torchvision.models:resnet18", "without arguments it has weights=None"),
        ("timm.models.resnet:resnet18", "without arguments it has pretrained=False"),
        ("hf:absent/absent", "Elsewhere, run: hf download absent/absent --local-dir folder; then pass hf:folder"),
        (
            "timm:test_resnet",
            "Elsewhere, run: hf download timm/test_resnet.* --local-dir folder; then pass timm:folder",
        ),
        (
            "timm:test_resnet.absent",
            "of which timm has none. Name one of its weights: test_resnet|Invalid pretrained tag",
        ),
        ("timm:", "model must read torchvision:, timm:"),
        ("timm:a/b/c", "must be in its library's cache"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_names_that_lead_to_no_model_are_refused(spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_without_a_network_the_error_says_what_to_fetch_and_where_to(cache, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", unreachable)
    with pytest.raises(
        ModelError, match=r"Fetch https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    ) as info:
        load_model("torchvision:squeezenet1_1")
    assert f"put the file into {cache / 'hub' / 'checkpoints'}." in str(info.value)


def test_timms_models_come_with_their_transforms_and_names(cache, tmp_path):
    network = trained(timm.create_model("test_resnet", num_classes=3))
    config = {"label_names": ["tabby", "tench", "cup"]}
    timm.models.save_for_hf(network, tmp_path / "mine", model_config=config)
    vision = load_model(f"timm:{tmp_path / 'mine'}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    assert_says(vision, network(transform(PHOTO)[None]))
    assert str(vision) == ("mine: 160 x 160, bilinear, crop .95, pixels / 255, mean .5, std .5, 3 classes")
    assert vision.class_name(1) == "1 tench"
    assert spot_error(vision.preprocess, vision.view(300, 200)) < 0.2


def test_timms_models_by_name_come_from_its_cache(cache):
    network = trained(timm.create_model("test_resnet"))
    snapshot = cache / "hub/models--timm--test_resnet.r160_in1k/snapshots/0123"
    timm.models.save_for_hf(network, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    vision = load_model("timm:test_resnet")
    assert vision.class_name(281) == "281 tabby, tabby cat"
    assert len(vision.class_names) == 1000
    assert_says(vision, network(vision.images([PHOTO])))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ResNet, its image processor and its class names."""
    folder = tmp_path_factory.mktemp("hf") / "beasts"
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "cup"},
    )
    torch.manual_seed(0)
    network = transformers.ResNetForImageClassification(config)
    trained(network)
    network.save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875).save_pretrained(folder)
    return folder


def test_hugging_faces_classifiers_come_with_their_processors_and_names(hugging_face):
    vision = load_model(f"hf:{hugging_face}")
    network = transformers.AutoModelForImageClassification.from_pretrained(hugging_face)
    processor = transformers.AutoImageProcessor.from_pretrained(hugging_face)
    assert_says(vision, network(**processor(images=PHOTO, return_tensors="pt")).logits)
    assert vision.class_name(1) == "1 dog"
    assert str(vision).startswith("beasts: 56 x 56, ")
    assert "crop .88, pixels / 255, mean .5, std .5, by ConvNextImageProcessor" in str(vision)
    assert spot_error(vision.preprocess, vision.view(300, 200)) < 0.2


def test_a_classifier_whose_head_is_made_up_is_refused(hugging_face, tmp_path):
    backbone = transformers.ResNetModel.from_pretrained(hugging_face)
    backbone.save_pretrained(tmp_path / "backbone")
    transformers.AutoImageProcessor.from_pretrained(hugging_face).save_pretrained(tmp_path / "backbone")
    with pytest.raises(ModelError, match=r"has no weights for classifier.1.bias, classifier.1.weight"):
        load_model(f"hf:{tmp_path / 'backbone'}")
    assert load_model(f"hf:{tmp_path / 'backbone'}", random_weights=True).name == "backbone"


def test_folders_are_asked_whose_they_are(hugging_face, tmp_path):
    with pytest.raises(ModelError, match=rf"Say whose it is: timm:{hugging_face}, hf:{hugging_face}\."):
        load_model(str(hugging_face))
    with pytest.raises(ModelError, match="a folder as timm saves it.*KeyError: 'architecture'"):
        load_model(f"timm:{hugging_face}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="as save_pretrained writes both"):
        load_model(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(ModelError, match="a folder as timm saves it"):
        load_model(f"timm:{tmp_path / 'empty'}")


def test_kerass_applications_come_with_their_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path), raising=True)
    (tmp_path / "models").mkdir()
    stored = keras.applications.MobileNet(weights=None)
    keras.utils.set_random_seed(0)
    stored.layers[2].gamma.assign(np.linspace(0.5, 2, 32))
    with h5py.File(tmp_path / "models/mobilenet_1_0_224_tf.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, stored)
    names = [f"name {number}" for number in range(1000)]
    vision = load_model("keras:MobileNet", classes=names)
    pixels = np.asarray(PHOTO.resize((328, 224), Image.Resampling.BILINEAR).crop((52, 0, 276, 224)), np.float32)
    expected = stored(keras.applications.mobilenet.preprocess_input(pixels[None].copy()))
    assert_allclose(vision.network(vision.images([PHOTO])), expected, rtol=1e-4, atol=1e-6)
    assert str(vision) == "MobileNet: 224 x 224, bilinear, crop 1, by mobilenet.preprocess_input, 1000 classes"


# From files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small network in each format of PyTorch and ONNX."""
    folder, network = tmp_path_factory.mktemp("files"), tiny()
    example = torch.rand(2, 3, 24, 32)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), folder / "net.pt2")
    torch.export.save(torch.export.export(network, (example[:1],)), folder / "one.pt2")
    torch.jit.save(torch.jit.trace(network, example), folder / "net.pt")
    torch.save(network, folder / "whole.pt")
    torch.save(network.state_dict(), folder / "state.pth")
    onnx.save(as_onnx(network, "N"), folder / "net.onnx")
    onnx.save(as_onnx(network, 1), folder / "one.onnx")
    onnx.save(as_onnx(network, "N", 20), folder / "new.onnx")
    for ending in ("pt", "pt2", "safetensors", "onnx", "keras"):
        (folder / f"text.{ending}").write_text("no network")
    return folder


def as_onnx(network: torch.nn.Sequential, batch: int | str, opset: int = 17) -> onnx.ModelProto:
    """Return the same network, put together by hand."""
    weights = {name: numpy_helper.from_array(value.numpy(), name) for name, value in network.state_dict().items()}
    pooled = [helper.make_node("GlobalAveragePool", ["b"], ["c"]), helper.make_node("Flatten", ["c"], ["d"])]
    if opset > 17:
        # As PyTorch writes them today: axes are an input, and 0 is a size.
        weights |= {"axes": numpy_helper.from_array(np.array([2, 3]), "axes")}
        weights |= {"shape": numpy_helper.from_array(np.array([-1, network[0].out_channels]), "shape")}
        pooled = [
            helper.make_node("ReduceMean", ["b", "axes"], ["c0"]),
            helper.make_node("Identity", ["c0"], ["c"]),
            helper.make_node("Reshape", ["c", "shape"], ["d"], allowzero=1),
        ]
    nodes = [
        helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        *pooled,
        helper.make_node("Gemm", ["d", "4.weight", "4.bias"], ["scores"], transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 24, 32])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "net", [images], [scores], list(weights.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def shown(channels_last: bool = False) -> np.ndarray:
    """Return the photo as the options have it, in one line of NumPy."""
    pixels = np.asarray(PHOTO.resize((35, 24), Image.Resampling.BILINEAR).crop((2, 0, 34, 24)), np.float32)
    scaled = (pixels / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32(0.25)
    return scaled[None] if channels_last else scaled.transpose(2, 0, 1)[None]


@pytest.mark.parametrize("name", ["net.pt2", "one.pt2", "net.pt", "net.onnx", "new.onnx", "one.onnx"])
def test_files_of_pytorch_and_onnx(files, name):
    size = {"size": (24, 32)} if name == "net.pt" else {}
    vision = load_model(str(files / name), **SCALED, **size, classes=BEASTS)
    assert str(vision).endswith(f"{name}: 32 x 24, bilinear, crop 1, pixels / 255, mean .4 .5 .6, std .25, 3 classes")
    assert vision.at_once == (1 if name.startswith("one") else None)
    assert_says(vision, tiny()(torch.from_numpy(shown())))


def test_photos_are_shown_one_by_one_to_a_file_that_takes_one(files, tmp_path):
    (tmp_path / "one.onnx").write_bytes((files / "one.onnx").read_bytes())
    (tmp_path / "one.toml").write_text("scale = 0.0039\nclasses = ['cat', 'dog', 'cup']\n")
    explained = explain_photos([PHOTO, PHOTO], model=tmp_path / "one.onnx", labels="dog")
    assert [photo.label for photo in explained] == [1, 1]
    (tmp_path / "one.toml").write_text("scale = 1\nclasses = ['cat', 'dog']\n")
    with pytest.raises(ModelError, match="classes must be as many as the model's outputs, 3; received 2 names"):
        explain_photos([PHOTO], model=tmp_path / "one.onnx")


def test_what_a_file_does_not_say_may_stand_beside_it(files, tmp_path):
    for name in ("net.onnx", "net.pt"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "names.txt").write_text("cat\ndog\ncup\n")
    side = "size = [24, 32]\nscale = '1/255'\nmean = [0.4, 0.5, 0.6]\nstd = 0.25\nclasses = 'names.txt'\n"
    (tmp_path / "net.toml").write_text(side)
    for name in ("net.onnx", "net.pt"):
        vision = load_model(tmp_path / name)
        assert_allclose(vision.images([PHOTO]), shown(), atol=1e-5)
        assert vision.class_name(2) == "2 cup"
        assert load_model(str(tmp_path / name), std=0.5).preprocess.std == (0.5,)
    for text, message in [
        ("sise = 3", "received sise. Take that out"),
        ("size = ", "must be a TOML file"),
        ("std = 0", "std"),
    ]:
        (tmp_path / "net.toml").write_text(text)
        with pytest.raises(OptionError, match=message):
            load_model(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.onnx", {}, "without scale, mean, std. Pass size .--size 224.*; or write .*net.toml with the same names"),
        ("net.pt", {"scale": 1}, "without size"),
        ("net.onnx", {"scale": 1, "size": 8}, r"size must be as the model has it, \(24, 32\); received size=\(8, 8\)"),
        ("net.pt2", {"scale": 1, "channels_last": True}, "channels_last must be as the model has it, False"),
        ("absent.onnx", {}, "and no such file"),
        ("state.pth", {}, "is weights without a network"),
        ("whole.pt", {}, "a pickle. To unpickle it runs whatever it says: pass trust_pickle=True"),
        ("text.pt", {}, "a pickle"),
        ("text.pt", {"trust_pickle": True}, "a file that this PyTorch can load; received .*UnpicklingError"),
        ("text.pt2", {}, "a file that this PyTorch can load"),
        ("text.safetensors", {}, r"load_state_dict.safetensors.torch.load_file..*text.safetensors"),
        ("text.onnx", {}, "must be an ONNX file that is whole; received .*text.onnx' .+ Export it anew"),
        ("text.keras", {}, "must be a file that Keras can load"),
    ],
)
def test_files_that_leave_something_open_are_refused(files, name, options, message):
    with pytest.raises((ModelError, OptionError), match=message):
        load_model(str(files / name), **options)


def test_weights_alone_are_answered_with_the_lines_to_write(files):
    with pytest.raises(ModelError) as info:
        load_model(str(files / "state.pth"))
    lines = str(info.value).partition("pass net.py:make:\n")[2]
    scope = {"torch": torch, "Network": tiny}
    exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), scope)
    assert_allclose(scope["make"]()[0].weight.detach(), tiny()[0].weight.detach())


def test_a_pickle_is_read_if_it_is_trusted(files):
    vision = load_model(str(files / "whole.pt"), trust_pickle=True, size=(24, 32), **SCALED)
    assert_says(vision, tiny()(torch.from_numpy(shown())))
    with pytest.raises(ModelError, match="is weights without a network"):
        load_model(str(files / "state.pth"), trust_pickle=True)


def test_an_onnx_file_is_refused_if_its_module_computes_something_else(files, monkeypatch):
    def wrong(stored):
        network = convert(stored)
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        return network

    convert = onnx2torch.convert
    monkeypatch.setattr(onnx2torch, "convert", wrong)
    with pytest.raises(ModelError, match="whose outputs differ by .* of the largest"):
        load_model(str(files / "net.onnx"), **SCALED)


def test_an_operation_that_onnx2torch_does_not_know_is_refused(tmp_path):
    node = helper.make_node("Hardmax", ["images"], ["scores"])
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph(
        [node], "net", [value], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "odd.onnx"
    )
    with pytest.raises(ModelError, match="must be of operations that onnx2torch knows; .*Hardmax"):
        load_model(str(tmp_path / "odd.onnx"), scale=1)


def keras_network(*first: keras.layers.Layer, channels: int = 3) -> keras.Model:
    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer="random_normal")
    body = [convolution, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((24, 32, channels)), *first, *body])


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    keras_network(keras.layers.Rescaling(1 / 255)).save(folder / "rescaling.keras")
    keras_network().save(folder / "plain.keras")
    keras_network().save(folder / "plain.h5")
    keras_network(channels=1).save(folder / "grey.keras")
    keras_network().export(folder / "saved", verbose=False)
    keras_network(keras.layers.Lambda(lambda pixels: pixels / 255)).save(folder / "code.keras")
    return folder


def test_a_model_that_rescales_is_shown_pixels(keras_files):
    vision = load_model(str(keras_files / "rescaling.keras"))
    assert str(vision).endswith("32 x 24, bilinear, crop 1, which it rescales itself, classes without names")
    pixels = np.asarray(PHOTO.resize((35, 24), Image.Resampling.BILINEAR).crop((2, 0, 34, 24)), np.float32)
    assert_says(vision, keras_network(keras.layers.Rescaling(1 / 255))(pixels[None]))


@pytest.mark.parametrize("name", ["plain.keras", "plain.h5", "saved"])
def test_files_of_keras(keras_files, name):
    with pytest.raises(ModelError, match=rf"without scale, mean, std.*; or write .*{name.partition('.')[0]}.toml"):
        load_model(str(keras_files / name))
    vision = load_model(str(keras_files / name), **SCALED)
    assert_says(vision, keras_network()(shown(channels_last=True)))


def test_a_network_of_one_channel_is_shown_the_photo_in_grey(keras_files):
    vision = load_model(str(keras_files / "grey.keras"), scale="1/255")
    grey = PHOTO.resize((35, 24), Image.Resampling.BILINEAR).crop((2, 0, 34, 24)).convert("L")
    assert_says(vision, keras_network(channels=1)(np.asarray(grey, np.float32)[None, ..., None] / 255))
    assert ", grey, " in str(vision)


def test_python_code_in_a_file_is_run_only_if_it_is_trusted(keras_files):
    path = str(keras_files / "code.keras")
    with pytest.raises(ModelError, match="It holds Python code: pass trust_pickle=True"):
        load_model(path, scale=1)
    vision = load_model(path, scale=1, trust_pickle=True)
    assert vision.images([PHOTO]).max() > 1


def test_a_function_may_return_what_a_file_may_hold(files, keras_files, tmp_path):
    (tmp_path / "makes.py").write_text(
        f"import keras, tensorflow as tf, torch\n"
        f"def a(): return keras.saving.load_model({str(keras_files / 'plain.keras')!r}, compile=False)\n"
        f"def b(): return tf.saved_model.load({str(keras_files / 'saved')!r})\n"
        f"def c(): return torch.export.load({str(files / 'net.pt2')!r})\n"
        f"def d(): return torch.jit.load({str(files / 'net.pt')!r})\n"
    )
    for name, options in {"a": {}, "b": {}, "c": {}, "d": {"size": (24, 32)}}.items():
        vision = load_model(f"{tmp_path}/makes.py:{name}", **SCALED, **options)
        assert_allclose(vision.images([PHOTO]), shown(channels_last=name in "ab"), atol=1e-5)


@pytest.mark.parametrize("name", ["fresh.keras", "fresh"])
def test_a_file_of_a_network_that_has_learned_nothing_is_refused(tmp_path, name):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3), keras.layers.Conv2D(2, 3)])
    if name == "fresh":
        network.export(tmp_path / name, verbose=False)
    else:
        network.save(tmp_path / name)
    with pytest.raises(ModelError, match="received .*fresh.*every layer that normalises, or every bias, is as it was"):
        load_model(tmp_path / name, scale=1)
    assert load_model(tmp_path / name, scale=1, random_weights=True).at_once is None


def test_without_a_library_the_error_says_what_to_install(monkeypatch):
    for spec, package, extra in [
        ("timm:a", "timm", "timm"),
        ("hf:a", "transformers", "transformers"),
        ("torchvision:a", "torchvision", "torchvision"),
        ("keras:A", "keras", "tensorflow"),
    ]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            MissingExtraError, match=rf"needs {package}; .* Run: pip install 'guided-backprop\[{extra}\]'"
        ):
            load_model(spec)
