"""Data sets, loaders, iterables and lists go into explain: the same maps as from one batch, with the data's labels."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from guided_backprop import (
    GuidedBackprop,
    ImageError,
    LabelError,
    OptionError,
    Saliency,
    SmoothGrad,
    compare,
    neuron_gallery,
)

RNG = np.random.default_rng(3)
WEIGHTS = [RNG.normal(size=size).astype("float32") for size in ((6, 8), (8, 3))]
ROWS = RNG.normal(size=(7, 6)).astype("float32")
IDS = np.array([0, 2, 1, 1, 0, 2, 1])
ONE_HOT = np.eye(3, dtype="float32")[IDS]


def expected(ids: np.ndarray = IDS) -> np.ndarray:
    """Return the guided maps of a network of one hidden layer, worked out."""
    first, last = WEIGHTS
    arriving = last[:, ids].T
    return (arriving * (arriving > 0) * (ROWS @ first > 0)) @ first.T


def same(explanations, ids=IDS) -> bool:
    np.testing.assert_array_equal(explanations.labels if explanations.labels.ndim == 1 else ids, ids)
    np.testing.assert_allclose(explanations, expected(ids), rtol=1e-4, atol=1e-6)
    return True


def in_torch() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    for parameter, weights in zip(model.parameters(), WEIGHTS, strict=True):
        parameter.data = torch.tensor(weights.T.copy())
    return model


def in_keras() -> keras.Model:
    layers = [keras.layers.Dense(8, "relu", use_bias=False), keras.layers.Dense(3, use_bias=False)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.set_weights(WEIGHTS)
    return model


class Singles(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return torch.tensor(ROWS[index]), int(IDS[index])


class Stream(IterableDataset):
    def __iter__(self):
        return zip(torch.tensor(ROWS), torch.tensor(IDS), strict=True)


class KerasData(keras.utils.PyDataset):
    """Keras iterates over such data without end in some of its own classes."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(index * 3, index * 3 + 3)
        return ROWS[rows], IDS[rows, None]


def batches(of=torch.tensor, labels=np.asarray):
    return [(of(ROWS[start : start + 3]), labels(IDS[start : start + 3])) for start in range(0, 7, 3)]


TENSORS = torch.tensor(ROWS), torch.tensor(IDS)
IN_TORCH = {
    "a data set": Singles,
    "a data set of tensors": lambda: TensorDataset(*TENSORS),
    "a stream": Stream,
    "a loader": lambda: DataLoader(TensorDataset(*TENSORS), batch_size=3),
    "a loader of a stream": lambda: DataLoader(Stream(), batch_size=2),
    "pairs": batches,
    "a generator of pairs": lambda: (pair for pair in batches()),
    "an iterator": lambda: iter(batches(torch.tensor, torch.tensor)),
    "NumPy's arrays": lambda: batches(np.asarray),
    "one-hot rows": lambda: [(TENSORS[0], torch.tensor(ONE_HOT))],
}
IN_TENSORFLOW = {
    "a data set": lambda: tf.data.Dataset.from_tensor_slices((ROWS, IDS)).batch(3),
    "one-hot rows": lambda: tf.data.Dataset.from_tensor_slices((ROWS, ONE_HOT)).batch(3),
    "single rows and ids": lambda: tf.data.Dataset.from_tensor_slices((ROWS, IDS)),
    "single rows, one-hot": lambda: tf.data.Dataset.from_tensor_slices((ROWS, ONE_HOT)),
    "ids in a column": lambda: tf.data.Dataset.from_tensor_slices((ROWS, IDS[:, None])).batch(3),
    "Keras' own": lambda: KerasData(),
    "a loader of PyTorch": lambda: DataLoader(TensorDataset(*TENSORS), batch_size=3),
    "pairs": lambda: batches(tf.constant),
}


@pytest.mark.parametrize("name", IN_TORCH)
def test_data_in_pytorch(name):
    method = GuidedBackprop(in_torch())
    assert same(method.explain(IN_TORCH[name]()))
    parts = list(method.explain_batches(IN_TORCH[name]()))
    assert sum(map(len, parts)) == 7
    np.testing.assert_allclose(np.concatenate(parts), expected(), rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        same(method.explain(IN_TORCH[name]()), np.roll(IDS, 1))


@pytest.mark.parametrize("name", IN_TENSORFLOW)
def test_data_in_keras(name):
    method = GuidedBackprop(in_keras())
    assert same(method.explain(IN_TENSORFLOW[name]()))
    assert len(list(method.explain_batches(IN_TENSORFLOW[name]()))) in (1, 3)


def test_data_in_jax():
    method = GuidedBackprop(lambda rows: jax.nn.relu(rows @ WEIGHTS[0]) @ WEIGHTS[1])
    explanations = method.explain(batches(jnp.asarray))
    assert same(explanations)
    assert isinstance(explanations.attribution, jax.Array)


def test_data_without_labels_takes_those_that_are_given():
    method = GuidedBackprop(in_torch())
    alone = [rows for rows, _ in batches()]
    assert same(method.explain((rows for rows in alone), IDS))
    assert same(method.explain(TensorDataset(TENSORS[0]), IDS))
    assert [part.labels.tolist() for part in method.explain_batches(iter(alone), 2)] == [[2] * 3, [2] * 3, [2]]
    top = method.explain(iter(alone))
    np.testing.assert_array_equal(top.labels, top.outputs.argmax(1))


def test_every_method_takes_data():
    smooth = SmoothGrad(GuidedBackprop(in_torch()), samples=3)
    np.testing.assert_array_equal(smooth.explain(Singles()), smooth.explain(*TENSORS))
    assert len(list(smooth.explain_batches(DataLoader(Singles(), batch_size=3)))) == 3
    (found, plain) = compare(batches(), None, [GuidedBackprop(in_torch()), Saliency(in_torch())])
    assert same(found)
    np.testing.assert_array_equal(plain.labels, IDS)
    assert same(GuidedBackprop(in_torch()).optimize(Singles()).explain(Singles()))


def test_a_gallery_reads_data_with_labels():
    images, labels = torch.rand(6, 3, 9, 9), torch.zeros(6, dtype=torch.int64)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    expected = neuron_gallery(model, "2", 1, images, count=2)
    for data in (DataLoader(TensorDataset(images, labels), batch_size=3), TensorDataset(images, labels)):
        np.testing.assert_array_equal(neuron_gallery(model, "2", 1, data, count=2).images, expected.images)
    other = neuron_gallery(model, "2", 1, TensorDataset(images.flip(0), labels), count=2)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(other.images, expected.images)


def test_several_inputs_come_as_each_library_gives_them():
    first, second = keras.Input((6,)), keras.Input((6,))
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Concatenate()([first, second]))
    model = keras.Model([first, second], keras.layers.Dense(3)(hidden))
    method = GuidedBackprop(model)
    whole = method.explain((ROWS, ROWS[::-1].copy()), IDS)
    by_list = method.explain([ROWS, ROWS[::-1].copy()], IDS)
    data = method.explain(tf.data.Dataset.from_tensor_slices(((ROWS, ROWS[::-1]), IDS)).batch(3))
    for one in (by_list, data):
        for found, wanted in zip(one.attribution, whole.attribution, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(whole.attribution[0], whole.attribution[1], rtol=1e-2)


def test_a_list_is_images_or_inputs_as_the_model_says():
    assert same(GuidedBackprop(in_torch()).explain(list(TENSORS[0]), IDS))
    assert same(GuidedBackprop(in_keras()).explain(list(ROWS), IDS))
    # Keras' habit: the batch in a list; and batches, which are as long as the model's input.
    assert same(GuidedBackprop(in_keras()).explain([ROWS], IDS))
    assert same(GuidedBackprop(in_keras()).explain([ROWS[:3], ROWS[3:]], IDS))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = in_torch()

        def forward(self, first, second):
            return self.inner(first + 0 * second)

    found = GuidedBackprop(Two().eval()).explain([TENSORS[0], torch.rand(7, 6)], IDS)
    np.testing.assert_allclose(found.attribution[0], expected(), rtol=1e-4, atol=1e-6)
    for model in (lambda *rows: in_torch()(rows[0]), lambda first, second=None: in_torch()(first)):
        with pytest.raises(ImageError, match=r"several inputs or several images.*Pass a tuple"):
            GuidedBackprop(model).explain([TENSORS[0], TENSORS[0]])
    with pytest.raises(ImageError, match=r"alike; received a list of 2 arrays of shape \(6,\), \(5,\). Resize"):
        GuidedBackprop(in_torch()).explain([TENSORS[0][0], TENSORS[0][0, :5]])


MISTAKES = {
    "labels twice": (lambda: (batches(), IDS), OptionError, "labels must come once"),
    "nothing": (lambda: (iter(()), None), ImageError, "received none"),
    "three parts": (lambda: (iter([(*TENSORS, TENSORS[1])]), None), ImageError, "received 3 parts"),
    "single images": (lambda: (zip(*TENSORS, strict=True), None), ImageError, "Batch them"),
    "other shapes": (lambda: (iter([TENSORS[0], TENSORS[0][:, :5]]), None), ImageError, "several shapes"),
    "words": (lambda: (iter([(TENSORS[0], ["cat"] * 7)]), None), LabelError, "must be numbers; received list"),
    "a regression's targets": (
        lambda: (iter([(TENSORS[0], torch.rand(7, 3))]), None),
        LabelError,
        "targets or weights",
    ),
    "numbers": (lambda: (range(3), None), ImageError, "must hold arrays, a batch each; received int"),
    "one batch of a loader": (lambda: ([*TENSORS], None), ImageError, r"explain\(\*batch\)"),
    "boxes": (lambda: (iter([(TENSORS[0], {"boxes": 1})]), None), LabelError, "received dict"),
    "pictures": (lambda: (Pictures(), None), ImageError, "transform"),
}


class Pictures(Singles):
    def __getitem__(self, index):
        return object(), 1


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_to_do(name):
    make, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        GuidedBackprop(in_torch()).explain(*make())


def test_data_that_never_ends_and_data_that_is_one_batch():
    method = GuidedBackprop(in_keras())
    with pytest.raises(ImageError, match=r"without end. Pass data.take"):
        method.explain(tf.data.Dataset.from_tensor_slices((ROWS, IDS)).batch(3).repeat())
    with pytest.raises(ImageError, match=r"received ndarray. Pass a loader"):
        method.explain_batches(ROWS)
