"""Which of several outputs of a model is explained. Frameworks differ only in what an array is."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass

from guided_backprop.arrays import Outputs, Tensor
from guided_backprop.errors import OptionError


def chosen(outputs: Outputs, output: str | int | None, is_array: Callable[[object], bool]) -> Tensor:
    """Return the output called ``output``; None chooses the only one, or the one called "logits".

    Args:
        outputs: what the model returned: an array; or a tuple, list, mapping, named tuple or dataclass of such.
        output: a name, or a position.
        is_array: tells an array.

    Raises:
        OptionError: there is no such output, or there are several and none was chosen.
    """
    if is_array(outputs):
        if output not in (None, 0, -1):
            raise OptionError(
                f"output chooses among several outputs; received output={output!r} and a model that returns one. "
                "Leave it out."
            )
        return outputs
    if output is None and isinstance(outputs, (tuple, list)) and all(isinstance(one, Mapping) for one in outputs):
        # One of each image, as detectors return: what that is the backend says.
        return outputs
    named = _named(outputs)
    names = list(named)
    if output is None and len(named) == 1:
        return named[names[0]]
    if output is None and "logits" in named:
        return named["logits"]
    if isinstance(output, int) and output not in named and -len(names) <= output < len(names):
        return named[names[output]]
    if output is not None and output in named:
        return named[output]
    # What is neither an array nor made of such is reported by the backend, in its own words.
    if not named and output is None:
        return outputs
    raise OptionError(
        f"output must be one of the model's {len(names)} outputs, {', '.join(map(repr, names[:12]))}; "
        f"received output={output!r}. Pass its name or position."
    )


def _named(outputs: Outputs) -> dict[str | int, Tensor]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if hasattr(outputs, "_asdict"):
        return dict(outputs._asdict())
    if is_dataclass(outputs) and not isinstance(outputs, type):
        named = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
        return {name: value for name, value in named.items() if value is not None}
    return dict(enumerate(outputs)) if isinstance(outputs, (tuple, list)) else {}
