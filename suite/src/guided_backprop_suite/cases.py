"""Cases, and how an answer is judged: right, error or wrong. No framework here.

A case is a network of the file, built by a framework in one way. An adapter, ``(model, images, labels) -> map``, is
given a fresh model; what it returns is compared with the oracle's map, and what it left behind with what was there.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np

from guided_backprop_suite.networks import Array, Network, networks

Model = Callable[[Any], Any]
#: From a model, images and labels ``(N,)`` to the map: the one function that a library is called by.
Adapter = Callable[[Any, Any, Any], Any]
Word = Literal["right", "error", "wrong"]

#: Relative, and of the largest value; what one ReLU changes is a hundredth of that, or more.
_TOLERANCE = {"float64": (1e-9, 1e-12), "float32": (1e-3, 1e-4)}
_THREADS = 4


class Asked(Enum):
    """What is asked of the adapter."""

    #: The map of a fresh model.
    MAP = "map"
    #: The same, and what was there is left as it was: weights, gradients, hooks, modes, random state, images.
    STATE = "state"
    #: The map from four threads at once, of one model.
    THREADS = "threads"
    #: Nothing: no map is right, for the model draws at random. An error is.
    REFUSAL = "refusal"


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table.

    Attributes:
        group: what it is about: "spellings", "shapes", "ties"...
        name: how the model is written, or what is done with it.
        network: the network's name in the file.
        build: makes a fresh model of it.
        asked: what is asked of the adapter.
        has_same_gradient: whether the framework's own gradient is the oracle's; at ties conventions differ.
        may_be_refused: whether an error is an answer too, for a ReLU that no operation is.
        meanwhile: where the model calls back while it runs: another thread then takes its plain gradient.
    """

    group: str
    name: str
    network: str
    build: Callable[[Network], Model]
    asked: Asked = Asked.MAP
    has_same_gradient: bool = True
    may_be_refused: bool = False
    meanwhile: bool = False


@dataclass(frozen=True)
class Framework:
    """What the cases of one framework need of it.

    Attributes:
        name: "torch", "keras" or "jax".
        cases: the rows.
        given: from an array in the file's layout to the framework's tensor, in its own.
        back: from a tensor to an array in the file's layout.
        outputs: what a model gives for images.
        gradient: the plain gradient of the chosen outputs, by the framework itself.
        state: what an explanation must leave as it is: of a model by name, and of the framework.
    """

    name: str
    cases: list[Case]
    given: Callable[[Array], Any]
    back: Callable[[Any], Array]
    outputs: Callable[[Model, Any], Any]
    gradient: Callable[[Model, Any, Any], Any]
    state: Callable[[Model], Mapping[str, Any]]


def beside_spellings(relu: str, build: Callable[[Network], Model]) -> list[Case]:
    """Return what is asked of a ReLU in its plainest spelling, beyond that it is found."""
    return [
        Case("branch gates", f"one branch's ReLU times another branch, {relu}", "gate", build),
        Case("branch gates", f"a branch where another is > 0, {relu}", "mask", build),
        Case("guards", f"a variance that `maximum` keeps from rounding, {relu}", "guard", build),
        Case("guards", f"a ReLU in front of a root, {relu}", "root", build),
        Case("batch-norm", f"one image, channels to tokens, {relu}", "tokens", build),
        Case("threads", f"four threads explain one model, {relu}", "residual", build, Asked.THREADS),
    ]


@dataclass(frozen=True)
class Verdict:
    """One cell; the note says which error, or what is wrong."""

    word: Word
    note: str = ""


def is_close(found: Any, wanted: Array) -> bool:
    """Tell whether two arrays are the same but for rounding."""
    found = np.asarray(found)
    relative, of_largest = _TOLERANCE.get(str(found.dtype), _TOLERANCE["float64"])
    is_alike = found.shape == wanted.shape
    return is_alike and np.allclose(found, wanted, rtol=relative, atol=of_largest * np.abs(wanted).max())


def judge(adapter: Adapter, case: Case, framework: Framework) -> Verdict:
    """Explain a fresh model and judge the answer; an error of whatever kind is an error, and no wrong map."""
    network = networks()[case.network]
    model, images = case.build(network), framework.given(network.images)
    if case.meanwhile:
        return _judge_meanwhile(adapter, model, network, framework)
    before = framework.state(model) if case.asked is Asked.STATE else {}
    try:
        maps = _explained(adapter, model, images, network, case.asked)
    except Exception as error:
        return Verdict("error", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    if case.asked is Asked.REFUSAL:
        return Verdict("wrong", "it is one of many maps: the model draws at random")
    judged = [_of_map(framework.back(found), network) for found in maps]
    after = framework.state(model) if before else {}
    changed = [name for name, value in before.items() if not _is_same(value, after.get(name))]
    if not is_close(framework.back(images), network.images):
        changed.append("the images")
    if changed:
        judged.append(Verdict("wrong", f"it changes {', '.join(changed[:3])}" + ", and more" * (len(changed) > 3)))
    return next((verdict for verdict in judged if verdict.word != "right"), judged[0])


def check(case: Case, framework: Framework) -> str:
    """Return what is wrong with a case itself, or nothing: the model must be the network that it claims to be."""
    if case.asked is Asked.REFUSAL:
        return ""
    network = networks()[case.network]
    images, labels = framework.given(network.images), network.labels
    if not is_close(np.asarray(framework.outputs(case.build(network), images)), network.outputs):
        return "another function"
    if not case.has_same_gradient:
        return ""
    gradient = framework.back(framework.gradient(case.build(network), images, labels))
    return "" if is_close(gradient, network.plain) else "another gradient"


def _explained(adapter: Adapter, model: Model, images: Any, network: Network, asked: Asked) -> list[Any]:
    if asked is not Asked.THREADS:
        return [adapter(model, images, network.labels)]
    maps: list[Any] = []
    errors: list[Exception] = []
    start = threading.Barrier(_THREADS)

    def work() -> None:
        start.wait()
        try:
            maps.extend(adapter(model, images, network.labels) for _ in range(3))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return maps


def _judge_meanwhile(adapter: Adapter, model: Any, network: Network, framework: Framework) -> Verdict:
    """Have another thread take the model's plain gradient while it is explained; that must be plain."""
    images, taken = framework.given(network.images), []

    def plain_gradient() -> None:
        taken.append(framework.gradient(model, framework.given(network.images), network.labels))

    model.meanwhile = plain_gradient
    try:
        found = adapter(model, images, network.labels)
    except Exception as error:
        return Verdict("error", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    if not taken or not is_close(framework.back(taken[0]), network.plain):
        return Verdict("wrong", "another thread's plain gradient is changed")
    return _of_map(framework.back(found), network)


def _of_map(found: Array, network: Network) -> Verdict:
    if is_close(found, network.guided):
        return Verdict("right")
    is_plain = is_close(found, network.plain)
    return Verdict("wrong", "it is the plain gradient" if is_plain else "it is neither guided nor plain")


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    return bool(one == other)
