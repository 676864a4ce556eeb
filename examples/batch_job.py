"""Explain a folder of photos in shards: fast, within a bounded memory, and resumed where it was interrupted.

Run: python examples/batch_job.py photos/ maps/   and, after an interruption or with more photos, the same once more
"""

import sys
from pathlib import Path

from guided_backprop import Job


def main(source: str, target: str, shard_size: int = 512) -> None:
    """Explain all photos below the folder ``source``; ``guided_backprop.read(target)`` reads the maps back."""
    job = Job(target, source, shard_size=shard_size, add=Path(target, "job.json").exists())
    ran = job.run(progress=lambda shard, rows: print(f"shard {shard.number}: {len(rows)} photos"))
    print(f"{len(ran.shards)} shards, {ran.explained} photos explained", *ran.failures.values(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
