"""What the random programs of each framework have in common: how one is put together, and how many are tried."""

import os

import numpy as np
from hypothesis import HealthCheck, settings


def often(examples):
    """Return hypothesis' settings: so many programs, the same in each run; ``make fuzz`` tries thousands."""
    examples = int(os.environ.get("GUIDED_BACKPROP_EXAMPLES", str(examples)))
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


#: One of two, and nothing.
EVERY_SECOND = np.tile([1.0, 0.0], 8)


def beside_zeros(weight):
    """Return twice as many columns, each second one 0: the largest of two is a ReLU, of what nothing computes."""
    return weight.repeat(2, 1) * EVERY_SECOND


def composed(names, ordinary, relu, hidden, dense):
    """Return a model: ordinary operations, and hidden ReLUs of a dense layer; a ReLU at last."""

    def run(x):
        for name in names:
            x = hidden[name](x) if name in hidden else ordinary[name](x, relu)
        return relu(x @ dense[3]) @ dense[1]

    return run
