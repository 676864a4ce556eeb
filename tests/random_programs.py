"""What the random programs of each framework have in common: how one is put together, and how many are tried."""

import os

from hypothesis import HealthCheck, settings


def often(examples):
    """Return hypothesis' settings: so many programs, the same in each run; ``make fuzz`` tries thousands."""
    examples = int(os.environ.get("GUIDED_BACKPROP_EXAMPLES", str(examples)))
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def composed(names, ordinary, relu, hidden, dense):
    """Return a model: ordinary operations, and hidden ReLUs behind a dense layer; a ReLU at last."""

    def run(x):
        for name in names:
            x = hidden[name](x @ dense[2]) if name in hidden else ordinary[name](x, relu)
        return relu(x @ dense[3]) @ dense[1]

    return run
