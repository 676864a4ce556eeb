"""What is asked of a loader of models, and what each of them says of it alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from guided_backprop.arrays import Model
from guided_backprop.errors import MissingExtraError, ModelError, OptionError
from guided_backprop.models.options import Options, side_file
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.vision import VisionModel


@dataclass(frozen=True)
class Asked:
    """A model that a loader is to load.

    Attributes:
        spec: all that the user named.
        name: what of it is for the loader: after its prefix, or a path.
        options: what was said besides.
        trust_pickle: whether a file may be unpickled, which runs what it says.
        random_weights: whether a network may be explained that has learned nothing.
    """

    spec: str
    name: str
    options: Options = field(default_factory=Options)
    trust_pickle: bool = False
    random_weights: bool = False

    def package(self, name: str, extra: str) -> ModuleType:
        """Return a package that the loader needs.

        Raises:
            MissingExtraError: it isn't installed.
        """
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0]:
                raise
            raise MissingExtraError(
                f"model={self.spec!r} needs {name}; received an environment without it. "
                f"Run: pip install 'guided-backprop[{extra}]'."
            ) from error

    def with_torchvision(self, name: str, extra: str) -> ModuleType:
        """Return a package that uses torchvision where that is installed.

        Raises:
            MissingExtraError: the package isn't installed; or torchvision is compiled for another PyTorch.
        """
        self.package("torch", "torch")
        try:
            if find_spec("torchvision") is not None:
                import_module("torchvision")
        except RuntimeError as error:
            raise MissingExtraError(
                f"model={self.spec!r} needs a torchvision that is compiled for this PyTorch; received one that can't "
                f"be imported ({error}). Install both anew in one step, from one index."
            ) from error
        return self.package(name, extra)

    def file(self) -> "Asked":
        """Return the same with what a TOML file beside the model's says, where the options say nothing.

        Raises:
            ModelError: there is no such file.
        """
        path = Path(self.name)
        if not path.exists():
            raise ModelError(f"model must be there; received model={self.spec!r}, and no such file. Pass another path.")
        return replace(self, options=self.options.over(Options.beside(path)))

    def unreachable(self, error: Exception, advice: str) -> ModelError:
        """Return the error for a model that another library could not get, with the way around the network."""
        reason = " ".join(str(error).split()).rstrip(".")
        return ModelError(
            f"model must be in its library's cache, or a network must be there to fetch it; received "
            f"model={self.spec!r} ({type(error).__name__}: {reason:.300}). {advice}"
        )

    def unknown(self, known: Sequence[str]) -> ModelError:
        """Return the error for a model that another library doesn't have, with the nearest names that it has."""
        near = get_close_matches(self.name, known, n=4, cutoff=0.4)
        advice = f"Names like it are {', '.join(near)}." if near else "Look for its name in that library's list."
        return ModelError(f"model must be one that its library has; received model={self.spec!r}. {advice}")

    def refuse_preprocessing(self) -> None:
        """Refuse options for a model that brings its own preprocessing.

        Raises:
            OptionError: there are some.
        """
        said = sorted(set(self.options.said()) - {"classes"})
        if said:
            raise OptionError(
                f"model={self.spec!r} brings its own preprocessing; received {', '.join(said)} besides. Leave that out."
            )

    def class_names(self, recorded: Sequence[str] = ()) -> Sequence[str]:
        """Return the names that were said, or those that the model records."""
        return recorded if self.options.classes is None else self.options.classes

    def preprocessing(self, shape: Sequence[int | None] = (), *, rescales: bool = False) -> ResizeCrop:
        """Return the preprocessing that is said of a model that doesn't record it.

        Args:
            shape: the shape ``(N, C, H, W)`` or ``(N, H, W, C)`` of the model's input as far as it records it, None for
                sizes that it leaves open.
            rescales: whether the model takes pixels of 0 to 255.

        Raises:
            ModelError: nothing is said of the size or of the pixels.
            OptionError: something is said that contradicts what the model records.
        """
        options = self.options
        size, channels_last, channels = _layout(shape)
        for name, record in {"size": size, "channels_last": channels_last}.items():
            said = getattr(options, name)
            if None not in (said, record) and said != record:
                raise OptionError(
                    f"{name} must be as the model has it, {record}; received {name}={said}. Leave it out."
                )
        size = size or options.size
        if channels not in (None, 1, 3):
            raise self._no_picture(shape)
        is_said = any(said is not None for said in (options.scale, options.mean, options.std))
        if size is None or not (rescales or is_said):
            raise self._unknown("size" if size is None else "scale, mean, std")
        scale = 1.0 if rescales else 1 / 255
        return ResizeCrop(
            size,
            crop=None if options.crop == "squash" else options.crop or 1.0,
            resampling="bilinear",
            scale=options.scale or scale,
            mean=options.mean or (0.0,),
            std=options.std or (1.0,),
            channels_last=bool(options.channels_last if channels_last is None else channels_last),
            grey=channels == 1,
            said="which it rescales itself" if rescales and not is_said else "",
        )

    def vision_model(self, network: Model, shape: Sequence[int | None] = (), *, rescales: bool = False) -> VisionModel:
        """Return a network that doesn't record its preprocessing, with what is said of that; see :meth:`preprocessing`.

        Raises:
            ModelError: the network takes several images at once, and no other number.
        """
        preprocessing = self.preprocessing(shape, rescales=rescales)
        at_once = shape[0] if shape else None
        if at_once not in (None, 1):
            raise ModelError(
                f"model must take one image, or any number; received model={self.spec!r}, which takes {at_once}. "
                "Store it for one, or for any number."
            )
        return VisionModel(self.name, network, preprocessing, self.class_names(), at_once)

    def _no_picture(self, shape: Sequence[int | None]) -> ModelError:
        return ModelError(
            f"model must take one picture of one or three channels; received model={self.spec!r}, which takes "
            f"{tuple(shape)}. Write a function that returns (model, preprocess), and pass file.py:function."
        )

    def _unknown(self, what: str) -> ModelError:
        path = Path(self.name)
        beside = f"; or write {side_file(path)} with the same names" if path.exists() else ""
        return ModelError(
            f"how photos become the network's input must be known, and the model doesn't say it; received "
            f"model={self.spec!r} without {what}. Pass size (--size 224), and scale, mean and std as it was trained, "
            f"for (pixels * scale - mean) / std, such as --scale 1/255 --mean .485,.456,.406 --std .229,.224,.225"
            f"{beside}."
        )


def _layout(shape: Sequence[int | None]) -> tuple[tuple[int, int] | None, bool | None, int | None]:
    """Return height and width, whether channels come last, and how many there are, as far as a shape tells."""
    if len(shape) != 4:
        return None, None, -1 if shape else None
    is_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    is_first = shape[1] in (1, 3) and shape[3] not in (1, 3)
    if is_last == is_first:
        return None, None, None
    channels, sides = (shape[3], shape[1:3]) if is_last else (shape[1], shape[2:4])
    height, width = sides
    return None if height is None or width is None else (height, width), is_last, channels
