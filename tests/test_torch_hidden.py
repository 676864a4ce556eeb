"""ReLUs that PyTorch has ways of its own to hide: bits of numbers, sums of bags, what is put where nothing is left."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from guided_backprop import GuidedBackprop, OpaqueRegionError
from guided_backprop.backends.rows import Gate
from networks_hidden import WEIGHTS

INF = float("inf")
IMAGES = np.random.default_rng(3).normal(size=(16, 12))
#: A ReLU of all columns, or of the first half of them.
WHOLE, HALF = np.arange(20) < 20, np.arange(20) < 10


def bagged(x, mask):
    places = torch.arange(x.numel())
    weights = mask.to(x.dtype).flatten()
    return F.embedding_bag(places, x.reshape(-1, 1), places, mode="sum", per_sample_weights=weights).reshape(x.shape)


def filled(x, mask, lowest):
    """Return the larger of x, where that is left, and of 0 elsewhere."""
    return torch.stack([torch.where(mask, x, lowest), torch.where(mask, lowest, 0.0)]).amax(0)


def inferred(x):
    """Return a mask that was made in inference mode."""
    with torch.inference_mode():
        mask = (x > 0).to(x.dtype)
    return mask.clone()


MASKS = {
    "bits": lambda x: x.detach().view(torch.int64) >= 0,
    "bits, shifted": lambda x: 1 + (x.detach().flatten().view(torch.int64) >> 63).reshape(x.shape),
    "the sign of a ReLU": lambda x: x.relu().sign(),
}
# Their derivative needs what they change, so that PyTorch copies it first: the copy has a node as well.
IN_PLACE = {
    "a list": lambda x: (lambda y: (torch._foreach_mul_([y], [(x > 0).double()]), y)[1])(x.clone()),
    "a product": lambda x: x.clone().mul_((x.sign() + 1) / 2),
    "a product of the mask": lambda x: ((x.sign() + 1) / 2).mul_(x),
    "a quotient": lambda x: x.clone().div_(2 / (x.sign() + 1)),
    "a bound": lambda x: x.clone().clamp_(min=torch.where(x > 0, -INF, 0.0)),
    "bounds": lambda x: x.clone().clamp_(torch.where(x > 0, -INF, 0.0), torch.where(x > 0, INF, 0.0)),
}
FILLED = {
    "-inf": lambda x, mask: filled(x, mask, -INF),
    "a large number": lambda x, mask: torch.maximum(x - 1e9 * ~mask, torch.where(mask, -1e9, 0.0)),
    "nan": lambda x, mask: torch.nan_to_num(torch.where(mask, x, float("nan")), 0.0),
}


def explained(activation, weigh=torch.matmul, shift=0.2):
    first, second, third = (torch.as_tensor(one, dtype=torch.float64) for one in WEIGHTS)
    model = lambda x: weigh(activation(torch.relu(x @ first) @ second - shift), third).tanh()  # noqa: E731
    return np.asarray(GuidedBackprop(model).explain(torch.as_tensor(IMAGES), labels=1))


def wanted(columns):
    """Return the guided map with a ReLU of some columns, from the formulas alone."""
    first, second, third = (one.astype(float) for one in WEIGHTS)
    outer = IMAGES @ first
    x = np.maximum(outer, 0) @ second - 0.2
    g = (1 - np.tanh(np.where(columns, np.maximum(x, 0), x) @ third)[:, 1:2] ** 2) * third[:, 1]
    g = np.where(columns, np.maximum(g, 0) * (x > 0), g) @ second.T
    return np.maximum(g, 0) * (outer > 0) @ first.T


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_weighs_the_numbers_of_bags(name):
    maps = explained(lambda x: bagged(x, MASKS[name](x)))
    np.testing.assert_allclose(maps, wanted(WHOLE), rtol=1e-9, atol=1e-12)


def test_a_mask_that_is_made_in_inference_mode():
    np.testing.assert_allclose(explained(lambda x: x * inferred(x)), wanted(WHOLE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_kept_and_changed_in_place(name):
    np.testing.assert_allclose(explained(IN_PLACE[name]), wanted(WHOLE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FILLED)
def test_what_is_put_where_a_mask_left_nothing(name):
    maps = explained(lambda x: FILLED[name](x, x > 0))
    np.testing.assert_allclose(maps, wanted(WHOLE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FILLED)
def test_of_some_columns_it_is_refused(name):
    """It is no ReLU of what the mask left, which is open below 0 as well, and closed where there is no number."""
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x: FILLED[name](x, (x > 0) | ~torch.as_tensor(HALF)))


def test_planted_fault_what_is_left_out_tells_a_threshold(monkeypatch):
    monkeypatch.setattr(Gate, "has_closed_one", False)
    maps = explained(lambda x: FILLED["nan"](x, (x > 0) | ~torch.as_tensor(HALF)))
    assert np.abs(maps - wanted(HALF)).max() > 0.1 * np.abs(wanted(HALF)).max()


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_multiple_beside_it_opens_nothing(factor):
    """Towards the multiple the magnitude is open, and towards x the sum of both is closed."""
    weigh = lambda x, w: x @ w + abs(factor * x) @ w / factor  # noqa: E731
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x: x, weigh, shift=0.0)


def test_a_shrink_that_no_image_shows_to_be_one():
    """None is open below 0, as of a threshold, and larger ones are: it is not guided."""
    first, second, _ = (one.astype(float) for one in WEIGHTS)
    ends = -np.min(np.maximum(IMAGES @ first, 0) @ second + 1.0) * 1.05
    assert ends > 0
    with pytest.raises(OpaqueRegionError, match="must be an operation of its own"):
        explained(lambda x: x * (abs(x) > ends), shift=-1.0)
