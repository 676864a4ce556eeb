"""What both frameworks' halves of the benchmark share: the words for networks and contestants, and the check of maps.

A framework hands over its networks, its contestants and a reference map; nothing here imports a framework.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

import guided_backprop

Array = NDArray[Any]
Explain = Callable[[Any, Any], Any]
Prepare = Callable[[Any, Any], Explain]

FORWARD, GRADIENT, OURS = "forward", "gradient", "ours"
FAST_FORWARD, ENGINE_FORWARD, PRODUCTS = "forward folded", "forward in an engine", "products alone"
OURS_LIBRARY = "guided-backprop"
# Relative to the reference map's norm. In float32 a ReLU nearly at a tie may open or close, and a pixel with it.
TOLERANCES = {"float64": 1e-6, "float32": 2e-2}
_CHECKED_IMAGES = 2


@dataclass(frozen=True)
class Network:
    """A model to explain.

    Attributes:
        build: from a dtype to the model in it, in inference mode, the same in each call.
        shape: of one image.
        classes: how many.
        relus: how often a ReLU is called in one forward pass, as the architecture's paper has it.
    """

    build: Callable[[str], Any]
    shape: tuple[int, ...]
    classes: int
    relus: int

    def images(self, count: int) -> Array:
        return np.random.default_rng(1).normal(size=(count, *self.shape))

    def labels(self, count: int, sets: int = 1) -> Array:
        """Return one class id for each image, or a row of ``sets`` different ones."""
        ids = (np.arange(count)[:, None] * 7 + np.arange(sets) * 3 + 1) % self.classes
        return ids[:, 0] if sets == 1 else ids


@dataclass(frozen=True)
class Contestant:
    """A way to explain.

    Attributes:
        prepare: from model and images to the function that is timed; what is done once for a model is done here.
        library: its distribution.
        takes_label_sets: whether it explains several labels of an image in one call.
        batches_itself: whether it takes any number of images, and splits them.
        explains: whether it makes a map, or only predicts.
    """

    prepare: Prepare
    library: str
    takes_label_sets: bool = False
    batches_itself: bool = False
    explains: bool = True


@dataclass(frozen=True)
class Framework:
    """One half of the benchmark.

    Attributes:
        name: as in the command line.
        library: its distribution.
        networks: all of them; ``models`` are those of the main table, and ``job_model`` is the one of the jobs.
        contestants: by name, those of the main table; the first two are the model's own forward pass and gradient.
        variants: further contestants, by name.
        tensor: from a NumPy array and a dtype to a tensor.
        twin: a copy of a model that shares its weights, since some contestants change the model they are given.
        reference: the guided map, written down here once more, and how many ReLUs it met on the way.
        threads: how many threads compute.
        array: from what a contestant returns to a NumPy array.
    """

    name: str
    library: str
    networks: Mapping[str, Network]
    models: Sequence[str]
    job_model: str
    contestants: Mapping[str, Contestant]
    variants: Mapping[str, Contestant]
    tensor: Callable[[Array, str], Any]
    twin: Callable[[Any], Any]
    reference: Callable[[Any, Any, Any], tuple[Array, int]]
    threads: Callable[[], int]
    array: Callable[[Any], Array] = np.asarray

    def contestant(self, name: str) -> Contestant:
        return self.contestants[name] if name in self.contestants else self.variants[name]

    def inputs(self, model: str, count: int, dtype: str = "float32", sets: int = 1) -> tuple[Any, Any]:
        """Return images and labels as tensors."""
        network = self.networks[model]
        return self.tensor(network.images(count), dtype), self.tensor(network.labels(count, sets), "int64")


def load(name: str, device: str | None = None) -> Framework:
    """Return one half, on a device of PyTorch's if one is named; only then is its framework imported."""
    # Some libraries warn in every call of what they do to a model.
    warnings.simplefilter("ignore")
    half = import_module(f"contestants_{name}")
    framework: Framework = half.on(device) if device else half.FRAMEWORK
    return framework


def described(distribution: str) -> str:
    # This library runs from its source, and is not installed.
    number = guided_backprop.__version__ if distribution == OURS_LIBRARY else version(distribution)
    return f"{distribution} {number}"


def message(error: Exception) -> str:
    """Return the first words of an error, without paths: they are of no interest to others."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return re.sub(r"\S*/\S+", "...", text)[:200]


@dataclass(frozen=True)
class Verdict:
    """What the check of one contestant on one model gave.

    Attributes:
        word: "right", "wrong" or "error".
        dtype: what it was checked in: float64, unless the contestant cannot.
        difference: the norm of the difference to the reference, relative to the reference's.
        note: which error.
    """

    word: str
    dtype: str
    difference: float
    note: str = ""


class Referee:
    """Compares contestants with the reference map of one model.

    The benchmark stops if the reference misses a ReLU, or if the plain gradient would pass.
    """

    def __init__(self, framework: Framework, model: str) -> None:
        self._framework, self._model = framework, model
        self._cases: dict[str, tuple[Any, Any, Any, Array]] = {}

    def judge(self, contestant: Contestant) -> Verdict:
        """Compare in float64; in float32 if the contestant fails there."""
        failures = []
        for dtype in TOLERANCES:
            # Outside of the try: what is wrong with the comparison itself is nobody's error.
            self._case(dtype)
            try:
                verdict = self._judge(contestant, dtype)
            except Exception as error:
                failures.append(f"in {dtype}: {message(error)}")
            else:
                return replace(verdict, note=" ".join(failures))
        return Verdict("error", dtype, np.nan, " ".join(failures))

    def _judge(self, contestant: Contestant, dtype: str) -> Verdict:
        model, images, labels, wanted = self._case(dtype)
        explain = contestant.prepare(self._framework.twin(model), images)
        found = self._framework.array(explain(images, labels)).astype(np.float64)
        if found.shape != wanted.shape:
            raise ValueError(f"a map of shape {found.shape}, where {wanted.shape} is right")
        difference = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        return Verdict("right" if difference < TOLERANCES[dtype] else "wrong", dtype, difference)

    def _case(self, dtype: str) -> tuple[Any, Any, Any, Array]:
        """Return model, images, labels and the reference map; built when first asked for."""
        if dtype not in self._cases:
            network = self._framework.networks[self._model]
            model = network.build(dtype)
            images, labels = self._framework.inputs(self._model, _CHECKED_IMAGES, dtype)
            wanted, met = self._framework.reference(self._framework.twin(model), images, labels)
            assert met == network.relus, f"{self._model}: the reference met {met} ReLUs of {network.relus}"
            assert 0 < np.linalg.norm(wanted) < np.inf, f"{self._model}: no map to compare with"
            self._cases[dtype] = (model, images, labels, wanted)
            planted = self._judge(self._framework.contestants[GRADIENT], dtype)
            assert planted.word == "wrong", f"{self._model}: the plain gradient passes for the guided one"
        return self._cases[dtype]
