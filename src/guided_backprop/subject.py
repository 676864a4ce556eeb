"""A model and what is said about it: what every method holds, and asks for all that depends on the model.

A subject is a value. Other versions of it are made with ``dataclasses.replace``, so that what is said about the model
goes along wherever it is not changed, whatever there is to say. Two subjects are equal only if all of it is.
"""

import threading
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

from guided_backprop.arrays import Images, Inputs, Layer, Model, NumpyArray
from guided_backprop.backends import backend_of, framework_of
from guided_backprop.backends.base import Backend, Setup
from guided_backprop.backends.mistakes import refuse_no_model
from guided_backprop.backends.network import Network, name_of
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.backends.refusals import no_layers
from guided_backprop.backends.runs import is_pair
from guided_backprop.errors import ImageError
from guided_backprop.foreign import answering


@answering
def layer_names(model: Model, images: Images = None) -> list[str]:
    """Return the names that ``output_layer``, ``input_layer`` and ``layer`` may have, in the model's own order.

    Args:
        model: a ``torch.nn.Module``, whose modules are named as in ``named_modules()``; a Keras model, whose layers
            are named by the way to them, as "resnet50/conv1_relu" for one in a model inside of it; or a JAX function
            that names its values with ``guided_backprop.jax.tap``.
        images: a batch of the images, for a JAX function: its names are known when it is traced.

    Raises:
        ModelError: the model has no layers: it is a plain function, a scripted module or of another kind.

    Example:
        >>> import torch
        >>> from guided_backprop import layer_names
        >>> layer_names(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
        ['0', '1']
    """
    return Subject(model).layer_names(images)


class _Backends:
    """The backends of one subject, one for each framework, made when they are first asked for and kept."""

    def __init__(self) -> None:
        self._made: dict[str, Backend] = {}
        self._lock = threading.RLock()

    def get(self, framework: str, make: Callable[[], Backend]) -> Backend:
        """Return the backend of a framework, made by whichever thread comes first."""
        with self._lock:
            if framework not in self._made:
                self._made[framework] = make()
            return self._made[framework]

    def __reduce__(self) -> tuple[type["_Backends"], tuple[()]]:
        # A copy of a subject, in this process or in another one, makes its own.
        return _Backends, ()


@dataclass(frozen=True, eq=False, repr=False)
class Subject(Setup):
    """A model and what is said about it; see :class:`Setup`.

    Raises:
        ModelError: the model is none: a path, a class, a pipeline...
    """

    _backends: _Backends = field(default_factory=_Backends, init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no model: here, once, and not in each call."""
        refuse_no_model(self.model)

    def __eq__(self, other: object) -> bool:
        """Tell whether the same is said about the same model."""
        if not isinstance(other, Subject) or type(other) is not type(self):
            return NotImplemented
        names = [option.name for option in fields(self) if option.compare]
        return all(is_same(getattr(self, name), getattr(other, name)) for name in names)

    # What is said may be in dictionaries.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the model's name, and what is said that is no default, on one line."""
        return f"{type(self).__name__}({self.described()})"

    def described(self) -> str:
        """Return the model's name, and what is said that is no default, as in a call."""
        options = []
        for option in fields(self):
            said = getattr(self, option.name)
            default = option.default if option.default_factory is MISSING else option.default_factory()
            if option.compare and option.name != "model" and not is_same(said, default):
                options.append(f"{option.name}={brief(said)}")
        return ", ".join([self.name, *options])

    @property
    def name(self) -> str:
        """The model's name, for people."""
        network = self._network()
        return name_of(self.model) if network is None else network.name

    def check(self) -> None:
        """Raise what can be told to be wrong without images.

        Raises:
            ModelError: the model has no layers by name, and one was named; or Keras runs on another framework.
            OptionError: the model has no such layer, or its framework no such option.
            MissingExtraError: the model's framework is not imported.
        """
        framework = framework_of(self.model)
        # An optimised one waits for images, and was checked when it was not optimised.
        if framework is not None and not self.is_optimized:
            self._backends.get(framework, lambda: self._make(framework))

    def backend(self, images: Images) -> Backend:
        """Return what runs the model on such images; it is made once.

        Raises:
            ImageError: the model is a plain function, and the images do not tell its framework.
            GuidedBackpropError: all that :meth:`check` raises.
        """
        inputs = Inputs.of(images)
        framework = framework_of(self.model, *inputs.arrays)
        if framework is None:
            raise ImageError(
                "images must be a tensor of the model's framework where the model is a plain function; "
                f"received images={type(inputs.images).__name__}. Convert the images first."
            )
        return self._backends.get(framework, lambda: self._make(framework, inputs))

    def layer_names(self, images: Images = None) -> list[str]:
        """Return the names of the model's layers; see :func:`layer_names`."""
        network = self._network(images)
        if network is None:
            raise no_layers(self.model)
        return network.layer_names(images)

    def up_to(self, layer: Layer) -> Self:
        """Return the model up to a layer."""
        return replace(self, output_layer=layer)

    def beginning_at(self, layer: Layer) -> Self:
        """Return the same with a gradient that is taken at a layer's output; run as it is, for that is inside."""
        return replace(self, input_layer=layer, is_optimized=False)

    def around(self, model: Model) -> Self:
        """Return what is said, about a copy of the model, which is run as it is."""
        begin, end = self._name_of(self.input_layer), self._name_of(self.output_layer)
        # Where none was chosen the model runs it once, as a run of the whole model showed: a copy is run no further.
        end = end if end is None or is_pair(end) else (end, 0)
        return replace(self, model=model, input_layer=begin, output_layer=end, is_optimized=False)

    def optimized(self, images: Images) -> Self:
        """Return the same, run faster, having tried it on these images."""
        inputs = Inputs.of(images)
        backend = self.backend(inputs).optimized(inputs)
        other = replace(self, is_optimized=True)
        other._backends.get(backend.framework, lambda: backend)
        return other

    def private_copy(self, images: Images, seed: int) -> PrivateCopy:
        """Return a private copy of the model, whose layers can be re-initialised.

        Args:
            images: some images; the order in which the model uses its layers for them is noted.
            seed: chooses what layers are re-initialised to.

        Raises:
            ModelError: the model hides its weights, or can't be copied.
            OptionError: the model ends at a value that a copy has no name for.
        """
        inputs = Inputs.of(images)

        def run(model: Model) -> NumpyArray:
            return self.around(model).backend(inputs).outputs(inputs)

        return self.backend(inputs).network.private_copy(inputs, run, seed)

    def _make(self, framework: str, images: Images = None) -> Backend:
        backend = backend_of(framework)(self)
        return backend.optimized(Inputs.of(images)) if self.is_optimized else backend

    def _network(self, images: Images = None) -> Network | None:
        """Return the whole model as its framework asks it; None if nothing tells the framework."""
        framework = framework_of(self.model, *Inputs.of(images).arrays)
        return None if framework is None else backend_of(framework).network_of(self.model)

    def _name_of(self, layer: Layer) -> Layer:
        """Return a layer that is given by itself by its name, which a copy has as well."""
        if is_pair(layer):
            return (self._name_of(layer[0]), *layer[1:])
        network = self._network()
        return layer if network is None or layer is None or isinstance(layer, (int, str)) else network.layer_name(layer)


def brief(value: Any) -> str:
    """Return an option on one line: of what can be called what it is, for a layer's own repr fills a page."""
    if is_pair(value) and any(map(callable, value)):
        return f"({', '.join(map(brief, value))})"
    return type(value).__name__ if callable(value) else repr(value)


def is_same(one: object, other: object) -> bool:
    """Tell whether two options are known to be the same.

    What can be called, as a model or a layer, is the same as itself alone: its == may compare weights, or be an array.
    Where == says neither yes nor no, as of arrays, options are taken to differ: that costs a forward pass, and makes no
    map wrong.
    """
    if one is other:
        return True
    if type(one) is not type(other) or callable(one):
        return False
    try:
        return (one == other) is True
    except Exception:
        return False
