"""What a job costs: bytes a map, photos a second by each way to run it, start-up; and from these what many cost.

Run: make bench-jobs, on a machine that does nothing else; it writes the tables of docs/jobs.md. Every way explains the
same photos with the default model in batches of 16, by one thread a worker; the ways take turns, and the median of the
rounds counts. What happens before a worker's first shard is whole is start-up, and no part of its rate.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

import numpy as np
import pyarrow as pa
import ray
import skimage
import sklearn
from PIL import Image
from ray.data import ActorPoolStrategy, from_items
from scipy.stats import spearmanr

from guided_backprop import GuidedBackprop, Job, read
from guided_backprop.jobs import ShardWriter
from guided_backprop.jobs.plan import Photo
from guided_backprop.models import load_default

# In colour, and of the world.
PHOTOS = "astronaut.png chelsea.png coffee.png hubble_deep_field.jpg ihc.png motorcycle_left.png retina.jpg rocket.jpg"
SIZE, BATCH, SHARD = (500, 375), 16, 32
START, END = "<!-- bench-jobs:start -->", "<!-- bench-jobs:end -->"


@dataclass(frozen=True)
class Turn:
    """One way in one round: photos a second, seconds until a first shard is whole, and of a core for each photo."""

    rate: float
    begin: float
    seconds: float = 0.0


def photos(folder: Path, count: int) -> Path:
    """Write crops of photos that come with scikit-image and scikit-learn, as JPEG of the size of ImageNet's."""
    there = [Path(skimage.data_dir) / name for name in PHOTOS.split()]
    there += sorted((Path(sklearn.__file__).parent / "datasets/images").glob("*.jpg"))
    whole = [Image.open(path).convert("RGB") for path in there]
    folder.mkdir()
    for number in range(count):
        rng, photo = np.random.default_rng(number), whole[number % len(whole)]
        width = rng.uniform(0.4, 0.9) * min(photo.width, photo.height * SIZE[0] / SIZE[1])
        height = width * SIZE[1] / SIZE[0]
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        crop = photo.resize(SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        crop.save(folder / f"{number:06}.jpg", quality=90)
    return folder


# Bytes


def sizes(folder: Path, source: Path) -> tuple[list[list[str]], float, float]:
    """Return how maps are stored, the bytes of each, what is left of order and signs; of the default; of a plan."""
    count = len(list(source.iterdir()))
    held, rows = {}, []
    for dtype in ("float32", "float16", "sqrt8"):
        job = Job(folder / dtype, source, dtype=dtype, shard_size=count)
        job.run()
        held[dtype] = np.asarray(read(folder / dtype)[0]).reshape(count, -1)
        size = (folder / dtype / "shard-00000.parquet").stat().st_size / count
        rows.append((f'`"{dtype}"`', size, *kept(held["float32"], held[dtype])))
    truth = held["float32"]
    linear = np.rint(127 * truth / np.abs(truth).max(axis=1, keepdims=True)).astype(np.int8)
    size = statistics.mean(len(pa.compress(row.tobytes(), "zstd")) for row in linear)
    rows = [("float32, in memory", truth[0].nbytes, 1.0, 0.0), *rows]
    rows.append(("eight bits of the map itself, not offered", size, *kept(truth, linear)))
    table = [[name, f"{size / 1e3:.0f} kB", f"{rank:.4f}", f"{lost:.1%}"] for name, size, rank, lost in rows]
    return table, rows[2][1], plan_bytes(job)


def kept(truth: np.ndarray, maps: np.ndarray) -> tuple[float, float]:
    """Return the mean rank correlation of maps with the true ones, and the share of signs that are lost."""
    ranks = [spearmanr(one, other).statistic for one, other in zip(truth, maps, strict=True)]
    return float(np.mean(ranks)), float((np.sign(maps) != np.sign(truth)).sum() / (truth != 0).sum())


# Speed


def plain(source: Path, _: Path) -> Turn:
    """Read, preprocess and explain in one loop, and keep nothing."""
    begin, vision, paths = time.perf_counter(), load_default(), sorted(source.iterdir())
    method, ends = GuidedBackprop(vision.network), []
    for batch in vision.batches(paths, BATCH):
        method = method if ends else method.optimize(batch.images[:1])
        np.asarray(method.explain(batch.images))
        ends.append((time.perf_counter(), time.process_time()))
    return after(ends, begin)


def job(source: Path, folder: Path) -> Turn:
    begin, ends = time.perf_counter(), []
    Job(folder, source, shard_size=SHARD, batch_size=BATCH).run(
        progress=lambda *_: ends.append((time.perf_counter(), time.process_time()))
    )
    return after(ends, begin)


def after(ends: Sequence[tuple[float, float]], begin: float) -> Turn:
    """Return what was measured by when batches ended, from the end of the first shard on."""
    first = SHARD // BATCH - 1
    count = (len(ends) - 1 - first) * BATCH
    time_taken, of_a_core = (ends[-1][kind] - ends[first][kind] for kind in range(2))
    return Turn(count / time_taken, ends[first][0] - begin, of_a_core / count)


def through_ray(workers: int) -> Callable[[Path, Path], Turn]:
    def run(source: Path, folder: Path) -> Turn:
        begin = time.time()
        job = Job(folder, source, shard_size=SHARD, batch_size=BATCH)
        shards = from_items([{"shard": number} for number in job.missing()], override_num_blocks=len(job.missing()))
        pool = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
        shards.map_batches(
            ShardWriter, batch_size=1, fn_constructor_args=(job,), compute=pool, num_cpus=1
        ).materialize()
        ends = sorted(path.stat().st_mtime for path in folder.glob("shard-*.parquet"))
        count = (len(ends) - workers) * SHARD
        # From when each worker has written one: these end together, and so do the last ones.
        return Turn(count / (ends[-1] - ends[workers - 1]), ends[workers - 1] - begin)

    return run


def speeds(folder: Path, source: Path, rounds: int) -> tuple[dict[str, list[Turn]], float]:
    """Return what each way took in each round, and how long Ray's node took to start."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as place:
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=10**8, _temp_dir=place)
        node = time.perf_counter() - begin
        ways = {"plain": plain, "job": job, "Ray, 1 worker": through_ray(1), "Ray, 2 workers": through_ray(2)}
        found: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                found[name].append(way(source, folder / f"{number}-{name}"))
                print(number, name, found[name][-1], flush=True)
        ray.shutdown()
    return found, node


# What many cost


def costs(seconds: float, size: float, plan: float, shard: int = 512) -> list[list[str]]:
    """Return what a million and a billion photos take, by the formulas that docs/jobs.md gives."""
    rows = []
    for name, count in (("10\N{SUPERSCRIPT SIX}", 10**6), ("10\N{SUPERSCRIPT NINE}", 10**9)):
        jobs, shards = math.ceil(count / 10**6), math.ceil(count / shard)
        rows.append(
            [
                name,
                f"{count * seconds / 3600:,.0f}",
                f"{count * size / 1e12:,.2f} TB",
                f"{shards + jobs:,} of {shard * size / 1e6:.0f} MB",
                f"{jobs} x {10**6 * plan / 1e6:.0f} MB",
                f"{count:,} GET, {math.ceil(count / 1000):,} LIST",
                f"{shards * requests(shard * size):,} PUT",
            ]
        )
    return rows


def requests(size: float, part: float = 50 * 2**20) -> int:
    """Return how many requests s3fs puts a file with: one, or in parts of 50 MB, a first and a last one beside them."""
    return 1 if size < part else math.ceil(size / part) + 2


def plan_bytes(job: Job, count: int = 100_000) -> float:
    """Return how many bytes of ``job.json`` a photo takes, with paths as in ImageNet."""
    rows = tuple(Photo(f"n01440764/n01440764_{number}.JPEG", 110_000) for number in range(count))
    return len(replace(job.plan, additions=(rows,)).text()) / count


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def tables(rounds: int, shards: int) -> str:
    """Measure all, and return it as Markdown."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stored, a_map, plan = sizes(folder / "sizes", photos(folder / "few", 56))
        found, node = speeds(folder / "speed", photos(folder / "many", SHARD * shards), rounds)
    rates = {name: statistics.median(one.rate for one in turns) for name, turns in found.items()}
    cpu = statistics.median(one.seconds for one in found["job"])
    speed = []
    for name, turns in found.items():
        spread = f"{min(one.rate for one in turns):.1f} to {max(one.rate for one in turns):.1f}"
        begin = statistics.median(one.begin for one in turns)
        speed.append([name, f"{rates[name]:.1f}", spread, f"{rates[name] / rates['plain']:.2f}", f"{begin:.1f} s"])
    ratio = statistics.median(
        two.rate / one.rate for one, two in zip(found["Ray, 1 worker"], found["Ray, 2 workers"], strict=True)
    )
    return "\n\n".join(
        [
            "Of 56 photos of 224 x 224 x 3, in a shard:",
            grid(["stored as", "a map", "rank correlation", "signs lost"], stored),
            f"{SHARD * shards} photos, {rounds} rounds, on {os.cpu_count()} cores; start-up is until a first shard is "
            f"whole, which has {SHARD} photos:",
            grid(["way", "photos a second", "from, to", "of plain", "start-up"], speed),
            f"Two workers of Ray do {ratio:.2f} times what one does. Before, Ray's node starts in {node:.0f} s. A "
            f"photo takes {cpu:.3f} seconds of a core in a job, reading and writing included. From that:",
            grid(
                ["photos", "core-hours", "maps", "files", "`job.json`", "requests to read", "to write"],
                costs(cpu, a_map, plan),
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a job costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=8, help="of 32 photos, an even number")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables between the markers of FILE")
    options = parser.parse_args()
    text = tables(options.rounds, options.shards)
    print(text)
    if options.write:
        before, _, rest = options.write.read_text().partition(START)
        options.write.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
