"""Explain a folder of photos in parts: fast, within a bounded memory, and resumed where it was interrupted.

Each part is a folder of its own, which appears whole or not at all, so what is there need not be done again.

Run: python examples/batch_job.py photos/ maps/   and, after an interruption, the same once more
"""

import sys
from pathlib import Path

from guided_backprop import GuidedBackprop
from guided_backprop.models import image_paths, load_default

PART = 64  # photos in a folder of results: what an interruption costs at most
AT_ONCE = 16  # photos run at once: what the memory has to hold; halved by itself where that is too much


def main(source: str, target: str, part: int = PART) -> None:
    """Explain all photos of the folder ``source``; results are in ``target/part-00000`` and so on."""
    vision, paths, method = load_default(), image_paths([Path(source)]), None
    parts = [Path(target) / f"part-{start // part:05}" for start in range(0, len(paths), part)]
    for number, folder in enumerate(parts):
        if folder.exists():
            print(f"{folder.name}: done before")
            continue
        here = paths[number * part : (number + 1) * part]
        batch = next(vision.batches(here, part))
        for failure in batch.failures:
            print(failure)  # a damaged photo stops nothing
        if batch.images is None:
            continue
        if method is None:
            method = GuidedBackprop(vision.network, batch_size=AT_ONCE, memory="lean").optimize(batch.images[:1])
        explanations = method.explain(batch.images)
        explanations.save(folder, names=[here[row].name for row in batch.rows])
        print(f"{folder.name}: {len(explanations)} photos, {explanations.batch_size} at once")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
