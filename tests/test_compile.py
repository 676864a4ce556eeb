"""A compiled method explains as the method does, in an engine, or says that it did not; never by former weights."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xxhash
from click.testing import CliRunner
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, ImageError, LabelError, ModelError, OptionError, Saliency
from guided_backprop.backends.torch.export.weights import key_of
from guided_backprop.commands.main import command
from guided_backprop.export import cache
from guided_backprop.export.agreement import difference
from guided_backprop.export.engine import ENGINES, installed
from guided_backprop.methods import compile as compiling
from guided_backprop.methods.export import opened
from networks import IMAGES, LABELS
from networks_torch import Net, oracle

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
IMAGES_32 = torch.tensor(IMAGES, dtype=torch.float32)


class Positions(nn.Module):
    """Scores at positions, and a softmax behind them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 5, 1))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).softmax(1)


@pytest.fixture(scope="module")
def net():
    net = Net(nn.ReLU()).float()
    net.middle[0].list, net.middle[0].factor = [torch.zeros(1), "word"], 1.5
    return net


@pytest.fixture(scope="module")
def compiled(net):
    return GuidedBackprop(net).compile(IMAGES_32[:2], "onnxruntime")


@pytest.mark.parametrize("engine", installed())
def test_each_engine_gives_the_maps_of_the_oracle(engine, net):
    method = GuidedBackprop(net, batch_size=3).compile(IMAGES_32, engine=engine)
    explanations = method.explain(IMAGES_32, LABELS)
    assert explanations.engine.startswith(engine)
    assert explanations.engine in repr(explanations)
    np.testing.assert_allclose(explanations, oracle(), **TOLERANCE)
    assert not np.allclose(explanations, oracle("saliency"), **TOLERANCE)
    assert explanations.coverage == GuidedBackprop(net).explain(IMAGES_32).coverage
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda row: method.explain(IMAGES_32[row], LABELS[row]), [slice(1), slice(4)] * 8))
    for explained in several:
        np.testing.assert_allclose(explained, oracle()[: len(explained)], **TOLERANCE)


ASKED = {
    "the top class": None,
    "one class": 2,
    "several": "top2",
    "pairs": [[0, 1]] * 3,
    "weights": np.random.default_rng(0).normal(size=(3, 5, 6, 7)),
    "an entry": (1, 2, 3),
    "its maximum": (1, "max"),
}


@pytest.fixture(scope="module")
def both():
    method = Saliency(Positions(), reducer="absmax")
    images = torch.tensor(np.random.default_rng(1).normal(size=(3, 3, 13, 15)), dtype=torch.float32)
    return method, method.compile(images), images


@pytest.mark.parametrize("asked", ASKED)
def test_all_labels(asked, both):
    method, compiled, images = both
    expected, explained = (one.explain(images, ASKED[asked]) for one in (method, compiled))
    assert explained.engine == compiled.compiled.engine
    for name in ("attribution", "scores", "outputs", "labels"):
        np.testing.assert_allclose(getattr(explained, name), getattr(expected, name), **TOLERANCE)
    assert (explained.head, explained.coverage) == (expected.head, expected.coverage)


def test_a_mask(both):
    method, compiled, images = both
    mask = np.arange(42).reshape(6, 7) % 3 == 0
    expected, explained = (one.explain(images, 1, mask=mask) for one in (method, compiled))
    assert explained.engine == compiled.compiled.engine
    np.testing.assert_allclose(explained, expected, **TOLERANCE)


def test_what_no_graph_is_runs_as_it_is_and_says_so(both):
    method, compiled, images = both
    for given, labels, why in (
        (images, lambda output: output[:, 1].sum((1, 2)), "torch: a function as label"),
        (images[..., 2:], None, "torch: images of another"),
        (images.double(), None, None),
    ):
        if why is None:
            with pytest.raises(ModelError):
                compiled.explain(given, labels)
            continue
        explained = compiled.explain(given, labels)
        assert explained.engine.startswith(why)
        np.testing.assert_allclose(explained, method.explain(given, labels), rtol=1e-6)
    assert method.explain(images).engine is None


@pytest.mark.parametrize("label", [5, -1, -2, [0, 1, 5]])
def test_errors_are_those_of_the_method(label, both):
    """Also of numbers by which a graph itself is told something else."""
    method, compiled, images = both
    with pytest.raises(LabelError, match=r"in \[0, 5\)") as expected:
        method.explain(images, label)
    with pytest.raises(LabelError) as error:
        compiled.explain(images, label)
    assert str(error.value) == str(expected.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("asked", [*ASKED, "a function"])
def test_images_that_are_not_finite_are_refused(asked, value, both):
    """By the graph, which looks at them itself, in the method's words."""
    method, compiled, images = both
    label = ASKED.get(asked, lambda output: output[:, 1].sum((1, 2)))
    broken = images.clone()
    broken[-1, 0, 3, 0] = value
    for given in (broken, broken.numpy()):
        for one in (method, compiled, copy.copy(compiled)):
            with pytest.raises(ImageError, match="must be finite"):
                one.explain(given, label)
    shifted = images[..., 2:].clone()
    shifted[0, 0, 0, 0] = value
    with pytest.raises(ImageError, match="must be finite"):
        compiled.explain(shifted, label)


def test_values_are_looked_at_by_the_graph_alone(both, monkeypatch):
    """The fault that the test above has to find: a graph that does not look."""
    _, compiled, images = both
    engine = compiled.compiled._engine
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan

    class Blind:
        def run(self, inputs):
            return engine.run(inputs) | {"is_finite": np.ones(len(images), bool)}

    monkeypatch.setattr(compiled.compiled, "_engine", Blind())
    assert compiled.explain(broken, 1).engine == compiled.compiled.engine


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_that_is_given_lies_in_what_is_found(engine, tmp_path, monkeypatch):
    """Of a model that gives its images, and of images that cannot be written."""
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path))
    method = Saliency(nn.Flatten())
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    compiled = method.compile(torch.tensor(images), engine)
    images.flags.writeable = False
    first = compiled.explain(images, 1)
    assert first.engine == compiled.compiled.engine
    kept = [np.array(array) for array in (first.outputs, first)]
    assert not any(np.shares_memory(images, array) for array in (first.outputs, np.asarray(first)))
    compiled.explain(images + 1, 2)
    for array, found in zip(kept, (first.outputs, first), strict=True):
        np.testing.assert_array_equal(array, found)


CHANGES = {
    "a number": lambda model: model.stem.weight.data.view(-1)[:1].add_(1e-3),
    "a bit of it": lambda model: (
        model.stem.weight.detach().numpy().view(np.int32).__ixor__(np.eye(1, 3, dtype=np.int32)[0])
    ),
    "its sign": lambda model: model.stem.weight.data.neg_(),
    "other memory": lambda model: setattr(model.stem.weight, "data", model.stem.weight.data.flip(0)),
    "another order": lambda model: setattr(model.stem.weight, "data", model.stem.weight.data.transpose(2, 3)),
    "its layout and a number": lambda model: (
        model.to(memory_format=torch.channels_last).stem.weight.data[0, 0, 0, :1].add_(1e-3)
    ),
    "another precision": lambda model: setattr(model.stem.weight, "data", model.stem.weight.data.double()),
    "a parameter": lambda model: setattr(model.stem, "weight", nn.Parameter(model.stem.weight + 1)),
    "a hook": lambda model: model.middle[0].register_forward_hook(lambda module, given, result: result),
    "a kind": lambda model: setattr(model.middle[0], "__class__", type("Other", (type(model.middle[0]),), {})),
    "a list": lambda model: model.middle[0].list.append(1),
    "a swap": lambda model: model.stem.weight.data.copy_(model.stem.weight.data.flip(0)),
    "a buffer": lambda model: next(model.buffers()).mul_(1.001),
    "an option": lambda model: setattr(model.middle[0], "note", 3),
    "what is in a list": lambda model: model.middle[0].list[0].add_(1),
    "a layer": lambda model: setattr(model, "first", nn.LeakyReLU()),
    "its mode": lambda model: model.middle.train(),
    "a name": lambda model: vars(model.middle[0]).update(other=vars(model.middle[0]).pop("factor")),
    "its namespace": lambda model: setattr(
        model.stem, "__dict__", vars(model.stem) | {"_parameters": {"weight": model.stem.weight.neg(), "bias": None}}
    ),
}


@pytest.fixture
def of_a_copy(net, compiled):
    """A copy of the network, compiled: its graph is that of the network."""
    copied = copy.deepcopy(net)
    return copied, GuidedBackprop(copied).compile(IMAGES_32[:2], "onnxruntime")


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changed_is_an_error(change, of_a_copy):
    model, method = of_a_copy
    np.testing.assert_allclose(method.explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)
    CHANGES[change](model)
    for labels in (LABELS, 99, lambda output: output[:, 0]):
        with pytest.raises(ModelError, match="changed since"):
            method.explain(IMAGES_32, labels)


def other_forward(module, x):
    return torch.relu(x) * 2


EDITS = {
    "a method": lambda kind: setattr(kind, "forward", other_forward),
    "its code, as where a notebook loads it anew": lambda kind: setattr(kind.inner, "__code__", other_forward.__code__),
    "a method that it had not": lambda kind: setattr(kind, "__call__", other_forward),
    "a method less": lambda kind: delattr(kind, "inner"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_other_code_of_a_class_is_seen(edit):
    from guided_backprop.backends.torch.export.weights import Weights

    class Own(nn.Module):
        def forward(self, x):
            return self.inner(x)

        def inner(self, x):
            return torch.relu(x)

    model = nn.Sequential(nn.Linear(2, 2), Own())
    weights = Weights(model)
    # Equal code is no change, nor is what other classes have.
    Own.inner.__code__ = Own.inner.__code__.replace()
    type("Other", (Own,), {}).forward = other_forward
    assert weights.are_the_same()
    EDITS[edit](Own)
    assert not weights.are_the_same()


NO_CHANGES = {
    "an equal parameter": lambda model: setattr(model.stem, "weight", nn.Parameter(model.stem.weight.detach().clone())),
    "an equal option": lambda model: setattr(model.middle[0], "factor", float("1.5")),
    "there and back": lambda model: (model.stem.weight.data.neg_(), model.stem.weight.data.neg_()),
    "equal memory": lambda model: setattr(model.stem.weight, "data", model.stem.weight.data.clone()),
    "another layout": lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", NO_CHANGES)
def test_what_is_equal_is_no_change(change, of_a_copy):
    model, method = of_a_copy
    NO_CHANGES[change](model)
    np.testing.assert_allclose(method.explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)
    model.stem.weight.data[0, 0, 0, 0] += 1
    with pytest.raises(ModelError, match="changed since"):
        method.explain(IMAGES_32, LABELS)


class NotKept(BaseException):
    """A graph is recorded."""


@pytest.fixture
def not_recorded(monkeypatch):
    def raises(*given):
        raise NotKept

    monkeypatch.setattr(compiling, "recorded", raises)


@pytest.mark.usefixtures("not_recorded")
def test_a_second_start_opens_what_was_kept(net, compiled):
    again = GuidedBackprop(copy.deepcopy(net)).compile(IMAGES_32[:2] * 0.5, "onnxruntime")
    assert again.explain(IMAGES_32, LABELS).engine == compiled.compiled.engine
    assert again.compiled.times == compiled.compiled.times
    np.testing.assert_allclose(again.explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)
    for other, images in ((DeconvNet(net), IMAGES_32), (GuidedBackprop(net), IMAGES_32[..., 1:])):
        with pytest.raises(NotKept):
            other.compile(images, "onnxruntime")


@pytest.fixture
def compared(monkeypatch):
    """Return how many images a second start compares, each time."""
    counts = []

    def counting(told, wanted):
        counts.append(len(wanted[0]))
        return difference(told, wanted)

    monkeypatch.setattr(compiling, "difference", counting)
    return counts


@pytest.mark.usefixtures("not_recorded", "compiled")
def test_a_second_start_looks_at_two_images(net, compared):
    GuidedBackprop(net).compile(IMAGES_32[[0, 1, 2, 0, 1, 2]], "onnxruntime")
    assert compared == [2]


@pytest.mark.usefixtures("not_recorded", "compiled")
def test_what_older_code_recorded_is_recorded_anew(net, monkeypatch):
    monkeypatch.setattr(cache, "digest_of_code", lambda: "of other code")
    with pytest.raises(NotKept):
        GuidedBackprop(net).compile(IMAGES_32[:2], "onnxruntime")


def test_a_digest_of_code_is_of_every_file(tmp_path):
    def digest():
        return cache.digest_of_code.__wrapped__(tmp_path)

    (tmp_path / "room").mkdir()
    (tmp_path / "room/words.py").write_text("a = 1")
    found = [digest(), digest()]
    (tmp_path / "room/words.py").write_text("a = 2")
    found.append(digest())
    (tmp_path / "room/words.py").rename(tmp_path / "words.py")
    found.append(digest())
    (tmp_path / "rules.py").write_text("")
    found.append(digest())
    (tmp_path / "page.html").write_text("is no code")
    found.append(digest())
    assert found[0] == found[1]
    assert found[-2] == found[-1]
    assert len(set(found)) == 4
    # Its own: read once, and of some hundred files.
    assert cache.digest_of_code() == cache.digest_of_code() == cache.digest_of_code.__wrapped__(cache._CODE)
    assert cache._CODE.name == "guided_backprop"


def test_for_another_number_of_images_nothing_is_recorded_again(net, monkeypatch):
    assert GuidedBackprop(net).compile(IMAGES_32[:2]).compiled.times.keys() == {*installed(), *OWN}
    monkeypatch.setattr(compiling, "recorded", None)
    again = GuidedBackprop(net).compile(IMAGES_32)
    assert again.compiled.times.keys() == {*installed(), *OWN}
    np.testing.assert_allclose(again.explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of all that is kept, to be damaged."""
    shutil.copytree(cache.folder(), tmp_path / "copy")
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path / "copy"))
    return tmp_path / "copy"


def rewritten(folder, name, stored):
    """Another file, and words that say so: what is compared is the map."""
    (folder / name).write_bytes(stored)
    said = json.loads((folder / "entry.json").read_text())
    said["files"][name] = xxhash.xxh3_128(stored).hexdigest()
    (folder / "entry.json").write_text(json.dumps(said))


def reversed_weights(stored, weights):
    for weight in weights:
        stored = stored.replace(weight, weight[::-1])
    return stored


DAMAGES = {
    "cut": lambda folder, stored, weights: (folder / "map.onnx").write_bytes(stored[: len(stored) // 2]),
    "a byte": lambda folder, stored, weights: (folder / "map.onnx").write_bytes(
        stored.replace(weights[0][:4], b"abcd")
    ),
    "other weights": lambda folder, stored, weights: rewritten(folder, "map.onnx", reversed_weights(stored, weights)),
    "no words": lambda folder, stored, weights: (folder / "entry.json").write_text("{"),
    "gone": lambda folder, stored, weights: (folder / "map.onnx").unlink(),
}


@pytest.mark.usefixtures("not_recorded")
@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_is_made_anew(damage, engine, in_engines, copied):
    net = in_engines
    GuidedBackprop(net).compile(IMAGES_32[:2], engine)
    weights = [row.tobytes() for row in net.head[-1].weight.detach().numpy()]
    for folder in copied.iterdir():
        for stored in folder.glob("*.blob"):
            stored.unlink()
        DAMAGES[damage](folder, (folder / "map.onnx").read_bytes(), weights)
    with pytest.raises(NotKept):
        GuidedBackprop(net).compile(IMAGES_32[:2], engine)


@pytest.fixture(scope="module")
def in_engines(net):
    """Let each engine have its own graph kept."""
    for engine in installed():
        GuidedBackprop(net).compile(IMAGES_32[:2], engine)
    return net


@pytest.mark.usefixtures("not_recorded")
def test_what_an_engine_stored_is_opened_and_a_damaged_one_is_not_believed(in_engines, copied, monkeypatch):
    def compiled():
        return GuidedBackprop(in_engines).compile(IMAGES_32[:2], "openvino")

    paths, paths_opened = list(copied.rglob("*.blob")), []

    def seen(path, *rest):
        paths_opened.append(path.suffix)
        return opened(path, *rest)

    monkeypatch.setattr(compiling, "opened", seen)
    compiled()
    assert paths_opened == [".blob"]
    kept = {path: path.read_bytes() for path in paths}
    # Not as it was written: the graph is opened instead.
    for path in paths:
        path.write_bytes(kept[path][:-1])
    compiled()
    # As it was written, but no such file.
    for path in paths:
        rewritten(path.parent, path.name, b"none")
    np.testing.assert_allclose(compiled().explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)
    assert paths_opened == [".blob", ".onnx", ".blob", ".onnx"]
    # Another network's: its maps are others.
    weights = [row.tobytes() for row in in_engines.head[-1].weight.detach().numpy()]
    for path in paths:
        rewritten(path.parent, path.name, reversed_weights(kept[path], weights))
        assert reversed_weights(kept[path], weights) != kept[path]
    with pytest.raises(NotKept):
        compiled()


OWN = {"torch": f"torch {torch.__version__}, optimized", "torch, as it is": "torch: faster as it is"}


@pytest.mark.parametrize("own", OWN)
def test_the_frameworks_own_run_is_taken_where_it_is_the_fastest(own, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path))

    def timed(methods, images):
        return {name: 0.5 if name == own else 1.0 for name in methods}

    monkeypatch.setattr(compiling, "timed", timed)
    net = Net(nn.ReLU()).float()
    method = GuidedBackprop(net).compile(IMAGES_32[:2])
    assert method.compiled.times == timed((*installed(), *OWN), None)
    explained = method.explain(IMAGES_32, LABELS)
    assert explained.engine == OWN[own]
    np.testing.assert_allclose(explained, oracle(), **TOLERANCE)
    again = GuidedBackprop(copy.deepcopy(net)).compile(IMAGES_32[:2])
    assert again.explain(IMAGES_32).engine == explained.engine
    # Its weights are live: a change counts at once.
    before = net.stem.weight.detach().clone()
    net.stem.weight.data.neg_()
    np.testing.assert_allclose(
        method.explain(IMAGES_32, LABELS), GuidedBackprop(net).explain(IMAGES_32, LABELS), **TOLERANCE
    )
    assert not np.allclose(method.explain(IMAGES_32, LABELS), oracle(), **TOLERANCE)
    net.stem.weight.data.copy_(before)
    assert GuidedBackprop(net).compile(IMAGES_32[:2], "onnxruntime").compiled.times.keys() == {"onnxruntime"}


def test_an_engines_threads_leave_the_processor_when_it_is_done(compiled):
    options = compiled.compiled._engine._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_key_is_of_weights_options_and_code():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    def plain(self, x):
        return nn.Linear.forward(self, x)

    model = Own(3, 4)
    keys = [key_of(model), key_of(copy.deepcopy(model))]
    model.weight.data[0, 0] += 1
    keys.append(key_of(model))
    model.note = 1
    keys.append(key_of(model))
    Own.forward = plain
    keys.append(key_of(model))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


@pytest.mark.usefixtures("compiled")
def test_the_command_says_what_is_kept_and_clears_it(tmp_path, monkeypatch):
    def run(*options):
        return CliRunner().invoke(command(), ["cache", *options])

    assert f"{cache.folder()}: " in run().output
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path / "graphs"))
    assert "0 graphs" in run().output
    cache.keep("key", lambda path: {"size": path.write_bytes(b"1234")})
    (tmp_path / "graphs/mine.txt").write_text("stays")
    assert cache.entry("key").said["size"] == 4
    assert ": 1 graph," in run().output
    assert "0 graphs" in run("--clear").output
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["mine.txt"]
    # Where nothing can be kept, it is there all the same.
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path / "graphs/mine.txt"))
    assert cache.keep("key", lambda path: {"size": path.write_bytes(b"1234")}).path.read_bytes() == b"1234"


def test_what_cannot_be_compiled_is_refused(net):
    with pytest.raises(OptionError, match="one of auto, onnxruntime, openvino"):
        GuidedBackprop(net).compile(IMAGES_32, engine="tflite")
    with pytest.raises(ModelError, match="a torch.nn.Module"):
        GuidedBackprop(net.forward).compile(IMAGES_32)
    with pytest.raises(ImageError, match="single precision"):
        GuidedBackprop(Net(nn.ReLU())).compile(IMAGES_32.double())
    with pytest.raises(ImageError, match="must not be empty"):
        GuidedBackprop(net).compile(IMAGES_32[:0])


def test_a_copy_elsewhere_runs_as_it_is(compiled):
    assert compiled.around(compiled.subject.model).compiled is None
    again = pickle.loads(pickle.dumps(compiled))
    assert again.explain(IMAGES_32).engine is None
    assert compiled.optimize(IMAGES_32).explain(IMAGES_32).engine is None


def test_openvino_does_not_report_that_it_was_imported():
    """Where this library imports it. A planted fault: imported by itself, it has the package that does."""
    own = "import openvino, sys; print('openvino_telemetry' in sys.modules)"
    ours = (
        "import sys; from guided_backprop.export.engine import required; required('openvino'); "
        "print('openvino_telemetry' in sys.modules)"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (own, ours)
    ]
    assert said == ["True\n", "False\n"]
