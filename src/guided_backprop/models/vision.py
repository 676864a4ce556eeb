"""A network and what it takes to show it a photo."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from guided_backprop.arrays import Images, Model, NumpyArray, Tensor
from guided_backprop.digest import digest
from guided_backprop.errors import ImageError, ModelError
from guided_backprop.models.measured import Measured
from guided_backprop.models.preprocessing import Preprocess, Preprocessing, View
from guided_backprop.photos import read_image
from guided_backprop.show.place import Place


class Readable(Protocol):
    """What a photo is read from that is no path."""

    def read(self) -> Image.Image:
        """Return the photo, RGB; raise ImageError where it can't be read."""


@dataclass(frozen=True)
class Batch:
    """What became of some consecutive images.

    Attributes:
        rows: the positions, among all paths, of the images that could be read.
        images: these images, preprocessed, ``(N, ...)``; None if there are none.
        failures: why the others could not be read.
        sizes: width and height of the photos that could.
        places: what puts a map back onto each of these photos, or None, if they were asked for.

    Example:
        >>> from guided_backprop import ImageError
        >>> from guided_backprop.models import Batch
        >>> Batch([], None, [ImageError("broken.png is damaged")], []).failures
        [ImageError('broken.png is damaged')]
    """

    rows: list[int]
    images: Images
    failures: list[ImageError]
    sizes: list[tuple[int, int]]
    places: Sequence[Place | None] = ()


@dataclass(frozen=True)
class VisionModel:
    """A network and what it takes to show it a photo.

    Attributes:
        name: for people.
        network: what is explained: a ``torch.nn.Module`` in eval mode, a Keras or saved model, or a differentiable
            callable.
        preprocess: from one RGB image to one array or tensor as the network wants it, without batch axis. A function
            becomes a :class:`Measured` one, which can tell where on a photo it looks, as every :class:`Preprocessing`.
        class_names: in class order; empty if unknown.
        at_once: how many images the network takes at once, if it takes only so many: 1 for many stored ones.

    Example:
        >>> import numpy as np, torch
        >>> from guided_backprop.models import VisionModel
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> def pixels(photo):
        ...     return np.asarray(photo.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255
        >>> model = VisionModel("small", network, pixels, ["cat", "dog"])
        >>> model.class_name(1), model.view(640, 480).size
        ('1 dog', (8, 8))
        >>> from PIL import Image
        >>> model.images([Image.new("RGB", (640, 480))]).shape
        torch.Size([1, 3, 8, 8])
        >>> model.require_names(np.zeros((1, 2)))  # as many as classes
        >>> [batch.rows for batch in model.batches([], 16)]
        []
    """

    name: str
    network: Model
    preprocess: Preprocess
    class_names: Sequence[str] = field(default=(), repr=False)
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.preprocess, Preprocessing):
            object.__setattr__(self, "preprocess", Measured(self.preprocess))

    def __str__(self) -> str:
        classes = f"{len(self.class_names)} classes" if self.class_names else "classes without names"
        return f"{self.name}: {self.preprocess}, {classes}"

    def view(self, width: int, height: int) -> View | None:
        """Return where on a photo of this size the network looks; None if that is not one upright box."""
        return self.preprocess.view(width, height) if isinstance(self.preprocess, Preprocessing) else None

    def images(self, photos: Sequence[Image.Image]) -> Images:
        """Return RGB photos as the network takes them, in one batch: where its parameters are.

        Raises:
            ModelError: they are not of one shape then.
        """
        return self.stacked([self.preprocess(photo) for photo in photos])

    def stacked(self, ready: Sequence[Tensor]) -> Images:
        """Return what ``preprocess`` made of photos in one batch: for a torch module where its parameters are.

        Raises:
            ModelError: they are not of one shape.

        Example:
            >>> from PIL import Image
            >>> from guided_backprop.models import load_default
            >>> vision = load_default()
            >>> vision.stacked([vision.preprocess(Image.new("RGB", (300, 200)))] * 2).shape
            torch.Size([2, 3, 224, 224])
        """
        return _stacked(ready, self.network)

    def digest(self) -> str | None:
        """Return a digest of all weights, by which the network is known again; None where none can be read.

        Example:
            >>> from guided_backprop.models import load_default
            >>> load_default().digest() == load_default().digest()
            True
        """
        return digest(self.network)

    def require_names(self, outputs: NumpyArray) -> None:
        """Refuse names that aren't as many as the classes ``(N, K)``: they would be of other classes.

        Raises:
            ModelError: they are more or fewer.
        """
        if self.class_names and outputs.ndim == 2 and outputs.shape[1] != len(self.class_names):
            raise ModelError(
                f"classes must be as many as the model's outputs, {outputs.shape[1]}; received {len(self.class_names)} "
                f"names for {self.name}. Name them all, in their order."
            )

    def class_name(self, label: int) -> str:
        """Return the class id and, where it is known, the name of the class."""
        return f"{label} {self.class_names[label]}" if 0 <= label < len(self.class_names) else str(label)

    def place(self, photo: Image.Image) -> Place | None:
        """Return what puts a map back onto the whole photo; None if where the network looks is not one upright box.

        Example:
            >>> import numpy as np
            >>> from PIL import Image
            >>> from guided_backprop.models import load_default
            >>> from guided_backprop.show.panels import PANELS
            >>> place = load_default().place(Image.new("RGB", (600, 400)))
            >>> place.picture(PANELS["overlay"], np.ones((224, 224, 3))).shape
            (400, 600, 3)
        """
        view = self.view(*photo.size)
        return None if view is None else Place.of(photo, view.box, view.size, view.warning)

    def batches(self, paths: Sequence[Path | Readable], size: int, *, places: bool = False) -> Iterator[Batch]:
        """Read and preprocess images, at most ``size`` at once; one decoded photo is held at a time.

        Args:
            paths: files, or what else photos are read from.
            size: how many images a batch has at most.
            places: also keep what :meth:`place` returns of each photo, which holds it in at most 1024 pixels a side.
        """
        for start in range(0, len(paths), size):
            rows, ready, failures, sizes, placed = [], [], [], [], []
            for row, path in enumerate(paths[start : start + size], start):
                try:
                    photo = read_image(path) if isinstance(path, Path) else path.read()
                    ready.append(self.preprocess(photo))
                    rows.append(row)
                    sizes.append(photo.size)
                    placed += [self.place(photo)] if places else []
                except ImageError as error:
                    failures.append(error)
            yield Batch(rows, self.stacked(ready) if ready else None, failures, sizes, placed)


def is_torch_module(network: Model) -> bool:
    """Tell whether a network is a ``torch.nn.Module``."""
    # Who has a module has imported torch.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def _stacked(ready: Sequence[Tensor], network: Model) -> Images:
    """Return preprocessed images as one batch: for a torch module a tensor where its parameters are."""
    shapes = {tuple(np.shape(image)) for image in ready}
    if len(shapes) > 1:
        raise ModelError(
            f"preprocess must give all images one shape; received {', '.join(map(str, sorted(shapes)))}. "
            "Resize or crop to one size in it, or pass --batch-size 1."
        )
    torch, is_module = sys.modules.get("torch"), is_torch_module(network)
    if torch is not None and isinstance(ready[0], torch.Tensor):
        images = torch.stack(list(ready))
    elif torch is not None and is_module:
        images = torch.from_numpy(np.stack(ready))
    else:
        return np.stack(ready)
    parameter = next(network.parameters(), None) if is_module else None
    return images if parameter is None else images.to(parameter.device)
