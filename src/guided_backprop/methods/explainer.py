"""What can explain images: called, or batch by batch; a method, or what is built around one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, cast

from guided_backprop.arrays import Array, Images, Labels, Model
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export.photos import Recipe
from guided_backprop.export.plan import LabelKind, Plan, Sizes
from guided_backprop.foreign import OF_METHODS, Answering, answering
from guided_backprop.methods.data import batches_of
from guided_backprop.subject import Subject

if TYPE_CHECKING:
    from guided_backprop.methods.export import Exported, Storage


class Explainer(Answering, ABC):
    """What explains images of one model."""

    answers = OF_METHODS

    @abstractmethod
    def held(self) -> tuple[Subject, int | None]:
        """Return the model and what is said about it, and how many images are explained at once."""

    @abstractmethod
    def explain(
        self, images: Images, labels: Labels = None, *, mask: Array | None = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image; see :meth:`Method.explain`."""

    @answering
    def __call__(
        self, images: Images, labels: Labels = None, *, mask: Array | None = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image: the same as :meth:`explain`."""
        return self.explain(images, labels, mask=mask, progress=progress)

    @answering
    def explain_batches(
        self, data: Images, labels: Labels = None, *, mask: Array | None = None
    ) -> Iterator[Explanations]:
        """Explain data that is larger than memory: yield the explanations of one batch after the other.

        Args:
            data: a ``tf.data.Dataset`` or PyTorch ``DataLoader`` or another iterable of batches, with or without
                labels, read once; or a PyTorch ``Dataset`` of single images, of which ``batch_size`` are explained at
                once, or 32.
            labels: as for :meth:`Method.explain`, for every batch: a class id, None, "top5"... Labels of each image
                come with the data.
            mask: as for :meth:`Method.explain`, for every batch.

        Raises:
            OptionError: labels are given, and the data has its own.
            ImageError: data is one batch, or holds something else than batches.
            GuidedBackpropError: all that :meth:`Method.explain` raises.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
            >>> data = torch.utils.data.TensorDataset(torch.rand(5, 4), torch.tensor([0, 1, 1, 0, 1]))
            >>> loader = torch.utils.data.DataLoader(data, batch_size=2)
            >>> [explanations.labels.tolist() for explanations in GuidedBackprop(model).explain_batches(loader)]
            [[0, 1], [1, 0], [1]]
        """
        batches = batches_of(*self.held(), data, labels)
        return (self.explain(batch.images, batch.labels, mask=mask) for batch in batches)

    @property
    def plan(self) -> Plan:
        """What a graph of this computes.

        Raises:
            OptionError: it can be none.
        """
        raise no_graph(self)

    @abstractmethod
    def as_it_is(self) -> Self:
        """Return this without what was compiled of it."""

    @abstractmethod
    def around(self, model: Model) -> Self:
        """Return this for a copy of its model, which is run as it is."""

    def export(
        self,
        path: str | PathLike[str],
        images: Images,
        *,
        labels: LabelKind = "ids",
        classes: Sequence[str] | None = None,
        preprocessing: str | None = None,
        photos: Recipe | None = None,
        storage: "Storage" = "float32",
        sizes: "Sizes" = "fixed",
    ) -> "Exported":
        """Write model and method to a file that explains without them: one graph, for engines in any language.

        The graph maps images and labels to outputs, attribution, scores ``(N,)`` and ``is_finite`` ``(N,)``, for any
        number of images, in single precision; with :class:`SmoothGrad` it takes the noise as well, standard normal and
        of shape ``(N, samples, ...)``. No autograd, no hooks and nothing of this library is left in it. Before
        the file is there, it is run in its engine, for one image, for those that are given and for 17, and its maps are
        compared with this method's: where they differ by more than a thousandth of their norm there is no file.

        Args:
            path: where to write it: ``map.onnx`` of PyTorch, for ONNX Runtime and OpenVINO, or ``map.pt2`` for PyTorch
                itself; ``map.stablehlo`` of JAX; a folder that isn't there yet, ``map``, of TensorFlow. A file that is
                there is replaced.
            images: a batch such as will be explained: its sizes, but for the number of images, are the graph's.
            labels: what the graph is told to explain: with "ids" class ids ``(N,)`` of integers, of which -1 is the
                class with the highest score; with "weights" weights of the output's shape, which can say all other
                labels. For an id that is no class ``is_finite`` is false, as it is where an image, an output or a map
                holds NaN or infinity.
            classes: the names of the classes, which the file then holds.
            preprocessing: what is done with a photo first, in words, which the file then holds.
            photos: a :class:`guided_backprop.models.ResizeCrop`, by which ``images`` were made. The graph then takes
                ``photos``, ``(N, H, W, 3)`` of uint8, of the model's size, and scales them itself; and the map is one
                of their pixels, ``(N, H, W, 3)``: score per step of 255. Resizing and cutting stay outside.
            storage: "float16" to store the weights of an ONNX file in half precision; computed is in single precision.
                What that does to the maps is measured, and refused where they correlate by less than 0.9.
            sizes: "dynamic" for images of any height and width (or length, or depth), from half of those that are given
                on, for a model that takes them too. It is compared for four of them. Of smaller ones ``is_finite`` is
                false, or they are an error.

        Returns:
            The file, what its inputs and outputs are called, and by how much its maps differed.

        Raises:
            OptionError: a graph can't be of the method, or the file ends in something else; an option has a value that
                is not offered.
            ModelError: the model draws random numbers, changes its buffers, does something else for some number of
                images, or is of operations that the file has no word for; or the maps differ; or a part of it holds for
                one size, and any are asked for.
            MissingExtraError: ``[export]`` is not installed.
            ImageError: the images are not what ``photos`` makes of photos.
            GuidedBackpropError: all that :meth:`explain` raises.

        Example:
            >>> import tempfile, torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     exported = GuidedBackprop(model).export(f"{folder}/map.onnx", torch.rand(2, 3, 8, 8))
            >>> exported.inputs, str(exported.coverage)
            (('images', 'labels'), 'relu x1 guided')
        """
        # What exports knows of methods, so it is asked when it is needed.
        from guided_backprop.methods.export import export  # noqa: PLC0415

        return export(
            cast("Any", self),
            path,
            images,
            labels=labels,
            classes=classes,
            preprocessing=preprocessing,
            photos=photos,
            storage=storage,
            sizes=sizes,
        )


def no_graph(explainer: object) -> OptionError:
    """Return the error of what can be no graph."""
    return OptionError(
        "a graph is of gradients at the images, of class activation maps, and of SmoothGrad of these; received "
        f"{explainer!r:.80}. Take GuidedBackprop, for example."
    )
