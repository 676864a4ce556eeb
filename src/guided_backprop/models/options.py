"""What is said about a model that it doesn't record itself: as options, or in a TOML file beside its own."""

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self

from guided_backprop.errors import ModelError, OptionError

#: Class names, or a text file with one in each line.
Classes = str | os.PathLike[str] | Sequence[str]
#: The share of the resized photo that is kept; "squash" stretches the whole photo.
Crop = float | Literal["squash"]


@dataclass(frozen=True)
class Options:
    """How photos become what a network takes, and the names of its classes; None for what isn't said.

    Attributes:
        size: height and width of the network's input.
        crop: the share of the resized photo that is kept, or "squash".
        mean, std, scale: ``(pixels * scale - mean) / std``, of pixels from 0 to 255.
        channels_last: whether the network takes ``(N, H, W, 3)``.
        classes: the names of the classes, in their order.
    """

    size: tuple[int, int] | None = None
    crop: Crop | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    channels_last: bool | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def given(
        cls,
        *,
        size: int | Sequence[int] | None = None,
        crop: Crop | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        scale: float | str | None = None,
        channels_last: bool | None = None,
        classes: Classes | None = None,
    ) -> Self:
        """Return options as the user gives them.

        Raises:
            OptionError: one has a value that can't be.
            ModelError: the file of the class names can't be read.
        """
        return cls(
            size=None if size is None else _size(size),
            crop=None if crop is None else _crop(crop),
            mean=None if mean is None else _numbers("mean", mean),
            std=None if std is None else _numbers("std", std, is_divisor=True),
            scale=None if scale is None else _scale(scale),
            channels_last=None if channels_last is None else _channels_last(channels_last),
            classes=None if classes is None else _names(classes),
        )

    @classmethod
    def beside(cls, path: Path) -> Self:
        """Return what the TOML file beside a model's says, which is called as that: ``net.toml`` for ``net.onnx``.

        Raises:
            OptionError: it says something else, or in another way.
        """
        side = side_file(path)
        if not side.is_file():
            return cls()
        try:
            said = tomllib.loads(side.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise OptionError(f"{side} must be a TOML file; received one that is none ({error}). Mend it.") from error
        names = cls.names()
        unknown = sorted(set(said) - set(names))
        if unknown:
            raise OptionError(
                f"{side} must say {', '.join(names)} and nothing else; received {', '.join(unknown)}. Take that out."
            )
        if isinstance(said.get("classes"), str):
            said["classes"] = side.parent / said["classes"]
        return cls.given(**said)

    def over(self, others: "Options") -> "Options":
        """Return these options, and others where these say nothing."""
        return replace(others, **self.said())

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the options."""
        return [field.name for field in fields(cls)]

    def said(self) -> dict[str, Any]:
        """Return those that are said."""
        return {name: getattr(self, name) for name in self.names() if getattr(self, name) is not None}


def side_file(path: Path) -> Path:
    """Return where the TOML file of a model's file or folder is."""
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.toml")


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise OptionError(
            f"size must be the height and width of the network's input; received size={size!r}. Pass for example 224."
        )
    return sides[0], sides[1]


def _crop(crop: Crop) -> Crop:
    if crop == "squash" or (isinstance(crop, int | float) and 0 < crop <= 1):
        return crop
    raise OptionError(
        f'crop must be the share of the resized photo that is kept, in (0, 1], or "squash"; received crop={crop!r}. '
        "Pass for example 0.875."
    )


def _numbers(name: str, given: float | Sequence[float], *, is_divisor: bool = False) -> tuple[float, ...]:
    numbers = tuple(given) if isinstance(given, Sequence) else (given,)
    is_number = all(isinstance(number, int | float) and isfinite(number) for number in numbers)
    if len(numbers) not in (1, 3) or not is_number or (is_divisor and not all(numbers)):
        needed = "one number, or one for each of red, green and blue" + ", and not 0" * is_divisor
        raise OptionError(f"{name} must be {needed}; received {name}={given!r}. Pass for example 0.5.")
    return tuple(map(float, numbers))


def _channels_last(channels_last: bool) -> bool:
    # A file may say "false", which would be true.
    if not isinstance(channels_last, bool):
        raise OptionError(f"channels_last must be true or false; received channels_last={channels_last!r}. Write true.")
    return channels_last


def _scale(scale: float | str) -> float:
    """Return a number, also from "1/255"."""
    quotient = re.fullmatch(r"\s*([\d.]+)\s*(?:/\s*([\d.]+)\s*)?", str(scale))
    try:
        number = float(scale) if quotient is None else float(quotient[1]) / float(quotient[2] or 1)
    except (ValueError, ZeroDivisionError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise OptionError(
            f"scale must be what pixels of 0 to 255 are multiplied by; received scale={scale!r}. "
            'Pass for example "1/255".'
        )
    return number


def _names(classes: Classes) -> tuple[str, ...]:
    if not isinstance(classes, str | os.PathLike):
        return tuple(map(str, classes))
    try:
        lines = Path(classes).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"classes must be a text file of one name a line; received classes={os.fspath(classes)!r} ({reason}). "
            "Pass another file."
        ) from error
    if not any(line.strip() for line in lines):
        raise OptionError(
            f"classes must be a text file of one name a line; received classes={os.fspath(classes)!r}, which has none. "
            "Pass another file, or leave it out."
        )
    return tuple(line.strip() for line in lines)
