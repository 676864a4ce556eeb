"""What is asked of a loader of models, and what each of them says of it alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from guided_backprop.errors import MissingExtraError, ModelError, OptionError
from guided_backprop.models.options import Options, side_file
from guided_backprop.models.preprocessing import ResizeCrop


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

    def file(self) -> "Asked":
        """Return the same with what a TOML file beside the model's says, where the options say nothing.

        Raises:
            ModelError: there is no such file.
        """
        path = Path(self.name)
        if not path.exists():
            raise ModelError(f"model must be there; received model={self.spec!r}, and no such file. Pass another path.")
        return replace(self, options=self.options.over(Options.beside(path)))

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

    def preprocessing(
        self, *, size: tuple[int, int] | None = None, channels_last: bool | None = None, rescales: bool = False
    ) -> ResizeCrop:
        """Return the preprocessing that is said of a model that doesn't record it.

        Args:
            size: height and width of the input, where the model records them.
            channels_last: the layout, where the model records it.
            rescales: whether the model takes pixels of 0 to 255.

        Raises:
            ModelError: nothing is said of the size or of the pixels.
            OptionError: something is said that contradicts what the model records.
        """
        options = self.options
        for name, record in {"size": size, "channels_last": channels_last}.items():
            said = getattr(options, name)
            if None not in (said, record) and said != record:
                raise OptionError(
                    f"{name} must be as the model has it, {record}; received {name}={said}. Leave it out."
                )
        size = size or options.size
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
            said="which it rescales itself" if rescales and not is_said else "",
        )

    def _unknown(self, what: str) -> ModelError:
        path = Path(self.name)
        beside = f", or write {side_file(path)} with the same names," if path.exists() else ""
        return ModelError(
            f"how photos become the network's input must be known, and the model doesn't say it; received "
            f"model={self.spec!r} without {what}. Pass size (--size 224), and scale, mean and std as it was trained, "
            f"for (pixels * scale - mean) / std, such as --scale 1/255 --mean .485,.456,.406 --std .229,.224,.225"
            f"{beside}."
        )
