"""What the neurons of a layer look for: the images that excite a channel most, or a direction, and their guided maps.

This is the figure of the paper (Springenberg et al. 2014, arXiv:1412.6806, figures 3 and 4).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guided_backprop.arrays import Images, Inputs, Layer, Model, NumpyArray, as_numpy, as_pictures
from guided_backprop.backends.base import Backend
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError, LabelError, ModelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.foreign import answering
from guided_backprop.methods.data import batches_of, is_data
from guided_backprop.methods.gradients import GuidedBackprop
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_integer, require
from guided_backprop.neurons.directions import Rows, rows_of
from guided_backprop.neurons.receptive_field import Axis, receptive_field
from guided_backprop.show.canvas import figure_kind
from guided_backprop.show.colours import Picture
from guided_backprop.show.render import colour_picture, picture
from guided_backprop.subject import Subject, brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How far an activation on a crop may be from that on the whole image, as a share of the largest: more is no rounding.
_ROUNDING = 1e-3
_GAP = 2


@dataclass(frozen=True, eq=False)
class NeuronGallery:
    """The K images that excite each of C channels of a layer most, strongest first.

    Attributes:
        channels: ``(C,)`` which channels these are; of directions which in their order.
        names: what they are called: "channel 5", or the directions' names.
        images: ``(C, K)`` the image's place in the set.
        positions: ``(C, K, D)`` the neuron's place along the D axes of the layer's output, channels left out.
        activations: ``(C, K)`` the neuron's value, float64.
        boxes: ``(C, K, D, 2)`` where its receptive field begins and ends on the image; at the image's edge the field
            is moved inwards, so that all are of one size.
        crops: ``(C, K, ...)`` these parts of the images, NumPy, in the images' layout.
        attribution: the maps of the crops, of the same shape; signed, in units of activation per unit of image.
        share: how much of the images the backward passes ran on, in (0, 1]: the receptive fields, and what of their
            surroundings strides need.
        coverage: every non-linearity between image and layer, and what was done with it.
        method: the method's name.
        model: the model's name.
        channel_axis: where channels are in one of ``crops[channel]``, counted with the axis of images; None if the
            images have no channels.

    Example:
        >>> import torch
        >>> from guided_backprop import neuron_gallery
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
        >>> gallery = neuron_gallery(model, "2", [1, 6], torch.rand(20, 3, 32, 32), count=4)
        >>> gallery.boxes.shape, gallery.picture().shape
        ((2, 4, 2, 2), (18, 72, 3))
        >>> figure = gallery.plot()  # needs matplotlib
    """

    channels: NDArray[np.int64]
    images: NDArray[np.int64]
    positions: NDArray[np.int64]
    activations: NDArray[np.float64]
    boxes: NDArray[np.int64]
    crops: NumpyArray
    attribution: NumpyArray
    share: float
    coverage: Coverage
    method: str
    model: str
    channel_axis: int | None
    names: tuple[str, ...]

    def picture(self, percentile: float = 99.0) -> Picture:
        """Return one row per channel, crops on the left and their maps on the right, ``(H, W, 3)`` uint8.

        Args:
            percentile: the scale of each map, as in :mod:`guided_backprop.render`.

        Raises:
            ImageError: the crops are no pictures.
        """
        return np.concatenate([self._row(row, percentile) for row in range(len(self.channels))])

    def plot(self, percentile: float = 99.0) -> "Figure":
        """Draw the picture with each channel's name and strongest activation beside it.

        Args:
            percentile: as in :meth:`picture`; the figure states it.

        Raises:
            ImageError: as :meth:`picture`.
            MissingExtraError: matplotlib is not installed.
        """
        kind = figure_kind()
        rows = [self._row(row, percentile) for row in range(len(self.channels))]
        height = 12 * rows[0].shape[0] / rows[0].shape[1]
        figure = kind(figsize=(12, (height + 0.25) * len(rows) + 0.4), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row, name, strongest in zip(panels, rows, self.names, self.activations, strict=True):
            axes.imshow(row)
            axes.set_axis_off()
            axes.set_title(f"{name}, up to {strongest[0]:.4g}", loc="left", fontsize="medium")
        figure.supxlabel(
            f"strongest images, and {self.method} of {self.model}; maps scaled to percentile {percentile:g} "
            "of their magnitudes",
            fontsize="small",
        )
        return figure

    def _row(self, row: int, percentile: float) -> Picture:
        pixels = as_pictures(self.crops[row], self.attribution[row], self.channel_axis, is_reduced=False)
        if pixels is None:
            raise ImageError(
                "a picture needs images (N, C, H, W) or (N, H, W, C); "
                f"received crops of shape {self.crops.shape[2:]}. Use crops and attribution as arrays."
            )
        tiles = [*map(picture, pixels[0]), *(colour_picture(attribution, percentile) for attribution in pixels[1])]
        framed = [np.pad(tile, [(_GAP, _GAP), (_GAP, _GAP), (0, 0)], constant_values=255) for tile in tiles]
        return np.concatenate(framed, axis=1)


@answering
def neuron_gallery(
    model: Model,
    layer: Layer,
    channels: int | Sequence[int] | Mapping[str, ArrayLike],
    images: Images,
    *,
    count: int = 9,
    batch_size: int = 16,
    method: Callable[..., Method] = GuidedBackprop,
) -> NeuronGallery:
    """Find the images that excite channels of a layer most, and explain the neuron that they excite.

    The images are run once forward, up to the layer. Of each image the neuron of the channel at its strongest
    position counts. It is explained on its receptive field alone, for nothing else of the image matters; where its
    value there is not the one that it has on the whole image (the model refuses smaller images, or the layer does
    not look through one moving window), on the whole image.

    Args:
        model: as for :class:`Method`.
        layer: the layer itself, its name, its position in :func:`layer_names`, or a pair of that and which of its runs;
            in JAX functions a name given with ``guided_backprop.jax.tap``.
        channels: which channels of the layer's output, one or several; or a dictionary of directions, by name a vector
            ``(channels,)``: a concept's, or a part that channels have in common. A direction's value at a position is
            the sum of the channels there, each times its entry.
        images: a batch ``(N, ...)`` as for :meth:`Method.explain`, or an iterable of such batches, a data set or a
            loader, which is read once and may be larger than memory; labels that come with it do not count.
        count: how many images are shown of each channel; all, if there are fewer.
        batch_size: how many images are run at once; batches of an iterable are run forward as they are.
        method: makes the method: a class, or ``functools.partial(GuidedBackprop, smooth="guide")`` and the like.

    Raises:
        OptionError: there is no such layer or channel, or a number is not positive.
        ImageError: there are no images, or they have several shapes.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import torch
        >>> from guided_backprop import neuron_gallery
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
        >>> gallery = neuron_gallery(model, "2", [1, 6], torch.rand(20, 3, 32, 32), count=4)
        >>> gallery.crops.shape, gallery.images.shape
        ((2, 4, 3, 5, 5), (2, 4))
    """
    sizes = {"count": count, "batch_size": batch_size}
    require(
        *(
            Requirement(name, size, is_integer(size, least=1), "a positive integer", "Pass 9, for example.")
            for name, size in sizes.items()
        )
    )
    explainer = method(model, output_layer=layer, batch_size=batch_size)
    if explainer.explains_inside:
        raise OptionError(
            "a gallery shows images and explains them; received a method with "
            f"input_layer={brief(explainer.subject.input_layer)}, which explains none. Leave it out."
        )
    chosen = rows_of(channels)
    batches = _batches(explainer.subject, images, batch_size)
    best = _Strongest(chosen, count)
    backend, like, outputs = None, None, None
    for batch in batches:
        inputs = Inputs.of(batch)
        backend = explainer.subject.backend(inputs)
        backend.check_images(inputs)
        outputs = backend.outputs(inputs)
        best.add(batch, outputs, backend.channel_axis(outputs) or 1)
        like = batch[:1]
    if backend is None or outputs is None:
        raise ImageError("images must not be empty; received no image. Pass at least one.")
    axes = receptive_field(backend, like, outputs)
    return _Explainer(explainer, backend, like, axes, chosen).explain(best)


class _Strongest:
    """The strongest images of each channel so far.

    Args:
        chosen: which channels, or directions.
        count: how many images of each are kept.
    """

    def __init__(self, chosen: Rows, count: int) -> None:
        self.chosen, self._count = chosen, count
        self._seen = 0
        # Of each channel: value, the image's place in the set, the neuron's position, and the image.
        self.found: list[list[tuple[float, int, tuple[int, ...], NumpyArray]]] = [[] for _ in chosen.numbers]

    def add(self, images: Images, outputs: NumpyArray, channel_axis: int) -> None:
        """Look at one batch."""
        pixels = as_numpy(images)
        if not len(pixels):
            return
        first = next((image for rows in self.found for *_, image in rows), pixels[0])
        if first.shape != pixels.shape[1:]:
            raise ImageError(
                f"images must all have one shape; received {first.shape} and {pixels.shape[1:]}. Resize them."
            )
        values = self.chosen.planes(np.moveaxis(outputs, channel_axis, 1))
        for number, rows in enumerate(self.found):
            planes = values[:, number].reshape(len(pixels), -1)
            places, strengths = planes.argmax(axis=1), planes.max(axis=1)
            for row in np.argsort(-strengths, kind="stable")[: self._count]:
                position = tuple(map(int, np.unravel_index(places[row], values.shape[2:])))
                rows.append((float(strengths[row]), self._seen + int(row), position, pixels[row].copy()))
            rows.sort(key=lambda entry: (-entry[0], entry[1]))
            del rows[self._count :]
        self._seen += len(pixels)


@dataclass(frozen=True)
class _Explainer:
    """Explains neurons, or directions, on their receptive fields."""

    method: Method
    backend: Backend
    like: Any
    axes: list[Axis]
    chosen: Rows

    def explain(self, best: _Strongest) -> NeuronGallery:
        rows = [(number, *entry) for number, entries in enumerate(best.found) for entry in entries]
        shape = (len(best.found), len(best.found[0]))
        chosen, activations, numbers, positions, images = zip(*rows, strict=True)
        maps, coverage, share = self._maps(chosen, np.array(activations), positions, np.stack(images))
        boxes = [[axis.window(at) for axis, at in self._along(position)] for position in positions]
        parts = [self._slices([(begin, end) for begin, end in box]) for box in boxes]
        return NeuronGallery(
            channels=best.chosen.numbers,
            names=best.chosen.names,
            images=np.reshape(numbers, shape),
            positions=np.reshape(positions, (*shape, -1)).astype(np.int64),
            activations=np.reshape(activations, shape),
            boxes=np.reshape(boxes, (*shape, -1, 2)).astype(np.int64),
            crops=_stacked([image[part] for image, part in zip(images, parts, strict=True)], shape),
            attribution=_stacked([attribution[part] for attribution, part in zip(maps, parts, strict=True)], shape),
            share=share,
            coverage=coverage,
            method=self.method.name,
            model=self.backend.name,
            channel_axis=self.backend.channel_axis(self.like),
        )

    def _maps(
        self,
        chosen: Sequence[int],
        activations: NDArray[np.float64],
        positions: Sequence[tuple[int, ...]],
        images: NumpyArray,
    ) -> tuple[NumpyArray, Coverage, float]:
        """Return the maps at the images' size, the coverage, and how much of the images was run."""
        maps, coverages, run = np.zeros_like(images), [], 0
        left = np.arange(len(images))
        crops = [[axis.crop(at) for axis, at in self._along(position)] for position in positions]
        parts = [self._slices([(begin, end) for begin, end, _ in crop]) for crop in crops]
        pixels = np.stack([image[part] for image, part in zip(images, parts, strict=True)])
        if pixels.size < images.size:
            explained = self._try(pixels, chosen, [tuple(at for *_, at in crop) for crop in crops])
            if explained is not None:
                is_same = np.abs(explained.scores - activations) <= _ROUNDING * np.abs(activations).max()
                for row in np.flatnonzero(is_same):
                    maps[row][parts[row]] = as_numpy(explained.attribution)[row]
                coverages.append(explained.coverage)
                left = np.flatnonzero(~is_same)
                run += pixels.size
        if left.size:
            rows = left.tolist()
            explained = self._explain(images[left], [chosen[row] for row in rows], [positions[row] for row in rows])
            maps[left] = as_numpy(explained.attribution)
            coverages.append(explained.coverage)
            run += images[left].size
        return maps, Coverage.merge(coverages), run / images.size

    def _try(self, pixels: NumpyArray, chosen: Sequence[int], places: list[tuple[int, ...]]) -> Explanations | None:
        """Explain crops; None if the model takes no images of that size."""
        try:
            return self._explain(pixels, chosen, places)
        except (ModelError, LabelError):
            return None

    def _explain(self, pixels: NumpyArray, chosen: Sequence[int], places: list[tuple[int, ...]]) -> Explanations:
        """Explain of each image one channel, or one direction, at one place."""
        images, directions = self.backend.from_numpy(pixels, self.like), self.chosen.directions
        if directions is None:
            numbers = self.chosen.numbers[list(chosen)].tolist()
            return self.method.explain(images, [(number, *at) for number, at in zip(numbers, places, strict=True)])
        first = self.backend.outputs(Inputs.of(images[:1]))
        axis = self.backend.channel_axis(first) or 1
        shape = np.moveaxis(first, axis, 1).shape[1:]
        if any(at >= size for place in places for at, size in zip(place, shape[1:], strict=True)):
            raise LabelError(f"places must be on the layer's output of shape {shape[1:]}; received {places}.")
        weights = np.zeros((len(pixels), *shape))
        for row, (number, at) in enumerate(zip(chosen, places, strict=True)):
            index: tuple[int | slice, ...] = (row, slice(None), *at)
            weights[index] = directions[number]
        return self.method.explain(images, np.moveaxis(weights, 1, axis))

    def _along(self, position: tuple[int, ...]) -> list[tuple[Axis, int]]:
        """Return the image's axes with a neuron's place along them; without places it looks at the whole image."""
        is_placed = len(position) == len(self.axes)
        return list(zip(self.axes, position if is_placed else (0,) * len(self.axes), strict=True))

    def _slices(self, ranges: list[tuple[int, int]]) -> tuple[slice, ...]:
        """Return the index of a part of one image."""
        channel = self.backend.channel_axis(self.like)
        slices = [slice(begin, end) for begin, end in ranges]
        if channel is not None:
            slices.insert(channel - 1, slice(None))
        return tuple(slices)


def _batches(subject: Subject, images: Images, batch_size: int) -> Iterator[Any]:
    if isinstance(images, (tuple, dict)):
        raise OptionError(
            f"a gallery needs a model of one input; received images of {len(images)} inputs. "
            "Wrap the model in a function of one of them."
        )
    if hasattr(images, "shape"):
        return (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    if isinstance(images, list) and not is_data(images):
        return iter(images)
    return (batch.images for batch in batches_of(subject, batch_size, images))


def _stacked(parts: list[NumpyArray], shape: tuple[int, int]) -> NumpyArray:
    return np.stack(parts).reshape(*shape, *parts[0].shape)
