"""A batch that an engine runs in pieces gives what the whole gives, or is not cut."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guided_backprop import GuidedBackprop
from guided_backprop.export import engine as engines
from guided_backprop.export.engine import Fixed, OpenVino
from guided_backprop.export.pieces import Pieces, cut
from guided_backprop.methods import compile as compiling
from networks import IMAGES, LABELS
from networks_torch import Net, oracle

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
#: Eleven, so that the last piece of two has one.
ROWS = np.arange(11) % len(IMAGES)
IMAGES_32 = torch.tensor(IMAGES, dtype=torch.float32)[ROWS]
NAMES = ["outputs", "attribution", "scores", "is_finite"]


class Mixed(nn.Module):
    """An image's score depends on the images beside it."""

    def __init__(self, mix):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)
        self.mix = mix
        self.eval()

    def forward(self, x):
        return self.last(self.mix(self.first(x).relu()).relu())


MIXES = {
    "a mean": lambda h: h - h.mean(0),
    "a sum so far": lambda h: h.cumsum(0),
    "the one at the other end": lambda h: h + 0.5 * h.flip(0),
    "a mean that is beyond a bound": lambda h: h - (h.mean(0) - 1e2).relu(),
    "its place": lambda h: h + 0.1 * torch.ones_like(h[:, :1]).cumsum(0),
    "a rank": lambda h: h * (0.5 + (h > h.mean(0)).float()),
}


ROWS_OF_12 = torch.randn(11, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def always(monkeypatch):
    """Let small graphs be cut as large ones are, on two threads."""
    monkeypatch.setattr(engines, "_LONG", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "map.onnx"
    GuidedBackprop(Net(nn.ReLU()).float().eval()).export(path, IMAGES_32[:2])
    return path


def told(count):
    return {"images": IMAGES_32.numpy()[:count], "labels": np.array(LABELS)[ROWS[:count]]}


@pytest.mark.usefixtures("always")
def test_pieces_give_the_maps_of_the_oracle():
    method = GuidedBackprop(Net(nn.ReLU()).float()).compile(IMAGES_32, "openvino")
    assert method.compiled._engine._opened[0].size == 2
    explained = method.explain(IMAGES_32, np.array(LABELS)[ROWS])
    np.testing.assert_allclose(explained, oracle()[ROWS], **TOLERANCE)
    assert not np.allclose(explained, oracle()[ROWS[::-1]], **TOLERANCE)


@pytest.mark.usefixtures("always")
def test_batches_of_all_sizes_by_several_threads(file):
    engine = OpenVino(file, NAMES, 2, Fixed(11, file, apart=True))
    whole = OpenVino(file, NAMES, 2)
    wanted = [whole.run(told(count)) for count in range(1, 12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda count: engine.run(told(count)), [*range(1, 12)] * 2))
    for one, other in zip(found, wanted * 2, strict=True):
        for name in NAMES:
            assert (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype)
            np.testing.assert_allclose(one[name], other[name], **TOLERANCE)


@pytest.mark.usefixtures("always")
def test_what_was_stored_is_opened_in_the_same_pieces(file, tmp_path):
    fixed = Fixed(11, file, apart=True)
    engine = OpenVino(file, NAMES, 2, fixed)
    engine.store(tmp_path / "stored.blob")
    again = OpenVino(tmp_path / "stored.blob", NAMES, 2, fixed)
    assert again._opened[0].size == engine._opened[0].size == 2
    for name, found in again.run(told(11)).items():
        np.testing.assert_array_equal(found, engine.run(told(11))[name])


@pytest.mark.usefixtures("always")
def test_a_piece_that_fails_leaves_nothing_running(file):
    engine = OpenVino(file, NAMES, 2, Fixed(8, file, apart=True))
    with pytest.raises(RuntimeError):
        engine.run({"images": IMAGES_32.numpy()[:8, :, 1:], "labels": told(8)["labels"]})
    np.testing.assert_allclose(engine.run(told(8))["attribution"], oracle()[ROWS[:8]], **TOLERANCE)


def test_what_takes_no_time_stays_a_whole(file, monkeypatch):
    # A busy machine may take long for it.
    monkeypatch.setattr(Pieces, "seconds", lambda _: 1e-4)
    assert OpenVino(file, NAMES, 2, Fixed(8, file, apart=True))._opened[0].size == 8


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("mix", MIXES)
def test_images_that_depend_on_one_another_stay_together(mix):
    method = GuidedBackprop(Mixed(MIXES[mix]))
    compiled = method.compile(ROWS_OF_12, "openvino")
    assert compiled.compiled._engine._opened[0].size == 11
    np.testing.assert_allclose(compiled.explain(ROWS_OF_12, 1), method.explain(ROWS_OF_12, 1), **TOLERANCE)


@pytest.mark.usefixtures("always")
def test_images_that_were_taken_apart_are_compared(monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDED_BACKPROP_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling, "are_apart", lambda *given: True)
    method = GuidedBackprop(Mixed(MIXES["a mean"]))
    wanted = np.asarray(method.explain(ROWS_OF_12, 1))
    for _ in ("recorded", "a second start"):
        compiled = method.compile(ROWS_OF_12, "openvino")
        np.testing.assert_allclose(compiled.explain(ROWS_OF_12, 1), wanted, **TOLERANCE)
    # In pieces, which nobody took, they would be others.
    (file,) = tmp_path.rglob("map.onnx")
    given = {"images": ROWS_OF_12.numpy(), "labels": np.ones(11, np.int64), "weights": np.zeros((11, 5), np.float32)}
    cut_apart = OpenVino(file, NAMES, 2, Fixed(11, file, apart=True)).run(given)
    assert not np.allclose(cut_apart["attribution"], wanted, **TOLERANCE)


@given(st.integers(1, 300), st.integers(1, 64))
def test_what_is_cut_keeps_all_threads_at_work(count, threads):
    size, streams = cut(count, threads)
    turns = -(-count // (size * streams))
    assert streams <= threads
    assert size == count or (turns >= 2 and turns * size * streams <= 1.1 * count)
