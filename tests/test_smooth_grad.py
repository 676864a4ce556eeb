"""SmoothGrad against its formulas, with maps of each noisy copy from the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import reference
from guided_backprop import (
    DeconvNet,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    LabelError,
    OptionError,
    Saliency,
    SmoothGrad,
)
from networks_jax import to_jax
from networks_tensorflow import to_tensorflow
from networks_torch import to_torch

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
SAMPLES, NOISE, SEED = 6, 0.3, 11
rng = np.random.default_rng(4)
IMAGES = rng.normal(size=(3, 2, 7, 7)) * np.array([1, 5, 0.2])[:, None, None, None]
relu = reference.ReLU()
NETWORK = reference.Sequential(
    (
        reference.random_conv(rng, 2, 5),
        relu,
        reference.random_conv(rng, 5, 4),
        relu,
        reference.Flatten(),
        reference.random_linear(rng, 36, 3),
    )
)
LABELS = [2, 0, 1]
RULES = {"saliency": Saliency, "deconvnet": DeconvNet, "guided": GuidedBackprop}
FRAMEWORKS = {
    "torch": (to_torch, torch.tensor, np.asarray, (2, 7, 7)),
    "tensorflow": (
        to_tensorflow,
        lambda images: tf.constant(images.transpose(0, 2, 3, 1)),
        lambda array: np.moveaxis(array, -1, -3),
        (7, 7, 2),
    ),
    "jax": (
        to_jax,
        lambda images: jnp.asarray(images.transpose(0, 2, 3, 1)),
        lambda array: np.moveaxis(array, -1, -3),
        (7, 7, 2),
    ),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def copies(framework: str = "torch", images: np.ndarray = IMAGES, seed: int = SEED) -> np.ndarray:
    """Return ``(samples, N, ...)`` noisy copies."""
    _, _, back, shape = FRAMEWORKS[framework]
    result = np.empty((SAMPLES, *images.shape))
    for sample in range(SAMPLES):
        for row, image in enumerate(images):
            drawn = back(np.random.default_rng([seed, row, sample]).normal(size=shape))
            result[sample, row] = image + drawn * NOISE * (image.max() - image.min())
    return result


def maps(rule: str, weights: np.ndarray, **options) -> np.ndarray:
    """Return the oracle's map of each copy."""
    return np.stack([reference.attribution(NETWORK, batch, weights, rule) for batch in copies(**options)])


FORMS = {
    "mean": lambda maps: sum(maps) / len(maps),
    "squared": lambda maps: sum(each**2 for each in maps) / len(maps),
    "variance": lambda maps: sum((each - sum(maps) / len(maps)) ** 2 for each in maps) / len(maps),
}


def explain(framework, labels, *, method="guided", images=IMAGES, batch_size=None, reducer=None, **options):
    build, convert, back, _ = FRAMEWORKS[framework]
    explained = RULES[method](build(NETWORK), batch_size=batch_size, reducer=reducer)
    smooth = SmoothGrad(explained, samples=SAMPLES, noise=NOISE, **({"seed": SEED} | options))
    return smooth.explain(convert(images), labels), back


# What is done with the maps does not depend on whose they are.
@pytest.mark.parametrize(
    ("method", "form"), [*(("guided", form) for form in FORMS), ("saliency", "mean"), ("deconvnet", "mean")]
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_against_the_formula(framework, method, form):
    found, back = explain(framework, LABELS, method=method, form=form)
    each = maps(method, np.eye(3)[LABELS], framework=framework)
    np.testing.assert_allclose(back(np.asarray(found)), FORMS[form](each), **TOLERANCE)
    outputs, _ = NETWORK.forward(IMAGES)
    np.testing.assert_allclose(found.scores, outputs[range(3), LABELS], **TOLERANCE)
    assert type(found.attribution) is type(found.images)
    # Without max-pooling, DeconvNet's map is the same for every image: there is nothing to plant.
    for planted in (
        ()
        if method == "deconvnet"
        else (FORMS[form](each[1:]), *(FORMS[other](each) for other in FORMS if other != form))
    ):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            np.testing.assert_allclose(back(np.asarray(found)), planted, **TOLERANCE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_batches_do_not_change_the_noise(framework):
    whole, _ = explain(framework, LABELS)
    for batch_size in (1, 5, 100):
        found, _ = explain(framework, LABELS, batch_size=batch_size)
        np.testing.assert_allclose(found, np.asarray(whole), **TOLERANCE)
    np.testing.assert_array_equal(explain(framework, LABELS)[0], np.asarray(whole))
    assert not np.allclose(explain(framework, LABELS, seed=SEED + 1)[0], whole)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_explained_is_that_of_the_image_itself(framework):
    outputs, _ = NETWORK.forward(IMAGES)
    ranked = np.argsort(-outputs, axis=1)
    # Of some copies another class is the top one, else this would show nothing.
    assert any((NETWORK.forward(batch)[0].argmax(1) != ranked[:, 0]).any() for batch in copies(framework))
    found, back = explain(framework, None)
    np.testing.assert_array_equal(found.labels, ranked[:, 0])
    expected = FORMS["mean"](maps("guided", np.eye(3)[ranked[:, 0]], framework=framework))
    np.testing.assert_allclose(back(np.asarray(found)), expected, **TOLERANCE)
    found, back = explain(framework, "top2", reducer="absmax")
    by_rank = [FORMS["mean"](maps("guided", np.eye(3)[ranked[:, k]], framework=framework)) for k in (0, 1)]
    expected = np.stack([np.abs(each).max(axis=1) for each in by_rank], axis=1)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    scored, back = explain(framework, lambda output: output[:, 1] * 3)
    expected = 3 * FORMS["mean"](maps("guided", np.eye(3)[[1] * 3], framework=framework))
    np.testing.assert_allclose(back(np.asarray(scored)), expected, **TOLERANCE)


def test_without_noise_it_is_the_method():
    model, images = to_torch(NETWORK), torch.tensor(IMAGES)
    for method in (GuidedBackprop(model, reducer="sum"), GuidedGradCAM(model, "2"), GradCAM(model, "2")):
        clean = method.explain(images, LABELS)
        mean = SmoothGrad(method, samples=3, noise=0).explain(images, LABELS)
        np.testing.assert_allclose(mean, np.asarray(clean), **TOLERANCE)
        variance = SmoothGrad(method, samples=3, noise=0, form="variance").explain(images, LABELS)
        np.testing.assert_allclose(variance, np.zeros(clean.attribution.shape), **TOLERANCE)


def test_the_noise_is_gaussian_and_a_share_of_the_range():
    seen = []

    def model(x):
        seen.append(x.detach().numpy().copy())
        return torch.relu(x).sum((1, 2, 3))[:, None]

    image = torch.linspace(-1, 3, 3 * 50 * 50, dtype=torch.float64).reshape(1, 3, 50, 50)
    SmoothGrad(GuidedBackprop(model), samples=20, noise=0.1).explain(image, 0)
    drawn = np.concatenate(seen[1:]) - image.numpy()
    assert abs(drawn.std() / (0.1 * 4) - 1) < 0.01
    assert abs(drawn.mean()) < 0.01
    assert abs((np.abs(drawn) < 0.4).mean() - 0.6827) < 0.01
    assert len({each.tobytes() for each in np.concatenate(seen)}) == 21


def test_state_and_bounded_memory():
    sizes = []
    state = np.random.get_state()[1].copy(), torch.random.get_rng_state()

    def model(x):
        sizes.append(len(x))
        return torch.relu(x).sum((1, 2, 3))[:, None]

    images = torch.tensor(IMAGES)
    SmoothGrad(GuidedBackprop(model), samples=5).explain(images, 0)
    assert sizes == [3] * 6
    sizes.clear()
    SmoothGrad(GuidedBackprop(model, batch_size=2), samples=5).explain(images, 0)
    assert max(sizes) == 2
    assert sum(sizes) == 3 + 15
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.random.get_rng_state(), state[1])
    np.testing.assert_array_equal(images, IMAGES)


def test_several_inputs():
    torch.manual_seed(0)
    table = torch.nn.EmbeddingBag(5, 4).double()

    def model(first, ids, second):
        return torch.relu(first * 2 + second + table(ids))

    rows = torch.rand(3, 4).double(), torch.tensor([[0, 1], [2, 3], [4, 4]]), torch.rand(3, 4).double()
    found = SmoothGrad(GuidedBackprop(model), samples=4, noise=0.01).explain(rows, 1)
    assert found.attribution[1] is None
    np.testing.assert_allclose(found.attribution[0], 2 * found.attribution[2].numpy(), **TOLERANCE)
    assert found.attribution[0].dtype == torch.float64
    by_name = dict(zip(("first", "ids", "second"), rows, strict=True))
    named = SmoothGrad(GuidedBackprop(model), samples=4, noise=0.01).explain(by_name, 1)
    np.testing.assert_array_equal(named.attribution["second"], found.attribution[2])


def test_dtypes_and_no_images():
    model = to_torch(NETWORK).float()
    for dtype in (torch.float32, torch.bfloat16):
        method = GuidedBackprop(model.to(dtype))
        found = SmoothGrad(method, samples=2).explain(torch.tensor(IMAGES, dtype=dtype), 0)
        assert found.attribution.dtype == dtype
    arrays = SmoothGrad(GuidedBackprop(model.float()), samples=2).explain(IMAGES.astype(np.float32), 0)
    assert isinstance(arrays.attribution, np.ndarray)
    assert arrays.attribution.dtype == np.float32
    nothing = SmoothGrad(GuidedBackprop(model), samples=2).explain(IMAGES[:0].astype(np.float32))
    assert len(nothing) == 0
    assert nothing.method == "SmoothGrad(GuidedBackprop, samples=2, noise=0.15, seed=0, form='mean')"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"samples": 0}, "samples must be a positive integer; received samples=0"),
        ({"samples": 2.5}, "received samples=2.5"),
        ({"samples": True}, "received samples=True"),
        ({"noise": -1}, "noise must be a number of 0 or more; received noise=-1"),
        ({"noise": float("nan")}, "received noise=nan"),
        ({"noise": "0.1"}, "received noise='0.1'"),
        ({"seed": -1}, "received seed=-1"),
        ({"seed": None}, "received seed=None"),
        ({"form": "median"}, "form must be one of mean, absolute, squared, variance; received form='median'"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(OptionError, match=message):
        SmoothGrad(GuidedBackprop(to_torch(NETWORK)), **option)


def test_bad_input():
    with pytest.raises(OptionError, match="method must be a method; received method="):
        SmoothGrad(to_torch(NETWORK))
    with pytest.raises(LabelError, match=r"received labels\[0\]=9"):
        SmoothGrad(GuidedBackprop(to_torch(NETWORK))).explain(torch.tensor(IMAGES), 9)
