"""Jobs on what fsspec knows, its memory and its local files, while requests fail: nothing is lost, or half there."""

import errno

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from guided_backprop.errors import JobError
from guided_backprop.jobs import Job, read, status
from test_jobs import network, photo

# Kinds of requests, and how many of each are answered before one is not.
FAULTS = {}


class Failing:
    """A file system of which some requests fail: it says what a store says that can't be reached."""

    def _ask(self, kind):
        if kind in FAULTS:
            FAULTS[kind] -= 1
            if FAULTS[kind] < 0:
                del FAULTS[kind]
                raise OSError(errno.EIO, "the connection broke")

    def cat_file(self, *arguments, **options):
        self._ask("get")
        return super().cat_file(*arguments, **options)

    def put_file(self, *arguments, **options):
        self._ask("put")
        return super().put_file(*arguments, **options)

    def ls(self, *arguments, **options):
        self._ask("list")
        return super().ls(*arguments, **options)

    def open(self, *arguments, **options):
        self._ask("open")
        return super().open(*arguments, **options)


class FailingMemory(Failing, MemoryFileSystem):
    protocol = "failingmemory"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))


class FailingFiles(Failing, LocalFileSystem):
    protocol = "failingfiles"
    cachable = False


@pytest.mark.parametrize("kind", [FailingMemory, FailingFiles])
def test_a_request_that_fails_costs_the_shard_that_it_was_for(kind, tmp_path):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    spec, photos = network(tmp_path), tmp_path / "photos"
    for number in range(8):
        photo(photos / f"{number}.png", number)
    (photos / "8.png").write_bytes(b"no picture")
    settings = {"model": spec, "shard_size": 3, "batch_size": 3, "pictures": "none"}
    Job(tmp_path / "whole", photos, **settings).run()
    files = kind()
    source, place = (f"{kind.protocol}://{tmp_path}/{name}" for name in ("far", "maps"))
    files.makedirs(f"{tmp_path}/far", exist_ok=True)
    for path in photos.iterdir():
        files.pipe_file(f"{tmp_path}/far/{path.name}", path.read_bytes())
    job = Job(place, source, **settings)
    # The fifth photo, of the second shard; then the second shard that is put, and where it would be looked for.
    for faults, whole in [({"get": 4}, [0]), ({"put": 0}, [0]), ({"list": 0}, [0]), ({"put": 1}, [0, 1])]:
        FAULTS.update(faults)
        with pytest.raises(JobError, match="the connection broke"):
            job.run()
        assert FAULTS == {}
        assert status(place).missing == [number for number in range(3) if number not in whole]
    ran = job.run()
    assert (list(ran.shards), list(ran.failures)) == ([2], ["8.png"])
    for number in range(3):
        name = f"shard-{number:05}.parquet"
        assert files.cat_file(f"{tmp_path}/maps/{name}") == (tmp_path / "whole" / name).read_bytes()
    assert read(place).dataset().count_rows() == 9
    # What can't be read for now is not said to be damaged: nobody should remove it.
    FAULTS["open"] = 1
    with pytest.raises(JobError, match=r"must be (readable|one that can be written to and read); .*connection broke"):
        list(read(place))
    files.pipe_file(f"{tmp_path}/maps/shard-00001.parquet", b"damaged")
    with pytest.raises(JobError, match="Remove that file"):
        list(read(place))
    assert list(status(place).broken) == [1]
    # A photo that is gone is a row.
    files.rm(f"{tmp_path}/maps/shard-00001.parquet")
    files.rm(f"{tmp_path}/far/4.png")
    assert list(job.run().failures) == ["4.png"]
