"""What is rounded, or goes through integers or bits, has no gradient, and its values go on: it may hide a ReLU."""

import numpy as np
import pytest

from guided_backprop import GuidedBackprop
from guided_backprop.errors import OpaqueRegionError
from networks_hidden import ROWS, WEIGHTS, Library, oracle

FRAMEWORKS = ["jax", "tensorflow"]
#: So fine is what is rounded.
FINE = 65536.0
CODE = np.linspace(-2, 2, 9).astype("float32")


class Rounding(Library):
    """What rounds, besides."""

    def whole(self, x):
        return self.cast(FINE * x, "int32")

    def number(self, whole):
        return self.cast(whole, "float32") / FINE

    def sum_last(self, x):
        return self.xp.reduce_sum(x, -1)

    def same_bits(self, x):
        return self.bits(self.bits(x, self.xp.int32), self.xp.float32)


#: Each is ``relu(x) @ w``.
HIDDEN = {
    "rounded behind weights": lambda lib, x, w: x @ w + lib.xp.round(FINE * ((lib.relu(x) - x) @ w)) / FINE,
    "integers before weights": lambda lib, x, w: x @ w + lib.number(lib.whole(lib.relu(x) - x)) @ w,
    "the larger of integers": lambda lib, x, w: x @ w + lib.number(lib.xp.maximum(lib.whole(-x), 0)) @ w,
    "bits": lambda lib, x, w: x @ w + lib.same_bits((lib.relu(x) - x) @ w),
    "integers without weights": lambda lib, x, w: (x + lib.number(lib.whole(lib.relu(x) - x))) @ w,
}
#: None is: what is rounded is what it was, or another value.
ORDINARY = {
    "rounded, with its gradient": lambda lib, x, w: (x + lib.stopped(lib.xp.round(4 * x) / 4 - x)) @ w,
    "quantised behind weights": lambda lib, x, w: (
        x @ w + lib.stopped(lib.cast(lib.cast(4 * (x @ w), "int32"), "float32") / 4 - x @ w)
    ),
    "a fraction": lambda lib, x, w: (x - lib.xp.floor(x)) @ w,
}


def counted(lib, x):
    """Return a ReLU of x, as many hundredths as there are below x."""
    steps = lib.xp.range(0.0, 8.0, 0.01)
    return lib.sum_last(lib.cast(x[..., None] > steps, "float32")) / 100


def found_in_order(lib, x):
    places = lib.xp.searchsorted(lib.xp.range(0.0, 8.0, 0.01), lib.xp.reshape(x, [-1]))
    return lib.xp.reshape(lib.cast(places, "float32"), lib.xp.shape(x)) / 100


def by_its_sign_bit(lib, x):
    bits, bitwise = lib.bits(x, "int32"), lib.xp.bitwise
    return lib.bits(bitwise.bitwise_and(bits, bitwise.invert(bitwise.right_shift(bits, 31))), "float32")


#: Each is a ReLU, of which no derivative tells at all, be it stopped or not.
UNTOLD = {"counted": counted, "found in order": found_in_order, "its sign bit": by_its_sign_bit}
#: None is: what is made of all of x, or what x is nearest to.
CODES = {
    "a code": lambda lib, x: lib.xp.gather(CODE, lib.xp.argmin(abs(x[..., None] - CODE), -1)),
    "counted from below": lambda lib, x: counted(lib, x) - counted(lib, -x),
}


def explained(framework, spelled):
    lib = Rounding(framework)
    first, second, third, images = map(lib.array, (*WEIGHTS, ROWS))
    model = lambda x: lib.xp.tanh(spelled(lib, lib.relu(x @ first) @ second - 0.2, third))  # noqa: E731
    return np.asarray(GuidedBackprop(model).explain(images, labels=1))


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_rounded_hides_no_relu(framework, name):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(framework, HIDDEN[name])


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_rounded_otherwise_is_plain(framework, name):
    assert np.isfinite(explained(framework, ORDINARY[name])).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_planted_fault_what_rounds_stops_the_look_leaves_a_wrong_map(framework, monkeypatch):
    behind = pytest.importorskip(f"guided_backprop.backends.{framework}.hidden.behind")
    if framework == "jax":
        monkeypatch.setattr(behind, "has_rounding", lambda block: False)
    else:
        monkeypatch.setattr(behind.Derivatives, "has_rounding", False)
    found = explained(framework, HIDDEN["integers before weights"])
    assert np.abs(found - oracle()).max() > 0.2 * np.abs(oracle()).max()


def detached(made):
    return lambda lib, x, w: x @ w + lib.stopped((made(lib, x) - x) @ w)


@pytest.mark.parametrize("name", UNTOLD)
def test_what_has_values_and_no_derivative_hides_no_relu(name):
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained("tensorflow", detached(UNTOLD[name]))


@pytest.mark.parametrize("name", CODES)
def test_a_code_of_all_that_is_there_is_plain(name):
    np.testing.assert_allclose(explained("tensorflow", detached(CODES[name])).shape, ROWS.shape)


def test_planted_fault_values_that_are_not_looked_at_leave_a_wrong_map(monkeypatch):
    from guided_backprop.backends.tensorflow.hidden import behind

    monkeypatch.setattr(behind, "_is_lost", lambda candidate, looks: False)
    assert not np.allclose(explained("tensorflow", detached(by_its_sign_bit)), oracle(), rtol=1e-3, atol=1e-5)
