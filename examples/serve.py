"""An exported graph behind a server: KServe's V1 ``:explain`` and V2 ``infer``; what waits is explained together.

    python examples/serve.py map.onnx --port 8080 --engine openvino

It needs serve_engines.py beside it, fastapi, uvicorn, numpy and the engine, onnxruntime or openvino; and neither
PyTorch nor guided-backprop.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from serve_engines import ENGINES, Arrays

# What KServe calls kinds of numbers.
KINDS = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8"), "UINT8": np.dtype("u1"), "BOOL": np.dtype("?")}
NAMES = {dtype: name for name, dtype in KINDS.items()}
LENGTH = "Inference-Header-Content-Length"


class RefusedError(Exception):
    """What a client is told, and the status of HTTP that it is told by."""

    def __init__(self, said: str, status: int = 400) -> None:
        super().__init__(said)
        self.status = status


class Graph:
    """A file that ``method.export`` wrote: its name, its inputs, and what it makes of them."""

    def __init__(self, path: Path, engine: str) -> None:
        self.name, self.platform = path.stem, f"{engine}_onnx"
        self.inputs, self.outputs, self.about, self._run = ENGINES[engine](path)

    def checked(self, given: Arrays, most: int) -> Arrays:
        """Return what a request gives, as the graph takes it; labels that are left out are those of the top class."""
        images = [name for name in self.inputs if name != "labels"]
        if given.keys() - self.inputs or not given.keys() >= {*images}:
            raise RefusedError(
                f"inputs must be {', '.join(self.inputs)}; received {', '.join(given) or 'none'}. Name these."
            )
        count = len(given[images[0]]) if given[images[0]].ndim else 0
        if not 1 <= count <= most:
            raise RefusedError(f"a request must have 1 to {most} images; received {count}. Send several requests.")
        if "labels" not in given and len(self.inputs["labels"].sizes) == 1:
            given = {**given, "labels": np.full(count, -1)}
        return {name: self._fitting(name, given.get(name), count) for name in self.inputs}

    def _fitting(self, name: str, array: np.ndarray | None, count: int) -> np.ndarray:
        port = self.inputs[name]
        sizes = [count, *port.sizes[1:]]
        if array is None or len(array.shape) != len(sizes) or any(
            size not in (-1, received) for size, received in zip(sizes, array.shape, strict=True)
        ):  # fmt: skip
            received = "nothing" if array is None else f"shape {array.shape}"
            shape = ", ".join("any" if size == -1 else str(size) for size in sizes)
            raise RefusedError(
                f"{name} must be of shape ({shape}); received {received}. Send them as the model was shown them."
            )
        dtype = port.kind
        if dtype.kind in "iu":
            if array.dtype.kind not in "iu":
                send = "class ids, or -1" if name == "labels" else "pixels of 0 to 255"
                raise RefusedError(f"{name} must be integers; received {array.dtype}. Send {send}.")
            bounds = np.iinfo(dtype)
            if array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
                raise RefusedError(f"{name} must be of 0 to 255; received {array.min()} to {array.max()}. Send pixels.")
        return np.ascontiguousarray(array, dtype)

    def run(self, given: Arrays) -> Arrays:
        """Explain; threads may call this at once."""
        return dict(zip(self.outputs, self._run(given), strict=True))


class Waiting(NamedTuple):
    """A request that waits: what it gives, and where its answer goes."""

    given: Arrays
    answer: asyncio.Future[Arrays]

    @property
    def count(self) -> int:
        return len(self.given["labels"])


class Batches:
    """Explains what waits together: up to so many images, after so many seconds at most.

    A queue that is full is said at once, and a request that fails does not spoil those that were explained with it.
    """

    def __init__(self, graph: Graph, most: int, patience: float, places: int) -> None:
        self.most = most
        self.sizes: list[int] = []
        self._graph, self._patience = graph, patience
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(places)
        self._next: Waiting | None = None

    async def explain(self, given: Arrays) -> Arrays:
        """Return what becomes of a request."""
        answer: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(Waiting(given, answer))
        except asyncio.QueueFull:
            raise RefusedError("the queue must have a place; received a full one. Try again.", 503) from None
        return await answer

    async def work(self) -> None:
        """Explain what comes, for ever."""
        while True:
            batch = await self._gathered()
            self.sizes = [*self.sizes[-99:], len(batch)]
            try:
                await self._answer(batch)
            except Exception:
                # One of them: alone it is told so, and the others are explained.
                for waiting in batch:
                    try:
                        await self._answer([waiting])
                    except Exception as error:
                        _told(waiting, RefusedError(f"the engine must run; received {error}. Look at its log.", 500))

    async def _gathered(self) -> list[Waiting]:
        first = self._next or await self._queue.get()
        self._next, batch, count = None, [first], first.count
        try:
            async with asyncio.timeout(self._patience):
                while count < self.most:
                    waiting = await self._queue.get()
                    if count + waiting.count > self.most:
                        self._next = waiting
                        break
                    batch.append(waiting)
                    count += waiting.count
        except TimeoutError:
            pass
        return batch

    async def _answer(self, batch: Sequence[Waiting]) -> None:
        joined = {name: np.concatenate([one.given[name] for one in batch]) for name in batch[0].given}
        results = await asyncio.to_thread(self._graph.run, joined)
        start = 0
        for waiting in batch:
            rows = slice(start, start + waiting.count)
            own = {name: array[rows] for name, array in results.items()}
            start = rows.stop
            if not own["is_finite"].all():
                said = "images and labels must give finite maps; received NaN, infinity, or a label that is no class"
                _told(waiting, RefusedError(f"{said}. Look at the images, and count classes from 0."))
            elif not waiting.answer.done():
                waiting.answer.set_result(own)


def _told(waiting: Waiting, error: RefusedError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def read_v1(body: bytes, images: str) -> Arrays:
    """Return what KServe's first protocol gives: ``{"instances": [{"images": ..., "label": 3}, ...]}``.

    The graph says what images are called: of one that takes photos, "photos".
    """
    instances = _json(body).get("instances")
    if not isinstance(instances, list) or not instances:
        raise RefusedError('a request must be {"instances": [...]}; received another. Send one for each image.')
    given = [one.get(images) if isinstance(one, dict) else one for one in instances]
    labels = [one.get("label", -1) if isinstance(one, dict) else -1 for one in instances]
    return {images: _array(given, None), "labels": _array(labels, None)}


def written_v1(results: Arrays) -> Response:
    """Return the answer of KServe's first protocol."""
    rows = range(len(results["scores"]))
    explanations = [{name: results[name][row].tolist() for name in results if name != "is_finite"} for row in rows]
    return _answered({"explanations": explanations})


def read_v2(body: bytes, length: str | None) -> tuple[Arrays, Mapping[str, bool] | None, Any]:
    """Return what KServe's second protocol gives: arrays, which results are asked for and whether as bytes, an id."""
    head = body if length is None else body[: _number(length)]
    said, rest = _json(head), body[len(head) :]
    arrays: Arrays = {}
    for port in _ports(said.get("inputs")):
        dtype, shape = KINDS.get(str(port.get("datatype"))), _list(port.get("shape"))
        if dtype is None or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise RefusedError(
                f"datatype must be of {', '.join(KINDS)}, with a shape; received {port.get('datatype')!r}. Name it."
            )
        size = port.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = _array(port.get("data"), dtype).ravel()
        else:
            flat, rest = _from_bytes(rest[: _number(size)], dtype), rest[_number(size) :]
        if flat.size != np.prod(shape, dtype=int):
            raise RefusedError(f"data must fill its shape {tuple(shape)}; received {flat.size} numbers. Send all.")
        arrays[str(port.get("name"))] = flat.reshape(shape)
    outputs = _ports(said.get("outputs", []))
    asked = {str(port.get("name")): bool(port.get("parameters", {}).get("binary_data")) for port in outputs}
    return arrays, asked or None, said.get("id")


def written_v2(name: str, results: Arrays, asked: Mapping[str, bool] | None, request: Any) -> Response:
    """Return the answer of KServe's second protocol: numbers, and behind them the bytes that were asked for."""
    ports, tail = [], []
    for result, is_binary in (asked or dict.fromkeys(results, False)).items():
        if result not in results:
            raise RefusedError(f"outputs must be of {', '.join(results)}; received {result!r}. Name one of these.")
        array = results[result]
        port: dict[str, Any] = {"name": result, "shape": array.shape, "datatype": NAMES[array.dtype]}
        if is_binary:
            tail.append(array.tobytes())
            port["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            port["data"] = array.ravel().tolist()
        ports.append(port)
    said = {"model_name": name, "outputs": ports} | ({} if request is None else {"id": request})
    if not tail:
        return _answered(said)
    head = json.dumps(said).encode()
    return Response(head + b"".join(tail), headers={LENGTH: str(len(head))}, media_type="application/octet-stream")


def application(
    path: Path,
    most: int = 16,
    patience: float = 0.005,
    places: int = 64,
    largest: int = 2**26,
    *,
    engine: str = "onnxruntime",
) -> FastAPI:
    """Return the server's application.

    Args:
        path: the exported graph.
        most: how many images are explained at once.
        patience: for how many seconds a request waits for others.
        places: how many requests may wait; one more is told to come again, by status 503.
        largest: how many bytes a request may have.
        engine: "onnxruntime" or "openvino".
    """
    graph = Graph(path, engine)
    batches = Batches(graph, most, patience, places)

    @asynccontextmanager
    async def working(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.work())
        yield
        task.cancel()

    app = FastAPI(lifespan=working, title=f"Explanations by {graph.name}")
    app.state.batches = batches

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return _answered({"error": str(error)}, error.status)

    async def body_of(request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > largest:
                raise RefusedError(f"a request must be of {largest} bytes at most; received more. Send fewer.", 413)
        return bytes(body)

    @app.post(f"/v1/models/{graph.name}:explain")
    async def explain(request: Request) -> Response:
        given = graph.checked(read_v1(await body_of(request), next(iter(graph.inputs))), most)
        return written_v1(await batches.explain(given))

    @app.post(f"/v2/models/{graph.name}/infer")
    async def infer(request: Request) -> Response:
        arrays, asked, told = read_v2(await body_of(request), request.headers.get(LENGTH))
        return written_v2(graph.name, await batches.explain(graph.checked(arrays, most)), asked, told)

    @app.get("/v2/health/live")
    @app.get("/v2/health/ready")
    @app.get(f"/v2/models/{graph.name}/ready")
    async def ready() -> Response:
        return _answered({"ready": True})

    @app.get(f"/v2/models/{graph.name}")
    async def about() -> Response:
        ports = {
            side: [{"name": name, "datatype": NAMES[port.kind], "shape": port.sizes} for name, port in of.items()]
            for side, of in (("inputs", graph.inputs), ("outputs", graph.outputs))
        }
        return _answered({"name": graph.name, "platform": graph.platform, **ports, "parameters": dict(graph.about)})

    return app


def _answered(said: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(said), status, media_type="application/json")


def _json(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError as error:
        raise RefusedError(f"a request must be JSON; received {error}. Send an object.") from None
    if not isinstance(said, dict):
        raise RefusedError(f"a request must be an object; received {type(said).__name__}. Send one.")
    return said


def _list(said: Any) -> list[Any]:
    if not isinstance(said, list):
        raise RefusedError(f"inputs and shapes must be lists; received {said!r:.60}. Send a list.")
    return said


def _ports(said: Any) -> list[dict[str, Any]]:
    ports = _list(said)
    for port in ports:
        if not isinstance(port, dict) or not isinstance(port.get("parameters", {}), dict):
            raise RefusedError(f'inputs and outputs must be {{"name": ...}}; received {port!r:.60}. Send objects.')
    return ports


def _number(said: Any) -> int:
    try:
        return int(said)
    except (TypeError, ValueError):
        raise RefusedError(f"lengths must be integers; received {said!r:.60}. Send how many bytes there are.") from None


def _array(said: Any, dtype: np.dtype | None) -> np.ndarray:
    try:
        array = np.asarray(said, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise RefusedError(f"data must be numbers in rows of one length; received {error}. Send an array.") from None
    if array.dtype.kind not in "fiub":
        raise RefusedError(f"data must be numbers; received {array.dtype}. Send an array of numbers.")
    return array


def _from_bytes(data: bytes, dtype: np.dtype) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise RefusedError(f"data must be whole numbers of {dtype.itemsize} bytes; received {len(data)}. Send all.")
    return np.frombuffer(data, dtype)


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="what guided-backprop export wrote")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--most", type=int, default=16, help="images explained at once")
    parser.add_argument("--patience", type=float, default=0.005, help="seconds that a request waits for others")
    parser.add_argument("--places", type=int, default=64, help="requests that may wait")
    given = parser.parse_args()
    app = application(given.path, given.most, given.patience, given.places, engine=given.engine)
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
