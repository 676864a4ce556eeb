"""Engines that give out work: Ray Data on this machine, a worker of which is killed, and the map of data sets."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from guided_backprop.jobs import Explainer, Job, ShardWriter, status
from test_jobs import bytes_of, network, photo

# Ray Data says so of an option of its own; and its processes are begun by a fork, which JAX warns of where it runs.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:os.fork:RuntimeWarning")

# A worker with a file of a shard open ends itself, once: who finds the file kills himself.
KILLED = """
import os, signal
class Killed(Slow):
    def forward(self, images):
        files = [os.path.realpath(f"/proc/self/fd/{{number}}") for number in os.listdir("/proc/self/fd")]
        if any(file.endswith(".partial") for file in files):
            try:
                os.unlink({trap!r})
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)
Slow = Killed
"""


@pytest.fixture(scope="module")
def cluster():
    """A node of Ray's, for all tests of this file: it takes a quarter of a minute to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            patch.setenv(name, "0")
        import ray

        # Its sockets need a short path. Two workers leave one of three CPUs for reading.
        with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
            options = {"num_cpus": 3, "object_store_memory": 10**8, "_temp_dir": folder}
            options |= {"include_dashboard": False, "log_to_driver": False}
            try:
                ray.init(**options)
            # It waits 30 seconds for its processes, which take longer where many others start: not a second time.
            except Exception:
                ray.shutdown()
                ray.init(**options)
            yield
            ray.shutdown()


def test_rays_workers_write_shards_though_one_is_killed(cluster, tmp_path):
    from ray.data import ActorPoolStrategy, from_items

    spec = network(tmp_path)
    trap = tmp_path / "trap"
    source = (tmp_path / "net.py").read_text()
    (tmp_path / "net.py").write_text(source.replace("def load", KILLED.format(trap=str(trap)) + "\ndef load"))
    for number in range(12):
        photo(tmp_path / "photos" / f"{number:02}.png", number)
    settings = {"model": spec, "shard_size": 3, "batch_size": 1}
    Job(tmp_path / "whole", tmp_path / "photos", **settings).run()

    job = Job(tmp_path / "maps", tmp_path / "photos", **settings)
    job.write(2)
    trap.touch()
    shards = from_items([{"shard": number} for number in job.missing()])
    written = shards.map_batches(
        ShardWriter,
        batch_size=1,
        fn_constructor_args=(job,),
        compute=ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
    ).take_all()
    assert not trap.exists()
    assert sorted((row["shard"], row["explained"], row["failed"]) for row in written) == [
        (0, 3, 0),
        (1, 3, 0),
        (3, 3, 0),
    ]
    assert status(tmp_path / "maps").is_complete
    assert bytes_of(tmp_path / "maps") == bytes_of(tmp_path / "whole")
    # What the dead worker had begun is there still, and the next run removes it.
    ran = job.run()
    assert (len(ran.swept), list(ran.shards)) == (1, [])


def test_rays_workers_explain_columns(cluster, tmp_path):
    from ray.data import ActorPoolStrategy, read_images

    spec = network(tmp_path)
    for number in range(6):
        photo(tmp_path / "photos" / f"{number}.png", number)
    images = read_images(str(tmp_path / "photos"), include_paths=True)
    images.map_batches(
        Explainer,
        fn_constructor_args=(spec,),
        fn_constructor_kwargs={"dtype": "float32"},
        batch_size=4,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
    ).write_parquet(str(tmp_path / "maps"))
    table = pq.read_table(tmp_path / "maps")
    check(table["path"].to_pylist(), table["label"].to_pylist(), np.array(table["map"].to_pylist()), spec)


def check(paths, labels, maps, spec):
    """Compare what an engine made of photos with what is made of them here."""
    truth = Explainer(spec, dtype="float32")({"path": paths})
    assert len(set(paths)) == 6
    assert_array_equal(labels, truth["label"].tolist())
    # In another batch sums are rounded in another order.
    scale = np.abs(truth["map"]).max()
    assert_allclose(maps, truth["map"], rtol=0, atol=2e-6 * scale)
    # The comparison can fail: the maps of other photos are others.
    assert np.abs(maps[::-1] - truth["map"]).max() > 1e-3 * scale


def test_data_sets_map(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Dataset, Image

    spec = network(tmp_path)
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        photo(Path(path), number)
    images = Dataset.from_dict({"path": paths, "image": paths}).cast_column("image", Image())
    explained = images.map(
        Explainer(spec, dtype="float32"), batched=True, batch_size=4, remove_columns=["image"], keep_in_memory=True
    ).with_format("numpy")
    check(list(explained["path"]), explained["label"], explained["map"], spec)
    # A batch of which nothing can be read has the same columns as others.
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    some = Dataset.from_dict({"path": [paths[0], str(damaged)]})
    rows = some.map(Explainer(spec, dtype="float32"), batched=True, batch_size=1, keep_in_memory=True)
    assert ["damaged.png" in error for error in rows["error"]] == [False, True]
    assert not np.any(rows[1]["map"])
