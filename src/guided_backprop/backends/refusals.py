"""What every backend reports in the same words: the coverage, and what it refuses."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from guided_backprop.arrays import Array, Layer, Model
from guided_backprop.coverage import Coverage, Nonlinearity
from guided_backprop.errors import (
    ImageError,
    LabelError,
    ModelError,
    NoReluError,
    OpaqueRegionError,
    OptionError,
    ScoreError,
)
from guided_backprop.rules import SMOOTH, Guided, ReluRule


def coverage_of(counts: Counter[tuple[str, str]], rule: ReluRule) -> Coverage:
    """Return how often each ``(name, treatment)`` was met; raise if a rule found no ReLU to act on."""
    rows = Coverage(Nonlinearity(name, count, how) for (name, how), count in sorted(counts.items()))
    if rule.needs_every_relu and not any(row.treatment == rule.name for row in rows):
        listed = ", ".join(f"{name} x{count}" for name, count, _ in rows) or "no non-linearity"
        is_smooth = isinstance(rule, Guided) and any(row.name in SMOOTH for row in rows)
        instead = ', or smooth="guide", which extends the method' if is_smooth else ""
        raise NoReluError(
            f"the {rule.name} rule needs at least one ReLU between score and image; found {listed}. "
            f"Use Saliency(model){instead}."
        )
    return rows


def changed() -> ModelError:
    """Return the error for a model that is not what was compiled."""
    return ModelError(
        "model must be what was compiled; received one whose weights, layers or options changed since. "
        "Call compile(images) again, or optimize(images) for weights that change."
    )


def hidden(name: str) -> OpaqueRegionError:
    """Return the error for a function whose own gradient says nothing of what it computes."""
    return OpaqueRegionError(
        f"a custom function hides whether it is a ReLU; received {name} between score and image. "
        f'Pass vouch={{"{name}": "relu"}} if it is one, vouch={{"{name}": "plain"}} if it contains none.'
    )


def spelled(names: Collection[str], relu: str) -> OpaqueRegionError:
    """Return the error for ReLUs that are spelled as arithmetic; ``relu`` is how to write one."""
    listed = ", ".join(sorted(names))
    return OpaqueRegionError(
        f"a ReLU must be an operation of its own; received one spelled as arithmetic, with {listed}. "
        f'Write it as {relu}, or pass vouch={{"{min(names)}": "plain"}} if it is no ReLU.'
    )


def behind(name: str) -> OpaqueRegionError:
    """Return the error for a value that was changed where no gradient sees it."""
    return OpaqueRegionError(
        f"what has a gradient must not be changed without one; received {name}, written under no_grad, or by way of "
        f'.data or .detach(). Write it with its gradient, or pass vouch={{"{name}": "plain"}} if it holds no ReLU.'
    )


def out_of_sight() -> OpaqueRegionError:
    """Return the error for what was computed where nobody looks for ReLUs."""
    return OpaqueRegionError(
        "a model must compute in the thread that explains it; received a value between score and image that another "
        "thread made. Compute it without a thread of its own."
    )


def is_plain(name: str, vouch: Mapping[str, str], relu: str) -> bool:
    """Tell whether an operation that is seen is vouched for; raise if it is as a ReLU, which nothing could act on."""
    if vouch.get(name) == "relu":
        raise OpaqueRegionError(
            'only a function that hides what it computes can be vouched for as "relu"; received '
            f'vouch={{"{name}": "relu"}}, an operation that is seen. Write it as {relu}, or pass "plain".'
        )
    return name in vouch


def reason_of(error: Exception) -> str:
    """Return what another library's error says, in a line."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    keras = re.search(
        r"Exception encountered when calling [^\n]*\n+(.*?)(?=\n+\s*Arguments received by|\Z)", said, re.DOTALL
    )
    lines = (keras[1] if keras else said).strip().splitlines()
    if not lines:
        return type(error).__name__
    # TorchScript says it at the end, if it does.
    if lines[0].startswith("The following operation failed") and not lines[-1].endswith(":"):
        return lines[-1].strip()
    # Where Keras prints the images themselves, the reason stands behind them.
    return f"... {lines[-1].strip()[-150:]}" if "[[" in lines[0] else lines[0].strip()


def unreadable(what: str, error: Exception) -> OpaqueRegionError:
    """Return the error for values that could not be looked at, whatever kept that from being done."""
    return OpaqueRegionError(
        f"values must be ones that can be looked at, to tell whether a ReLU is spelled with them; received {what} and "
        f"{type(error).__name__}: {reason_of(error):.200} Use Saliency(model), or write that part with other "
        "operations."
    )


def unsettled(name: str) -> ModelError:
    """Return the error of what later images may show to be a ReLU, where nobody looks at these."""
    return ModelError(
        f"images must tell what of a graph is a ReLU, for it does not look at later ones; received images that leave "
        f"open whether {name} is one. Pass more images, or others."
    )


def no_batch(shape: Sequence[int], instead: str = "") -> ImageError:
    """Return the error for one image without an axis of images in front of it; ``instead`` is a model of batches."""
    to_what = f", and explain {instead}" if instead else ""
    return ImageError(
        f"images must be a batch, (N, ...); received images of shape {tuple(shape)}, which the model takes for one "
        f"image. Pass images[None]{to_what}."
    )


def no_floats(inputs: Sequence[Array]) -> ImageError:
    """Return the error for images that have no gradient; of tokens, their embeddings have one."""
    received = f"images of dtype {inputs[0].dtype}" if inputs else "no input"
    return ImageError(
        f"images must be real floating-point numbers; received {received}. Convert pictures as for the model, for "
        "example to float32 in [0, 1]; of tokens explain the embeddings: pass input_layer=<the embedding layer>."
    )


def no_beginning(received: str, count: int | None) -> ModelError:
    """Return the error for a layer whose output is none that a gradient can be taken at, image by image."""
    rows = "N" if count is None else count
    return ModelError(
        f"the layer that a gradient begins at must return one real array with a row per image, ({rows}, ...); received "
        f"{received}. Name a layer that does."
    )


def not_finite() -> ScoreError:
    """Return the error for a score or a gradient that is not a number to work with."""
    return ScoreError(
        "score and gradient must be finite; received NaN or infinity from the model. "
        "Check the images' range, or use a wider dtype."
    )


def detached(culprits: str) -> ScoreError:
    """Return the error for a score that no gradient leads from; ``culprits`` are what cuts it off."""
    return ScoreError(
        "score must depend on the images; received an output that carries no gradient to them. "
        f"Look for {culprits} in the model."
    )


def no_layer(layer: Layer, names: Sequence[str]) -> OptionError:
    """Return the error for a layer that the model does not have."""
    near = get_close_matches(str(layer), names) or names[-3:]
    advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Name values with guided_backprop.jax.tap."
    return OptionError(
        f"layer must be one of the model's {len(names)} layers, by name or position; received layer={layer!r}. {advice}"
    )


def ambiguous(layer: str, ways: Sequence[str]) -> OptionError:
    """Return the error for a name that several layers have."""
    return OptionError(
        f"layer must be one layer; received layer={layer!r}, the name of {len(ways)}: "
        f"{', '.join(map(repr, ways[:12]))}. Pass one of these, or the layer itself."
    )


def no_layers(model: Model) -> ModelError:
    """Return the error for a layer of a model that has none by name."""
    return ModelError(
        f"a layer by name needs a torch.nn.Module or a Keras model; received model={type(model).__name__}, which has "
        "no layers by name. Pass a function that returns the output of the layer."
    )


def no_score(received: object) -> LabelError:
    """Return the error for a callable label that gives no score."""
    return LabelError(
        "labels that are a callable must return one real number per image, (N,); "
        f"received {received}. Sum over what remains."
    )
