"""What OpenVINO compiled for some images, and how a larger batch is run by it: in pieces, several at once."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from guided_backprop.arrays import NumpyArray

# How much longer a batch may take that is no multiple of what runs at once: where it is to be cut, and where it came
# and another graph, for any number of images, would take as much longer.
_UNEVEN, _MORE = 1.1, 1.25


def cut(count: int, threads: int) -> tuple[int, int]:
    """Return how many images a piece of a batch has, and how many pieces run at once.

    What a layer makes of one image or two stays near the processor until the next one reads it, and of a larger batch
    does not; and threads that have a piece each wait for one another at its end, where at one piece they would at each
    layer. What would leave threads without a piece for long stays a whole.

    Args:
        count: how many images the batch has.
        threads: how many threads there are.

    Example:
        >>> from guided_backprop.export.pieces import cut
        >>> cut(8, threads=2), cut(6, threads=2), cut(5, threads=2)
        ((2, 2), (1, 2), (5, 1))
    """
    streams = max(min(threads, count // 2), 1)
    # One image at a time is slower than all, where nothing else runs beside it.
    for size in (2, 1) if streams > 1 else (2,):
        if count >= 2 * size * streams and _worth(count, size, streams) <= _UNEVEN * count:
            return size, streams
    return count, 1


def _worth(count: int, size: int, streams: int) -> int:
    """Return how many images would take as long as a batch does, if in each turn all streams had a piece."""
    return -(-count // (size * streams)) * size * streams


class Pieces:
    """A graph that OpenVINO compiled.

    Args:
        compiled: the same.
        size: how many images it takes; None for any number.
        streams: how many calls it runs at once.

    Attributes:
        compiled: as given.
        size: as given.
    """

    def __init__(self, compiled: Any, size: int | None, streams: int) -> None:
        self.compiled, self.size = compiled, size
        self._streams = streams
        # What runs it runs it once at a time; each call takes one, or makes one.
        self._free: list[Any] = []

    def takes(self, count: int) -> bool:
        """Tell whether so many images are better run by this than by what is for any number."""
        return _worth(count, self.size or 1, self._streams) <= _MORE * count

    def run(self, inputs: Mapping[str, NumpyArray]) -> Sequence[NumpyArray]:
        """Return all results, in their order."""
        count = len(next(iter(inputs.values())))
        if self.size in (None, count):
            request = self._request()
            # Results are copied: the next run would write over them.
            results: Sequence[NumpyArray] = request.infer(
                dict(inputs), share_inputs=True, share_outputs=False
            ).to_tuple()
            self._free.append(request)
            return results
        return self._together(inputs, count)

    def seconds(self) -> float:
        """Return how long as many pieces as run at once take."""
        inputs = {
            port.any_name: np.zeros((port.shape[0] * self._streams, *port.shape[1:]), port.element_type.to_dtype())
            for port in self.compiled.inputs
        }
        self.run(inputs)
        begin = time.perf_counter()
        self.run(inputs)
        return time.perf_counter() - begin

    def _together(self, inputs: Mapping[str, NumpyArray], count: int) -> Sequence[NumpyArray]:
        """Run pieces, so many at once as there are streams and as many that wait, and put together what they give.

        The last one is filled up with copies of the last image.
        """
        size = self.size or count
        results: list[NumpyArray] = []
        running: deque[tuple[Any, int, object]] = deque()
        try:
            for begin in range(0, count, size):
                if len(running) == 2 * self._streams:
                    self._take(running, results, count)
                rows: Any = slice(begin, begin + size)
                if begin + size > count:
                    rows = np.minimum(np.arange(begin, begin + size), count - 1)
                # They are read while they run, so somebody has to hold them.
                piece = {name: array[rows] for name, array in inputs.items()}
                request = self._request()
                request.start_async(piece, share_inputs=True)
                running.append((request, begin, piece))
            while running:
                self._take(running, results, count)
        finally:
            # After an error: what they read is let go of next.
            for request, _, _ in running:
                with suppress(Exception):
                    request.wait()
        return results

    def _take(self, running: deque[tuple[Any, int, object]], results: list[NumpyArray], count: int) -> None:
        """Put what the piece that was begun first gives where it belongs."""
        request, begin, _ = running[0]
        request.wait()
        for place, port in enumerate(self.compiled.outputs):
            found = request.get_tensor(port).data
            if len(results) == place:
                results.append(np.empty((count, *found.shape[1:]), found.dtype))
            results[place][begin : begin + len(found)] = found[: count - begin]
        running.popleft()
        self._free.append(request)

    def _request(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self.compiled.create_infer_request()
