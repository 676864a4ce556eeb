"""The option ``--model`` of all commands, and what is said about the model beside it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click
from click.decorators import FC

from guided_backprop.errors import OptionError
from guided_backprop.models import VisionModel, load_model
from guided_backprop.models.default import DEFAULT

_SPEC = (
    "torchvision:NAME, timm:NAME, hf:NAME, keras:NAME; a .keras, .h5, .pt2, .pt, .onnx file or a SavedModel; "
    "package.module:function or file.py:function. [default: EfficientNet-Lite0]"
)
_OPTIONS = (
    click.option("--model", metavar="SPEC", help=_SPEC),
    click.option("--size", metavar="PIXELS", help="The input's side, or WIDTHxHEIGHT, if the model doesn't say it."),
    click.option("--crop", metavar="SHARE", help="How much of the resized photo is kept; or squash. [default: 1]"),
    click.option("--scale", metavar="NUMBER", help="What pixels of 0 to 255 are multiplied by, such as 1/255."),
    click.option("--mean", metavar="NUMBERS", help="Subtracted after that: one number, or R,G,B."),
    click.option("--std", metavar="NUMBERS", help="Divided by after that: one number, or R,G,B."),
    click.option("--channels-last", is_flag=True, help="The network takes (N, height, width, 3)."),
    click.option("--classes", metavar="FILE", help="The names of the classes, one in each line."),
    click.option("--trust-pickle", is_flag=True, help="Unpickle a file, which runs what it says."),
    click.option("--random-weights", is_flag=True, help="Explain a network that has learned nothing."),
    click.option("--device", metavar="DEVICE", help="Where a PyTorch network runs, such as cuda."),
)
_NAMES = "model size crop scale mean std channels_last classes trust_pickle random_weights device".split()


@dataclass(frozen=True)
class Chosen:
    """The model that a command is given: as its options were typed."""

    typed: Mapping[str, Any]

    def said(self) -> tuple[str | None, dict[str, Any]]:
        """Return the model's specification, None for the default one, and what was said of it.

        Raises:
            OptionError: an option can't be read.
        """
        said = {name: typed for name, typed in self.typed.items() if typed not in (None, False)}
        spec = said.pop("model", None)
        for name, parse in _PARSED.items():
            if name in said:
                said[name] = parse(f"--{name}", said[name])
        return spec, said

    def load(self) -> VisionModel:
        """Load the model, or the default one.

        Raises:
            OptionError: an option can't be read, or says something of the default model.
            GuidedBackpropError: all that :func:`guided_backprop.load_model` raises.
        """
        spec, said = self.said()
        return load_model(spec or DEFAULT, **said)

    def words(self) -> dict[str, str | bool | None]:
        """Return the options as they are typed again."""
        return {f"--{name.replace('_', '-')}": typed for name, typed in self.typed.items()}


def model_options(command: FC) -> FC:
    """Give a command the options about the model, which it takes as one argument, ``model``."""

    @wraps(command)
    def called(**options: Any) -> Any:
        return command(model=Chosen({name: options.pop(name) for name in _NAMES}), **options)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called  # type: ignore[return-value]  # the same command, with other options


def _size(name: str, text: str) -> int | tuple[int, int]:
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if sides is None:
        raise OptionError(f"{name} must be a number, or WIDTHxHEIGHT; received {text!r}. Pass for example 224.")
    return int(sides[1]) if sides[2] is None else (int(sides[2]), int(sides[1]))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise OptionError(
            f"{name} must be a number, or three with commas; received {text!r}. Pass for example 0.5."
        ) from error


def _crop(name: str, text: str) -> float | str:
    return text if text == "squash" else _numbers(name, text)[0]


_PARSED: Mapping[str, Callable[[str, str], object]] = {
    "size": _size,
    "crop": _crop,
    "mean": _numbers,
    "std": _numbers,
}
