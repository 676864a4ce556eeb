"""Memory that really runs out: the batch is halved, the result is the same, and nothing that was finished is lost."""

import subprocess
import sys

import pytest
import torch

from guided_backprop import ModelError, Saliency

# In a process of its own, whose address space is then limited to what it has and a bit more.
PROGRAM = """
import logging, resource, sys
import numpy as np
import torch
from torch import nn
from guided_backprop import GuidedBackprop, OutOfMemoryError

logging.basicConfig(format="%(name)s: %(message)s")
torch.set_num_threads(1)
torch.manual_seed(0)
layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 1, 3, padding=1), nn.Flatten(), nn.Linear(4096, 2)]
model = nn.Sequential(*layers).eval()
images = torch.rand(200, 1, 64, 64)
whole = GuidedBackprop(model, batch_size=1).explain(images[:32], 1)  # everything is loaded and warm
print("others", *({"tensorflow", "jax", "keras"} & set(sys.modules)))
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 250 * 2**20, used + 250 * 2**20))

# 64 channels of 64 x 64 numbers are 1 MB an image, kept several times.
found = GuidedBackprop(model).explain(images, 1)
np.testing.assert_allclose(found.attribution[:32], whole.attribution, rtol=1e-4, atol=1e-6)
assert len(found) == len(images)
print("halved", found.batch_size < len(images), found.batch_size > 1)
del found

class Greedy(nn.Module):
    def forward(self, images):
        if (images == 0).flatten(1).all(1).any():
            torch.empty(10**12)
        return model(images)
images[3] = 0
try:
    GuidedBackprop(Greedy().eval(), batch_size=2).explain(images, 1)
except OutOfMemoryError as error:
    (finished,) = error.finished
    np.testing.assert_allclose(finished.attribution, whole.attribution[:3], rtol=1e-4, atol=1e-6)
    print(len(finished), finished.labels, finished.images.shape[0], isinstance(error, MemoryError))
    print(error)
"""


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_the_batch_is_halved(done):
    assert done.stdout.splitlines()[1] == "halved True True"
    assert "guided_backprop: memory ran out; going on with 100 images at once, with the same result" in done.stderr


def test_what_was_finished_is_in_the_error(done):
    first, second = done.stdout.splitlines()[2:]
    assert first == "3 [1 1 1] 3 True"
    assert "one image must fit into memory" in second
    assert "images[3]" in second


def test_the_use_of_pytorch_imports_no_other_framework(done):
    assert done.stdout.splitlines()[0] == "others"


def test_other_errors_are_no_lack_of_memory(caplog):
    def model(images):
        raise ValueError("no")

    with pytest.raises(ModelError, match="ValueError: no"):
        Saliency(model).explain(torch.ones(4, 2), 0)
    assert "memory" not in caplog.text
