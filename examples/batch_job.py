"""Explain a folder of photos: python examples/batch_job.py photos/ maps/, and once more after whatever happens."""

import sys

from guided_backprop import Job


def main(source: str, target: str, shard_size: int = 512) -> None:
    """Explain all photos below ``source`` that ``target`` doesn't have; ``guided_backprop.read(target)`` reads them."""
    ran = Job(target, source, shard_size=shard_size, add=True).run()
    print(f"{len(ran.shards)} shards, {ran.explained} photos explained", *ran.failures.values(), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
