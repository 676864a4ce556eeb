"""What other libraries call it, and what it is called here: one table, and the errors that answer with it.

A keyword or an attribute that does not exist here is Python's own TypeError or AttributeError, with the answer in it.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NoReturn, ParamSpec, Self, TypeVar

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")

_LABELS = "It is called labels: explain(images, labels)."
_IMAGES = "It is called images: explain(images, labels)."
_LAYER = (
    "It is called layer: GradCAM(model, layer); for a layer's own neurons, GuidedBackprop(model, output_layer=...)."
)
_SAMPLES = "Copies with noise are made by SmoothGrad(method, samples=...)."
_NOISE = "Copies with noise are made by SmoothGrad(method, noise=...), a share of each image's range."
_BATCH_SIZE = "It is called batch_size, an option of the method: GuidedBackprop(model, batch_size=...)."
_OF_THE_METHOD = "It is an option of the method that makes the maps, as of GuidedBackprop(model, ...)."
_DEVICE = "Maps are made where the images are: model.to(device), images.to(device)."
_SIGNED = "Maps are signed; for magnitudes without channels, Saliency(model, reducer='absmax')."
_UNSCALED = "Maps are in units of score; guided_backprop.render.heatmap scales them for looking."
_AXES = "It is called ax: explanations[:1].plot(ax=ax, panels=['overlay']), an axis for each panel."
_SAVE = "Write explanations.plot('maps.png'); explanations.save(folder) writes a picture of each kind, and the arrays."
_NOT_NEEDED = "Leave it out: the model is run as it is, and never changed."
_EXPLAIN = "Write method.explain(images, labels), or method(images, labels)."

#: Arguments, as Xplique, Captum, tf-keras-vis and pytorch-grad-cam call them.
ARGUMENTS = {
    "targets": _LABELS,
    "target": _LABELS,
    "target_category": _LABELS,
    "class_idx": _LABELS,
    "score": _LABELS,
    "y": _LABELS,
    "inputs": _IMAGES,
    "input": _IMAGES,
    "input_tensor": _IMAGES,
    "seed_input": _IMAGES,
    "x": _IMAGES,
    "additional_forward_args": "Pass several inputs as a tuple: explain((images, further), labels).",
    "operator": "What is explained is said in explain(images, labels): by ids, weights, mask=, a Box or a callable.",
    "forward_func": "It is called model: GuidedBackprop(model).",
    "conv_layer": _LAYER,
    "layer": _LAYER,
    "target_layer": _LAYER,
    "target_layers": _LAYER,
    "penultimate_layer": _LAYER,
    "at_layer": "It is called input_layer, where the explanation begins: GuidedBackprop(model, input_layer=...).",
    "neuron_selector": "It is a label: GuidedBackprop(model, output_layer=layer).explain(images, (2, 'max')).",
    "attribute_to_layer_input": "Name the layer before it: GuidedBackprop(model, output_layer=...).",
    "nb_samples": _SAMPLES,
    "n_samples": _SAMPLES,
    "nt_samples": _SAMPLES,
    "smooth_samples": _SAMPLES,
    "samples": _SAMPLES,
    "noise": _NOISE,
    "stdevs": _NOISE,
    "smooth_noise": _NOISE,
    "nt_type": "It is called form: SmoothGrad(method, form='mean'), 'squared' or 'variance'.",
    "baselines": "It is called baseline: IntegratedGradients(method, baseline=...).",
    "baseline_value": "It is called baseline: IntegratedGradients(method, baseline=...).",
    "n_steps": "It is called steps: IntegratedGradients(method, steps=...).",
    "internal_batch_size": _BATCH_SIZE,
    "nt_samples_batch_size": _BATCH_SIZE,
    "batch_size": _OF_THE_METHOD,
    "reducer": _OF_THE_METHOD,
    "output_layer": _OF_THE_METHOD,
    "output": _OF_THE_METHOD,
    "undo_head": _OF_THE_METHOD,
    "device": _DEVICE,
    "device_ids": _DEVICE,
    "use_cuda": _DEVICE,
    "abs": _SIGNED,
    "keepdims": "All channels are kept unless the method has a reducer: GuidedBackprop(model, reducer=None).",
    "gradient_modifier": _SIGNED,
    "normalize_map": _UNSCALED,
    "normalize_cam": _UNSCALED,
    "expand_cam": "Maps have the images' size: GradCAM(model, layer, interpolation='linear').",
    "interpolate_mode": "It is called interpolation: GradCAM(model, layer, interpolation='linear').",
    "model_modifier": _NOT_NEEDED,
    "clone": _NOT_NEEDED,
    "training": _NOT_NEEDED,
    "progress": "Write for explanations in tqdm(method.explain_batches(batches)).",
    "verbose": "It is called progress: explain(images, progress=True).",
    "axes": _AXES,
    "fig_size": "It is called figsize, width and height in inches: plot(figsize=(10, 4)).",
    "plt_fig_axis": _AXES,
    "colormap": "It is called cmap: plot(cmap='viridis').",
    "alpha": "The overlay is one of the panels: plot(panels=['overlay']).",
    "method": "The kind of picture is one of the panels: plot(panels=['diverging']).",
    "sign": "Signed maps are panels=['diverging'], magnitudes panels=['magnitude'].",
    "outlier_perc": "It is called percentile, of what remains: plot(percentile=98).",
    "clip_percentile": "It is called percentile, of what remains: plot(percentile=99).",
    "save": _SAVE,
    "save_path": _SAVE,
    "path": _SAVE,
}
#: Attributes of a method.
OF_METHODS = {
    "attribute": f"{_EXPLAIN} Captum's own calls are in guided_backprop.captum.",
    "attributions": _EXPLAIN,
    "compute": _EXPLAIN,
    "forward": _EXPLAIN,
    "generate_gradients": _EXPLAIN,
    "predict": f"{_EXPLAIN} The result's outputs are the model's own.",
    "to": _DEVICE,
    "cuda": _DEVICE,
    "cpu": _DEVICE,
    "eval": "Modes are the model's: model.eval().",
    "model": "It is method.subject.model.",
    "operator": "What is explained is said by the labels of explain(images, labels).",
    "has_convergence_delta": "Captum's own calls are in guided_backprop.captum.",
    "multiplies_by_inputs": "Captum's own calls are in guided_backprop.captum.",
}
#: Attributes of what a method returns.
OF_RESULTS = {
    "numpy": "Write np.asarray(explanations).",
    "to_numpy": "Write np.asarray(explanations).",
    "detach": "The array is explanations.attribution.",
    "cpu": "The array is explanations.attribution.",
    "to": "The array is explanations.attribution.",
    "dtype": "The array is explanations.attribution.",
    "ndim": "The array is explanations.attribution.",
    "values": "The array is explanations.attribution.",
    "attributions": "The array is explanations.attribution.",
    "show": "Write explanations.plot(); a notebook shows explanations by themselves.",
    "visualize": "Write explanations.plot().",
    "heatmap": "Write explanations.plot(panels=['magnitude']), or guided_backprop.render.heatmap(array).",
    "overlay": "Write explanations.plot(panels=['overlay']), or guided_backprop.render.overlay(image, array).",
    "to_html": "guided_backprop.report.Report writes a page.",
    "plot": "Plot a slice, as explanations[:1].plot().",
    "save": "Save a slice, as explanations[:1].save(folder).",
    "to_dataframe": "Of a table it is pandas.DataFrame(np.asarray(explanations), columns=names).",
}
# What has to be given, and how to come by it.
_NEEDED = {
    "layer": "Name a convolutional layer, usually the last; layer_names(model) lists them.",
    "methods": "Pass a list of methods: [Saliency(model), GuidedBackprop(model)].",
}


def answering(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Let a function, or a class's ``__init__``, answer calls that do not fit its signature, which stays the same."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            # Of a call that fits the error came from inside, and is left as it is: to see that first takes its time.
            if _fits(signature, args, kwargs):
                raise
            raise _Call.of(function, signature, args, kwargs).answer from error

    return call


def _fits(signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class Answering:
    """A class whose missing attributes are answered by a table."""

    __slots__ = ()

    #: From the attribute's name to what to write instead.
    answers: ClassVar[Mapping[str, str]] = {}

    # Not for the type checker: it would take every attribute for one that exists.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in self.answers and name not in dir(type(self)):
                raise AttributeError(
                    f"{type(self).__name__} has no attribute {name!r}. {self.answers[name]}", name=name, obj=self
                )
            # Python's own error; and that of a property which looked for what is not there.
            return object.__getattribute__(self, name)


class _Call(NamedTuple):
    """A call that does not fit a signature.

    Attributes:
        name: what is called, as the user writes it.
        kind: the class that it belongs to, or None.
        parameters: what it takes, without ``self``.
        args: what was given by position.
        kwargs: what was given by name.
    """

    name: str
    kind: type | None
    parameters: list[inspect.Parameter]
    args: tuple[object, ...]
    kwargs: dict[str, object]

    @classmethod
    def of(
        cls,
        function: Callable[..., object],
        signature: inspect.Signature,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> Self:
        first, *others = signature.parameters.values()
        if first.name != "self":
            return cls(function.__name__, None, [first, *others], args, kwargs)
        kind = type(args[0])
        name = function.__name__.replace("__init__", kind.__name__).replace("__call__", "explain")
        return cls(name, kind, others, args[1:], kwargs)

    @property
    def answer(self) -> TypeError:
        """The error: the first thing that is wrong, and what to write."""
        names = [one.name for one in self.parameters]
        by_position = [one.name for one in self.parameters if one.kind is not one.KEYWORD_ONLY]
        filled = by_position[: len(self.args)]
        for name, value in self.kwargs.items():
            if name not in names:
                received = f"takes {', '.join(names)}; received {name}={_brief(value)}"
                return self._error(f"{received}. {self._advice(name, names)}")
            if name in filled:
                return self._error(f"takes {name} once; received it with and without its name. Leave one out.")
        if len(self.args) > len(by_position):
            others = ", ".join(f"{name}=" for name in names if name not in by_position)
            advice = f"Name what it is: {others}." if others else "Leave it out."
            received = _brief(self.args[len(by_position)])
            return self._error(f"takes {' and '.join(by_position)} by position; received also {received}. {advice}")
        needed = [one.name for one in self.parameters if one.default is one.empty]
        missing = next(name for name in needed if name not in filled and name not in self.kwargs)
        advice = _NEEDED.get(missing, f"Pass {missing}=.")
        return self._error(f"takes {', '.join(names)}; received no {missing}. {advice}")

    def _advice(self, unknown: str, names: list[str]) -> str:
        """Return what to write in place of an unknown keyword."""
        elsewhere = {} if self.kind is None else {"__init__": self.kind.__name__, "explain": "explain"}
        for method, called in elsewhere.items():
            function = getattr(self.kind, method, None)
            if function is not None and called != self.name and unknown in inspect.signature(function).parameters:
                return f"It is an option of {called}(..., {unknown}=...)."
        if unknown in ARGUMENTS:
            return ARGUMENTS[unknown]
        near = get_close_matches(unknown, names, 1)
        return f"Did you mean {near[0]}=?" if near else "Leave it out."

    def _error(self, message: str) -> TypeError:
        return TypeError(f"{self.name}() {message}")


def _brief(value: object) -> str:
    """Return a value in a few letters: an array by what it is."""
    return type(value).__name__ if hasattr(value, "shape") or callable(value) else f"{value!r:.80}"
