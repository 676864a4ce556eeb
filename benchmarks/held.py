"""What a compiled method holds in memory, and by how much a call rises above that. Linux only.

    held.py MODEL IMAGES        prints one line

It is asked for in a fresh process; making it takes more, once, and what was made is kept on disk.
"""

import ctypes
import gc
import sys
from pathlib import Path

from contest import FORWARD, load
from memory import kernel_value

from guided_backprop import GuidedBackprop

_MEGABYTE = 1e6


def settled() -> int:
    """Return what this process has in memory, in bytes, when all that is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    return kernel_value("VmRSS")


def main() -> None:
    name, count = sys.argv[1], int(sys.argv[2])
    framework = load("torch")
    model = framework.networks[name].build("float32")
    images, labels = framework.inputs(name, count)
    framework.contestants[FORWARD].prepare(model, images)(images[:1], labels[:1])
    before = settled()
    method = GuidedBackprop(model).compile(images)
    making = (kernel_value("VmHWM") - before) / _MEGABYTE
    method.explain(images, labels)
    held = settled()
    explanations = method.explain(images, labels)
    rise = (kernel_value("VmHWM") - held) / _MEGABYTE
    print(
        f"{name}, {count} images, {explanations.engine}: made with {making:.0f} MB above the model, holds "
        f"{(held - before) / _MEGABYTE:.0f}, a call {rise:.0f} more"
    )


if __name__ == "__main__":
    main()
