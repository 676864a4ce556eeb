"""Jobs: shards that are there whole or not at all, whatever happens to the process that writes them."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from guided_backprop import GuidedBackprop
from guided_backprop.errors import JobError, LabelError, ModelError, OptionError, OutputExistsError
from guided_backprop.jobs import Explainer, Job, read, status
from guided_backprop.jobs.maps import restored, stored

# A file, as a model that another process can load.
NETWORK = """
import time
import torch
from guided_backprop.models import ResizeCrop, VisionModel


class Slow(torch.nn.Sequential):
    def forward(self, images):
        time.sleep({pause})
        return super().forward(images)


def load():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    network = Slow(*layers, torch.nn.Linear(16, 5)).eval()
    return VisionModel("small", network, ResizeCrop((16, 16)), ["a", "b", "c", "d", "e"])
"""


# A preprocessing that leaves the photo's size as it is.
WHOLE = """
import numpy as np


def whole(photo):
    return np.asarray(photo, np.float32).transpose(2, 0, 1) / 255
"""


def network(folder, pause=0.0):
    """Return the specification of a small network in a file."""
    (folder / "net.py").write_text(NETWORK.format(pause=pause))
    return f"{folder / 'net.py'}:load"


def photo(path, seed=0, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Return a folder of nine photos, two in a folder of a class, and one that is damaged."""
    folder = tmp_path / "photos"
    for number in range(7):
        photo(folder / f"{number}.png", number)
    for number in range(2):
        photo(folder / "dogs" / f"{number}.png", number)
    (folder / "damaged.jpg").write_bytes(b"no picture")
    return folder


def rows(folder):
    """Return all rows of a job by the photo's path, and how often each photo is there."""
    known = {}
    for path in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(path, page_checksum_verification=True)
        maps = table["map"].combine_chunks()
        for number, row in enumerate(table.drop(["map"]).to_pylist()):
            row["map"] = (
                None if not maps[number].is_valid else np.asarray(maps[number].value.values).reshape(maps.type.shape)
            )
            known.setdefault(row["path"], []).append(row)
    return known


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.parquet")}


def options(spec, **others):
    return {"model": spec, "shard_size": 4, "batch_size": 3, **others}


def test_a_job_explains_each_photo_once(photos, tmp_path):
    spec = network(tmp_path)
    ran = Job(tmp_path / "maps", photos, dtype="float32", **options(spec)).run()
    assert (list(ran.shards), ran.explained, list(ran.failures)) == ([0, 1, 2], 9, ["damaged.jpg"])
    known = rows(tmp_path / "maps")
    assert sorted(known) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    assert all(len(found) == 1 for found in known.values())
    vision = Explainer(spec).vision
    for path, (row,) in known.items():
        if row["error"] is not None:
            assert row["map"] is None
            continue
        image = vision.preprocess(Image.open(photos / path))
        truth = GuidedBackprop(vision.network).explain(image[None])
        # In a batch, sums are rounded in another order.
        assert_allclose(row["map"], truth.attribution[0], rtol=0, atol=1e-6 * np.abs(truth.attribution).max())
        assert row["label"] == truth.labels[0]
        assert_allclose(row["score"], truth.scores[0], rtol=1e-6)
        assert row["coverage"] == [{"name": "relu", "count": 1, "treatment": "guided"}]
        assert row["top"][0]["label"] == row["label"]
    # The comparison can fail: the maps of two photos differ by more.
    assert np.abs(known["0.png"][0]["map"] - known["1.png"][0]["map"]).max() > 1e-3 * np.abs(truth.attribution).max()


RUN = """
import sys
from guided_backprop.jobs import Job
folder, photos, spec, *words = sys.argv[1:]
job = Job(folder, photos, model=spec, shard_size=4, batch_size=1, resume="resume" in words)
print(job.run(progress=lambda shard, rows: print("batch", flush=True)), flush=True)
"""


def started(*arguments):
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_job_loses_nothing_that_was_whole_and_doubles_nothing(photos, tmp_path):
    spec, folder, whole = network(tmp_path, pause=0.05), tmp_path / "maps", tmp_path / "whole"
    Job(whole, photos, model=spec, shard_size=4, batch_size=1).run()
    process = started(folder, photos, spec)
    for _ in range(6):  # into the second shard
        process.stdout.readline()
    # Another process is refused meanwhile, and the first goes on.
    with pytest.raises(JobError, match=r"part 1/1, and process \d+ on .* is at it"):
        Job(folder, photos, model=spec, shard_size=4, batch_size=1, resume=True).run()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = bytes_of(folder)
    assert list(before) == ["shard-00000.parquet"]
    assert list(folder.glob(".shard-00001.parquet.*.partial"))
    assert status(folder).missing == [1, 2]
    ran = Job(folder, photos, model=spec, shard_size=4, batch_size=1, resume=True).run()
    assert list(ran.shards) == [1, 2]
    assert ran.swept == ["shard-00001.parquet"]
    after = bytes_of(folder)
    assert after["shard-00000.parquet"] == before["shard-00000.parquet"]
    assert after == bytes_of(whole)
    assert status(folder).is_complete
    assert not list(folder.glob("*.partial"))
    # The comparison can fail: other photos give other bytes.
    assert after["shard-00000.parquet"] != after["shard-00001.parquet"]


@contextlib.contextmanager
def full_disk(folder):
    """A disk with room for the plan and part of a shard; where none may be mounted, the system refuses longer files."""
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    is_disk = shutil.which("mount") and subprocess.run(mounted, capture_output=True, check=False).returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        if not is_disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if is_disk:
            subprocess.run(["mount", "-o", "remount,size=10m", str(folder)], check=True)

    try:
        yield limit, free
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if is_disk:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_the_shard_that_was_written(photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"
    with full_disk(folder) as (limit, free):
        job = Job(folder, photos, **options(spec))
        limit()
        refused = r"can be written to and read; received '.*shard-00000.parquet' \((No space left|File too)"
        with pytest.raises(JobError, match=refused):
            job.run()
        free()
        assert [path.name for path in folder.iterdir() if path.name[0] != "."] == ["job.json"]
        assert not list(folder.glob("*.partial"))
        assert list(job.run().shards) == [0, 1, 2]


def test_parts_share_a_folder(photos, tmp_path):
    spec, folder, whole = network(tmp_path), tmp_path / "maps", tmp_path / "whole"
    Job(whole, photos, **options(spec)).run()
    Job(folder, photos, **options(spec))
    wrote = [Job(folder, photos, resume=True, **options(spec)).run(part=f"{number}/2").shards for number in (2, 1)]
    assert [list(shards) for shards in wrote] == [[1], [0, 2]]
    assert bytes_of(folder) == bytes_of(whole)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", (1, 2, 3), 3])
def test_what_is_no_part(part, photos, tmp_path):
    with pytest.raises(OptionError, match="part must"):
        Job(tmp_path / "maps", photos, **options(network(tmp_path))).run(part=part)


def test_a_job_that_is_asked_to_stop_keeps_what_is_whole(photos, tmp_path):
    spec, asked = network(tmp_path), []
    job = Job(tmp_path / "maps", photos, **options(spec))
    ran = job.run(progress=lambda *_: asked.append(1), is_stopped=lambda: len(asked) > 2)
    assert (list(ran.shards), ran.stopped, ran.explained) == ([0], True, 4)
    assert not list((tmp_path / "maps").glob("*.partial"))
    assert list(job.run().shards) == [1, 2]


def test_a_job_goes_on_as_it_began(photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"
    Job(folder, photos, **options(spec)).run()
    before = bytes_of(folder)
    with pytest.raises(OutputExistsError, match="resume=True"):
        Job(folder, photos, **options(spec))
    for other, named in [
        ({"method": "saliency"}, "method='guided-backprop'; received method='saliency'"),
        ({"dtype": "sqrt8"}, "dtype='float16'; received dtype='sqrt8'"),
        ({"batch_size": 2}, "batch_size=3; received batch_size=2"),
        ({"labels": 1}, "photos that it began with; received '0.png', which had labels=None and not 1"),
    ]:
        with pytest.raises(JobError, match=named):
            Job(folder, photos, resume=True, **{**options(spec), **other})
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text().replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(JobError, match="weights="):
        Job(folder, photos, resume=True, **options(spec))
    network(tmp_path)
    photo(photos / "a_new.png", 100)
    with pytest.raises(JobError, match=r"'a_new.png', which is new. Add them \(--add\)"):
        Job(folder, photos, resume=True, **options(spec))
    ran = Job(folder, photos, add=True, **options(spec)).run()
    assert (list(ran.shards), ran.explained) == ([3], 1)
    assert {name: held for name, held in bytes_of(folder).items() if name in before} == before
    assert all(len(found) == 1 for found in rows(folder).values())
    photo(photos / "0.png", 101, (30, 30))
    with pytest.raises(JobError, match="'0.png', which has changed or is gone"):
        Job(folder, photos, add=True, **options(spec))


def test_a_damaged_shard_is_found(photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"
    Job(folder, photos, dtype="float32", **options(spec)).run()
    assert status(folder).is_complete
    path = folder / "shard-00001.parquet"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    truth = read(folder)[1]
    found = 0
    for place in rng.integers(4, len(whole), 60):
        held = bytearray(whole)
        held[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(held)
        if status(folder).broken:
            found += 1
            continue
        # Where nothing is found, nothing that is read is another.
        assert_array_equal(read(folder)[1].attribution, truth.attribution)
    assert found > 20
    path.write_bytes((folder / "shard-00000.parquet").read_bytes())
    assert "of another job" in status(folder).broken[1]
    path.unlink()
    assert list(Job(folder, photos, dtype="float32", resume=True, **options(spec)).run().shards) == [1]


def test_processes_that_begin_at_once_begin_one_job(photos, tmp_path):
    vision, folder = Explainer(network(tmp_path)).vision, tmp_path / "maps"
    with ThreadPoolExecutor(4) as pool:
        begun = [pool.submit(Job, folder, photos, resume=True, **options(vision)) for _ in range(4)]
    plans = [future.result().plan for future in begun]
    assert all(plan.shards() == plans[0].shards() and plan.identity == plans[0].identity for plan in plans)
    assert status(folder).missing == [0, 1, 2]


@pytest.mark.parametrize("is_new", [False, True], ids=["removed", "made anew"])
def test_a_folder_that_is_gone_is_written_into_no_more(is_new, photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"

    def remove(shard, rows):
        if shard.number == 1 and len(rows) == 3:  # its first batch
            shutil.rmtree(folder)
            if is_new:
                Job(folder, photos, **options(spec, batch_size=2)).run(part="1/3")

    with pytest.raises(JobError, match="a job's folder must be"):
        Job(folder, photos, **options(spec)).run(progress=remove)
    assert sorted(bytes_of(folder)) == (["shard-00000.parquet"] if is_new else [])
    if is_new:
        assert (status(folder).missing, status(folder).broken) == ([1, 2], {})


def test_what_a_model_refuses_is_no_fault_of_the_folder(photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"
    # Of several images at once: so it is found after the job has begun.
    source = (tmp_path / "net.py").read_text().replace("time.sleep(0.0)", "assert len(images) < 2, 'too many'")
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ModelError, match="too many"):
        Job(folder, photos, **options(spec)).run()
    assert status(folder).missing == [0, 1, 2]
    assert not list(folder.glob(".*partial"))
    # What is found before leaves nothing.
    for wrong, error in [({"labels": 5}, LabelError), ({"method": "grad-cam", "options": {"layer": "9"}}, OptionError)]:
        with pytest.raises(error):
            Job(tmp_path / "none", photos, **options(spec, **wrong))
    assert not (tmp_path / "none").exists()


def test_photos_that_change_or_differ_are_rows_with_their_error(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK.format(pause=0).replace("ResizeCrop((16, 16))", "whole") + WHOLE)
    photos, folder = tmp_path / "photos", tmp_path / "photos" / "maps"
    for number in range(5):
        photo(photos / f"{number}.png", number, (20, 24) if number == 1 else (24, 20))
    job = Job(folder, photos, model=f"{tmp_path / 'net.py'}:load", shard_size=4, batch_size=4, pictures="overlay")
    (photos / "2.png").unlink()
    os.mkfifo(photos / "2.png")
    photo(photos / "3.png", 3, (25, 20))
    ran = job.run()
    assert (ran.explained, list(ran.failures)) == (2, ["1.png", "2.png", "3.png"])
    assert "images must be of one shape, (3, 24, 20); received path='1.png'" in ran.failures["1.png"]
    assert "it is no regular file" in ran.failures["2.png"]
    assert "image must be as it was when the job began" in ran.failures["3.png"]
    assert {path.name for path in folder.glob("*.png")} == {"0_overlay.png", "4_overlay.png"}
    # The pictures below the photos' own folder are no photos: once they are as they were, the job goes on.
    (photos / "2.png").unlink()
    photo(photos / "2.png", 2)
    photo(photos / "3.png", 3)
    again = Job(
        folder, photos, model=f"{tmp_path / 'net.py'}:load", shard_size=4, batch_size=4, pictures=None, resume=True
    )
    assert (again.missing(), again.plan.settings.pictures) == ([], "overlay")


def test_a_plan_is_data(photos, tmp_path):
    folder = tmp_path / "maps"
    Job(folder, photos, **options(network(tmp_path)))
    plan = json.loads((folder / "job.json").read_text())
    for change in (
        {"schema_version": 2},
        {"photos": [[["../x.png", 1, None]]]},
        {"photos": [[["/etc/x.png", 1, None]]]},
        {"dtype": []},
        {"more": 1},
        {"shard_size": 0},
        {"batch_size": "3"},
        {"pictures": "some"},
        {"photos": [[["a/../../x.png", 1, None]]]},
    ):
        (folder / "job.json").write_text(json.dumps({**plan, **change}))
        with pytest.raises(JobError, match="job.json must be"):
            status(folder)
    (folder / "job.json").unlink()
    with pytest.raises(JobError, match="without a job.json"):
        status(folder)


@pytest.mark.parametrize(
    "folder", [Path("a" * 300), Path("a\0b"), Path("/proc/maps")], ids=["too long", "NUL", "not to be written to"]
)
def test_a_folder_that_the_system_refuses(folder, photos, tmp_path):
    with pytest.raises(JobError, match="a job's folder must be"):
        Job(tmp_path / folder, photos, **options(network(tmp_path)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "sqrt8"])
def test_how_maps_are_stored(dtype):
    rng = np.random.default_rng(0)
    # As maps are: few large values, any unit, many zeros.
    maps = rng.standard_cauchy((5, 3, 20, 20)) * 10.0 ** np.array([-9, -3, 0, 3, 9]).reshape(5, 1, 1, 1)
    maps = np.where(rng.random(maps.shape) < 0.5, maps, 0).astype(np.float32)
    maps[2] = 0
    back = restored(*stored(maps, dtype))
    largest = np.abs(maps).max(axis=(1, 2, 3), keepdims=True)
    bound = {"float32": 0, "float16": 2**-11, "sqrt8": 2 * 0.5 / 127}[dtype]
    shares = np.where(largest > 0, largest, 1)
    assert_allclose(back / shares, maps / shares, rtol=0, atol=bound)
    # The comparison can fail: one level of eight bits is more than that.
    assert not np.allclose((back + shares / 60) / shares, maps / shares, rtol=0, atol=bound)
    assert_array_equal(back[2], 0)
    with pytest.raises(OptionError, match="dtype must be one of"):
        Explainer(dtype="int8")


def test_batches_of_columns(photos, tmp_path):
    """What Ray's map_batches, and the map of a data set, hand to an explainer."""
    import pickle

    spec = network(tmp_path)
    explain = pickle.loads(pickle.dumps(Explainer(spec, dtype="float32")))
    paths = [str(photos / name) for name in ("0.png", "damaged.jpg", "1.png")]
    by_path = explain({"path": np.array(paths)})
    assert by_path["error"][0] == ""
    assert "damaged.jpg" in by_path["error"][1]
    assert by_path["map"].shape == (3, 3, 16, 16)
    assert not by_path["map"][1].any()
    assert np.isnan(by_path["score"][1])
    by_bytes = explain({"bytes": [Path(path).read_bytes() for path in paths], "path": paths})
    by_image = explain({"image": [np.asarray(Image.open(paths[row])) for row in (0, 2)], "label": [1, 1]})
    assert_array_equal(by_bytes["map"], by_path["map"])
    assert by_image["label"].tolist() == [1, 1]
    with pytest.raises(OptionError, match="columns must have"):
        explain({"photo": paths})


def test_what_a_job_wrote_is_read_back(photos, tmp_path):
    spec, folder = network(tmp_path), tmp_path / "maps"
    job = Job(folder, photos, dtype="float32", **options(spec))
    assert (len(read(folder)), read(folder).missing) == (0, [0, 1, 2])
    job.run()
    maps, known = read(folder), rows(folder)
    assert repr(maps) == f"Maps({str(folder)!r}, guided-backprop of {spec}, 3 shards)"
    for explanations, paths in zip(maps, maps.paths(), strict=True):
        assert len(explanations) == len(paths)
        assert (explanations.method, str(explanations.coverage)) == ("GuidedBackprop", "relu x1 guided")
        for one, path in zip(explanations, paths, strict=True):
            assert_array_equal(one.attribution, known[path][0]["map"])
            assert (one.label, one.score) == (known[path][0]["label"], known[path][0]["score"])
    table = maps.to_pandas()
    assert table["path"].tolist() == list(known)
    assert table["error"].notna().sum() == 1
    assert maps.filter(failed=True).to_pandas()["path"].tolist() == ["damaged.jpg"]
    dogs = maps.filter(path="dogs/*")
    assert [len(one) for one in dogs] == [0, 0, 2]
    label = int(maps[0].labels[0])
    assert {int(one.label) for part in maps.filter(label=label) for one in part} == {label}
    assert (
        len(maps.filter(label=label).filter(path="?.png").to_pandas()) < len(maps.filter(label=label).to_pandas()) + 1
    )
    array = maps.to_xarray()
    assert array.shape == (9, 3, 16, 16)
    assert array["path"].values.tolist() == [path for path in known if path != "damaged.jpg"]
    assert maps.dataset().count_rows() == 10
    assert len(maps[1:]) == 2
    with pytest.raises(OptionError, match="whole shards"):
        dogs.dataset()
    # The comparison can fail: another map is another.
    assert not np.array_equal(maps[0].attribution[0], maps[0].attribution[1])


def test_an_object_store(photos, tmp_path):
    """fsspec's memory: what is put there appears when it is complete, and what fails leaves nothing."""
    import fsspec

    store, spec = fsspec.filesystem("memory"), network(tmp_path)
    for path in photos.rglob("*.*"):
        store.pipe_file(f"/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    ran = Job("memory://maps", "memory://photos", **options(spec)).run()
    assert (list(ran.shards), ran.explained, list(ran.failures)) == ([0, 1, 2], 9, ["damaged.jpg"])
    whole = tmp_path / "maps"
    Job(whole, photos, **options(spec)).run()
    assert {name: store.cat_file(f"/maps/{name}") for name in bytes_of(whole)} == bytes_of(whole)
    assert status("memory://maps").is_complete
    store.rm("/maps/shard-00001.parquet")

    def fail(*_):
        raise RuntimeError("the connection broke")

    job = Job("memory://maps", "memory://photos", resume=True, **options(spec))
    with pytest.raises(RuntimeError, match="broke"):
        job.run(progress=fail)
    assert status("memory://maps").missing == [1]
    assert list(job.run().shards) == [1]
    assert [len(one) for one in read("memory://maps")] == [4, 3, 2]
