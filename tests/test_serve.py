"""The example that serves an exported graph, asked over HTTP: maps, batches, what is refused, a full queue."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import uvicorn
from google.protobuf import text_format
from numpy.testing import assert_allclose
from torch import nn

import serve
from guided_backprop import GuidedBackprop
from guided_backprop.export.photos import Photos
from guided_backprop.models import ResizeCrop

SHAPE = (3, 9, 8)


@pytest.fixture(scope="module")
def method() -> GuidedBackprop:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)]
    return GuidedBackprop(nn.Sequential(*layers).eval())


@pytest.fixture(scope="module")
def path(method: GuidedBackprop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return method.export(tmp_path_factory.mktemp("served") / "map.onnx", torch.rand(2, *SHAPE)).path


class Served:
    """The server, in a thread, on a port of its own."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.app = serve.application(path, **options)
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "Served":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module", params=serve.ENGINES)
def served(path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    with Served(path, patience=0.05, largest=100_000, engine=request.param) as running:
        running.engine = request.param
        yield running


def images(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def port(name: str, array: np.ndarray, kind: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": array.shape, "datatype": kind, "data": array.ravel().tolist()}


def test_the_first_protocol(served, method):
    given = images(0, 2)
    wanted = method.explain(torch.from_numpy(given), [3, 1])
    instances = [{"images": image.tolist(), "label": label} for image, label in zip(given, (3, 1), strict=True)]
    answer = served.client.post("/v1/models/map:explain", json={"instances": instances})
    found = [one["attribution"] for one in answer.json()["explanations"]]
    assert_allclose(found, wanted.attribution, atol=1e-6, rtol=1e-5)
    # Of an image without a label the top class.
    answer = served.client.post("/v1/models/map:explain", json={"instances": given.tolist()})
    top = method.explain(torch.from_numpy(given))
    assert_allclose([one["scores"] for one in answer.json()["explanations"]], top.scores, rtol=1e-5)


def test_the_second_protocol(served, method):
    given = images(1, 3)
    labels = np.array([4, -1, 0])
    top = int(method.explain(torch.from_numpy(given[1:2])).labels[0])
    wanted = method.explain(torch.from_numpy(given), [4, top, 0])
    asked = {"id": "a", "inputs": [port("images", given), port("labels", labels, "INT64")]}
    said = served.client.post("/v2/models/map/infer", json=asked)
    results = {one["name"]: np.reshape(one["data"], one["shape"]) for one in said.json()["outputs"]}
    assert said.json()["id"] == "a"
    assert_allclose(results["attribution"], wanted.attribution, atol=1e-6, rtol=1e-5)
    assert_allclose(results["outputs"], wanted.outputs, rtol=1e-5)
    # The same as bytes, of which there are fewer.
    inputs = [
        {"name": "images", "shape": given.shape, "datatype": "FP32", "parameters": {"binary_data_size": given.nbytes}},
        port("labels", labels, "INT64"),
    ]
    outputs = [{"name": "attribution", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {serve.LENGTH: str(len(head))}
    answer = served.client.post("/v2/models/map/infer", content=head + given.tobytes(), headers=headers)
    length = int(answer.headers[serve.LENGTH])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": given.nbytes}
    binary = np.frombuffer(answer.content[length:], "<f4").reshape(given.shape)
    assert_allclose(binary, results["attribution"], rtol=1e-6)
    assert len(answer.content) < len(said.content) / 3


def test_it_says_what_it_is(served):
    """Whichever engine has the file open."""
    about = served.client.get("/v2/models/map").json()
    assert about["inputs"][0] == {"name": "images", "datatype": "FP32", "shape": [-1, *SHAPE]}
    assert about["inputs"][1] == {"name": "labels", "datatype": "INT64", "shape": [-1]}
    assert [(port["name"], port["datatype"]) for port in about["outputs"]] == [
        ("outputs", "FP32"), ("attribution", "FP32"), ("scores", "FP32"), ("is_finite", "BOOL")
    ]  # fmt: skip
    assert about["platform"] == f"{served.engine}_onnx"
    assert about["parameters"]["method"] == "GuidedBackprop"
    assert json.loads(about["parameters"]["coverage"]) == [["relu", 1, "guided"]]
    assert served.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"no JSON", "a request must be JSON"),
        (b"[]", "a request must be an object; received list"),
        ({"inputs": [3]}, 'inputs and outputs must be {"name": ...}; received 3'),
        ({"inputs": [{**port("images", images(0)), "parameters": None}]}, "inputs and outputs must be"),
        ({"inputs": [port("images", images(0))], "outputs": 3}, "inputs and shapes must be lists; received 3"),
        ({"inputs": [port("images", np.zeros((1, 9, 8, 3)))]}, r"images must be of shape (1, 3, 9, 8); received shape"),
        ({"inputs": [port("photos", np.zeros((1, *SHAPE)))]}, "inputs must be images, labels; received photos"),
        ({"inputs": [port("images", np.zeros((17, 1)))]}, "a request must have 1 to 16 images; received 17"),
        ({"inputs": [{**port("images", np.zeros((1, *SHAPE))), "shape": [2, *SHAPE]}]}, "data must fill its shape"),
        ({"inputs": [port("images", np.zeros((1, *SHAPE)), "FP99")]}, "datatype must be of FP32, INT64, UINT8, BOOL"),
        ({"inputs": [port("images", np.full((1, *SHAPE), np.nan))]}, "must give finite maps; received NaN"),
        ({"inputs": [port("images", np.zeros((1, *SHAPE))), port("labels", np.array([5]), "INT64")]}, "no class"),
        ({"inputs": [port("images", np.zeros((1, *SHAPE))), port("labels", np.array([0.5]))]}, "must be integers"),
        (
            {"inputs": [port("images", images(0))], "outputs": [{"name": "map"}]},
            "outputs must be of outputs, attribution",
        ),
    ],
)
def test_what_is_wrong_is_said(served, asked, said):
    content = asked if isinstance(asked, bytes) else json.dumps(asked)
    answer = served.client.post("/v2/models/map/infer", content=content)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert served.client.post("/v1/models/map:explain", json={"instances": []}).status_code == 400


def test_a_request_that_is_too_large_is_not_read(served):
    answer = served.client.post("/v2/models/map/infer", content=b" " * 200_000)
    assert answer.status_code == 413


def test_eight_clients_and_one_that_sends_nan(served, method):
    """What waits is explained together, and the one that is wrong spoils nothing."""

    def asked(client: int) -> httpx.Response:
        given = np.full((1, *SHAPE), np.nan) if client == 3 else images(client)
        return served.client.post("/v2/models/map/infer", content=json.dumps({"inputs": [port("images", given)]}))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(asked, range(8)))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 200, 200, 200, 200]
    for client, answer in enumerate(answers):
        if client != 3:
            found = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer.json()["outputs"]}
            wanted = method.explain(torch.from_numpy(images(client))).attribution
            assert_allclose(found["attribution"], wanted, atol=1e-6, rtol=1e-5)
    assert max(served.app.state.batches.sizes) > 1


def test_a_full_queue_says_so(path):
    """One is explained, one waits, and the others come again."""
    with Served(path, most=1, patience=0, places=1) as running:
        graph_runs, goes_on = threading.Event(), threading.Event()
        graph = running.app.state.batches._graph
        run = graph.run

        def slow(given: Any) -> Any:
            graph_runs.set()
            goes_on.wait(30)
            return run(given)

        graph.run = slow

        def asked(client: int) -> int:
            body = {"inputs": [port("images", images(client))]}
            return running.client.post("/v2/models/map/infer", json=body).status_code

        with ThreadPoolExecutor(6) as pool:
            first = pool.submit(asked, 0)
            assert graph_runs.wait(30)
            others = [pool.submit(asked, client) for client in range(1, 6)]
            while sum(other.done() for other in others) < 4:
                time.sleep(0.01)
            goes_on.set()
            assert first.result() == 200
            assert sorted(other.result() for other in others) == [200, 503, 503, 503, 503]


RECIPE = ResizeCrop(SHAPE[1:], mean=(0.5,), std=(0.25,))


def test_photos_are_served(method, tmp_path):
    """A graph that takes photos is asked for them, and what is no pixel is not cut to one."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE[1:], 3), np.uint8)
    given = torch.from_numpy(Photos.of(RECIPE).images(pixels, np.float32))
    exported = method.export(tmp_path / "map.onnx", given, photos=RECIPE)
    wanted = method.explain(given, [3, 1]).attribution.permute(0, 2, 3, 1) / 255 / 0.25
    with Served(exported.path) as running:
        instances = [{"photos": one.tolist(), "label": label} for one, label in zip(pixels, (3, 1), strict=True)]
        first = running.client.post("/v1/models/map:explain", json={"instances": instances}).json()
        assert_allclose([one["attribution"] for one in first["explanations"]], wanted, atol=1e-7, rtol=1e-5)
        asked = {"inputs": [port("photos", pixels, "UINT8"), port("labels", np.array([3, 1]), "INT64")]}
        said = running.client.post("/v2/models/map/infer", json=asked).json()
        results = {one["name"]: np.reshape(one["data"], one["shape"]) for one in said["outputs"]}
        assert_allclose(results["attribution"], wanted, atol=1e-7, rtol=1e-5)
        assert not np.allclose(results["attribution"], wanted.flip(0), atol=1e-7, rtol=1e-5)
        for wrong, error in ((pixels / 255, "photos must be integers"), (pixels.astype(int) - 1, "of 0 to 255")):
            answer = running.client.post("/v1/models/map:explain", json={"instances": wrong.tolist()})
            assert answer.status_code == 400
            assert error in answer.json()["error"]


KINDS = {"TYPE_BOOL": "tensor(bool)", "TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)",
         "TYPE_FP32": "tensor(float)"}  # fmt: skip


@cache
def triton() -> ModuleType:
    """Return Triton's own definition of its configuration; nothing else is needed of the package that it is in."""
    (package,) = find_spec("tritonclient").submodule_search_locations
    spec = spec_from_file_location("model_config_pb2", Path(package) / "grpc" / "model_config_pb2.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(text: str) -> Any:
    """Return a configuration of Triton's, as Triton reads it."""
    return text_format.Parse(text, triton().ModelConfig())


def fits(said: Any, ports: Any) -> bool:
    """Tell whether ports that a configuration names are those of a graph, without the number of images."""
    known = {port.name: port for port in ports}
    shapes = [list(port.reshape.shape) if port.HasField("reshape") else list(port.dims) for port in said]
    return all(
        KINDS[triton().DataType.Name(port.data_type)] == known[port.name].type and shape == known[port.name].shape[1:]
        for port, shape in zip(said, shapes, strict=True)
    )


def test_configurations_of_other_servers_are_of_what_is_exported(path):
    """What can be told without these servers: names, kinds and shapes, and that OpenVINO knows what it is told."""
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    config = re.search(r"```text\n(name: .*?)```", text, re.DOTALL).group(1).replace("3, 224, 224", "3, 9, 8")
    session = onnxruntime.InferenceSession(path)
    found = parsed(config)
    assert found.max_batch_size == 16
    assert {port.name for port in found.input} == {port.name for port in session.get_inputs()}
    assert fits(found.input, session.get_inputs())
    assert fits(found.output, session.get_outputs())
    # Planted faults: of other sizes, of another kind, and with a field that Triton does not know.
    assert not fits(parsed(config.replace("3, 9, 8", "9, 8, 3")).output, session.get_outputs())
    assert not fits(parsed(config.replace("TYPE_INT64", "TYPE_FP32")).input, session.get_inputs())
    with pytest.raises(text_format.ParseError, match="no field named"):
        parsed(config.replace("max_batch_size", "max_batch_sizes"))
    (said,) = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL).group(1))["model_config_list"]
    openvino.Core().compile_model(path, "CPU", said["config"]["plugin_config"])
