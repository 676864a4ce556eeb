"""SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825): the maps of noisy copies of an image, put together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Array, Images, Inputs, Labels, NumpyArray, Tensor, as_numpy
from guided_backprop.backends.base import Attributed, Backend, Weigh
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export.plan import Noise, Plan
from guided_backprop.foreign import answering
from guided_backprop.labels.label import Label
from guided_backprop.labels.parse import parse_label
from guided_backprop.methods.around import Around
from guided_backprop.methods.batches import put_together
from guided_backprop.methods.data import given
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_integer, is_number, require
from guided_backprop.progress import Progress
from guided_backprop.subject import brief

Form = Literal["mean", "absolute", "squared", "variance"]


class SmoothGrad(Around):
    """The maps of noisy copies of an image, put together: what they share stays.

    With m the map of a noisy copy, and the mean over copies:

    * "mean": mean(m), SmoothGrad (arXiv:1706.03825), in the method's units, signed;
    * "absolute": the mean of the magnitudes of m, in the method's units;
    * "squared": mean(m²), SmoothGrad-Squared (Hooker et al. 2018, arXiv:1806.10758), in squared units;
    * "variance": mean((m - mean(m))²), VarGrad (Adebayo et al. 2018, arXiv:1810.03307), in squared units.

    Copies are explained with what the labels mean for the image itself: its top class, or its strongest
    position, stays the one that is explained. Channels are reduced at the end. The memory is that of one batch
    of the method, and that of a few maps.

    Args:
        method: any method that explains images, made for the model; its ``batch_size`` says how many copies are
            explained at once, as many as there are images if it is None.
        samples: how many noisy copies there are of each image.
        noise: the standard deviation of the Gaussian noise, as a share of each image's range (highest value
            minus lowest).
        seed: chooses the noise, which depends on it and on the image's position in the batch alone: not on
            ``batch_size``, the framework or the global random state.
        form: "mean", "absolute", "squared" or "variance".

    Raises:
        OptionError: an option has a value that is not offered; or the method has an ``input_layer``.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop, SmoothGrad
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> smooth = SmoothGrad(GuidedBackprop(model), samples=8, noise=0.1, seed=1)
        >>> smooth.explain(torch.rand(5, 4), 1).attribution.shape
        torch.Size([5, 4])
        >>> smooth.name
        "SmoothGrad(GuidedBackprop, samples=8, noise=0.1, seed=1, form='mean')"
    """

    @answering
    def __init__(
        self, method: Method, *, samples: int = 50, noise: float = 0.15, seed: int = 0, form: Form = "mean"
    ) -> None:
        names = get_args(Form)
        is_noise = is_number(noise) and 0 <= noise < np.inf
        super().__init__(method)
        require(
            Requirement("samples", samples, is_integer(samples, least=1), "a positive integer", "Try 50."),
            Requirement("noise", noise, is_noise, "a number of 0 or more", "Try 0.15."),
            Requirement("seed", seed, is_integer(seed, least=0), "an integer of 0 or more", "Pass 0."),
            Requirement("form", form, form in names, f"one of {', '.join(names)}", "Pass one of these names."),
        )
        if method.explains_inside:
            raise OptionError(
                "SmoothGrad puts noise on images; received a method with "
                f"input_layer={brief(method.subject.input_layer)}, which explains none. Leave it out."
            )
        self.samples, self.noise, self.seed, self.form = samples, noise, seed, form

    def _described(self, method: str) -> str:
        how = f"samples={self.samples}, noise={self.noise:g}, seed={self.seed}, form={self.form!r}"
        return f"SmoothGrad({method}, {how})"

    @property
    def plan(self) -> Plan:
        return replace(self.method.plan, noise=Noise(self.samples, self.noise, self.form, self._drawn))

    def _drawn(self, inputs: Inputs) -> list[NumpyArray]:
        """Return the noise of each image, ``(N, samples, ...)`` for each input that has some, unscaled."""
        count = inputs.count
        rows, samples = np.repeat(np.arange(count), self.samples), np.tile(np.arange(self.samples), count)
        generators = self._generators(rows, samples)
        arrays = [array for array in map(as_numpy, inputs.arrays) if array.dtype.kind == "f"]
        drawn = [_normal(generators, array.shape[1:]) for array in arrays]
        return [noise.reshape(count, self.samples, *noise.shape[1:]) for noise in drawn]

    def _generators(self, rows: NumpyArray, samples: NumpyArray) -> list[np.random.Generator]:
        """Return what the noise of each copy is drawn from: of all its inputs, one after the other."""
        return [np.random.default_rng([self.seed, *key]) for key in zip(rows.tolist(), samples.tolist(), strict=True)]

    @answering
    def explain(
        self, images: Images, labels: Labels = None, *, mask: Array | None = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image, as :meth:`Method.explain` does; scores and outputs are the image's own."""
        method = self.method
        images, labels = given(method.subject, images, labels)
        clean = method.explain(images, labels, mask=mask, progress=False)
        count = len(clean)
        if not count:
            return replace(clean, method=self.name)
        inputs = Inputs.of(images)
        backend = method.subject.backend(inputs)
        target = parse_label(labels, count, mask)
        weights = target.weigh(clean.outputs, 0, backend.channel_axis(clean.outputs) or 1)
        means: list[Inputs] = []
        squares: list[Inputs] = []
        copies = np.arange(count * self.samples)
        size = method.batch_size or count
        with Progress(len(copies), "copies of images", shown=progress) as shown:
            for batch in np.split(copies, range(size, len(copies), size)):
                rows = batch % count
                noisy = self._noisy(backend, inputs, rows, batch // count)
                maps = method.explain_batch(backend, noisy, _weighing(weights, rows), target.score).attribution
                if not means:
                    means, squares = _zeros(maps, count), _zeros(maps, count)
                for sums in zip(means, squares, maps, strict=True):
                    for mean, square, attribution in zip(*(label.arrays for label in sums), strict=True):
                        self._add(mean, square, attribution, batch, count)
                shown.advance(len(batch))
        return self._result(backend, clean, squares if self.form == "variance" else means, target)

    def _noisy(self, backend: Backend, inputs: Inputs, rows: NumpyArray, samples: NumpyArray) -> Inputs:
        """Return copies of the images at ``rows``, each with its own noise."""

        def copies(images: Array) -> Tensor:
            array = as_numpy(images)[rows]
            if not backend.is_floating(images):
                return backend.from_numpy(array, images)
            noise = _normal(generators, array.shape[1:])
            spread = np.ptp(array.reshape(len(array), -1).astype(np.float64), axis=1) * self.noise
            return backend.from_numpy(array + noise * spread.reshape(-1, *[1] * (array.ndim - 1)), images)

        generators = self._generators(rows, samples)
        return inputs.map(copies)

    def _add(
        self, mean: NumpyArray, square: NumpyArray, attribution: Array | None, batch: NumpyArray, count: int
    ) -> None:
        """Bring the mean of maps, and the mean square of what they differ from it by, up to date."""
        if attribution is None:
            return
        for noisy, value in zip(batch, as_numpy(attribution).astype(np.float64), strict=True):
            row, number = noisy % count, noisy // count + 1
            new = value**2 if self.form == "squared" else np.abs(value) if self.form == "absolute" else value
            before = new - mean[row]
            mean[row] += before / number
            # Welford's update: both differences are small where the maps agree, so nothing cancels.
            square[row] += (before * (new - mean[row]) - square[row]) / number

    def _result(self, backend: Backend, clean: Explanations, moments: list[Inputs], target: Label) -> Explanations:
        """Return the explanations with these maps, in the images' kind, and reduced as the method says."""
        inputs, is_many = Inputs.of(clean.images), target.is_many(clean.outputs)
        maps = [label.map(backend.from_numpy, inputs) for label in moments]
        scores = clean.scores.T if is_many else clean.scores[None]
        whole = Attributed(maps, scores, clean.outputs, clean.coverage, clean.head, engine=clean.engine)
        together = put_together(backend, whole, clean.reducer, Inputs.of(clean.channel_axis), is_many=is_many)
        return replace(clean, attribution=together.attribution.images, method=self.name)


class SquareGrad(SmoothGrad):
    """``SmoothGrad(method, form="squared")``, by the name that it goes by (Hooker et al. 2018, arXiv:1806.10758).

    Example:
        >>> from guided_backprop import Saliency, SquareGrad
        >>> SquareGrad(Saliency(abs), samples=8).name
        "SmoothGrad(Saliency, samples=8, noise=0.15, seed=0, form='squared')"
    """

    @answering
    def __init__(self, method: Method, *, samples: int = 50, noise: float = 0.15, seed: int = 0) -> None:
        super().__init__(method, samples=samples, noise=noise, seed=seed, form="squared")


class VarGrad(SmoothGrad):
    """``SmoothGrad(method, form="variance")``, by the name that it goes by (Adebayo et al. 2018, arXiv:1810.03307).

    Example:
        >>> from guided_backprop import Saliency, VarGrad
        >>> VarGrad(Saliency(abs), samples=8).name
        "SmoothGrad(Saliency, samples=8, noise=0.15, seed=0, form='variance')"
    """

    @answering
    def __init__(self, method: Method, *, samples: int = 50, noise: float = 0.15, seed: int = 0) -> None:
        super().__init__(method, samples=samples, noise=noise, seed=seed, form="variance")


def _weighing(weights: Sequence[NDArray[np.float64]], rows: NumpyArray) -> Weigh:
    """Return what weighs the outputs of copies as those of the images at ``rows``, whatever they are."""
    return lambda outputs: [label[rows] for label in weights]


def _normal(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.stack([generator.normal(size=shape) for generator in generators])


def _zeros(maps: list[Inputs], count: int) -> list[Inputs]:
    return [label.map(lambda attribution: np.zeros((count, *attribution.shape[1:]))) for label in maps]
