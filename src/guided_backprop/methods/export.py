"""From a method to a file: explained, recorded, written, run in its engine, and compared map by map."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from guided_backprop.arrays import Images, Inputs
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ModelError, OutputExistsError
from guided_backprop.export.photos import Photos, Recipe
from guided_backprop.export.plan import LabelKind, Sizes
from guided_backprop.methods.data import given
from guided_backprop.methods.options import Requirement, require
from guided_backprop.methods.recording import Recorded, recorded, recorded_together
from guided_backprop.methods.trial import Batch, Explain, Exportable, compared, opened

# What a file ends in, by framework; a folder has no ending.
_ENDINGS: Final = {"torch": (".onnx", ".pt2"), "jax": (".stablehlo",), "tensorflow": ("",)}
_FORMS: Final = {
    "torch": "a file that ends in .onnx or .pt2",
    "jax": "a file that ends in .stablehlo",
    "tensorflow": "a folder, whose name has no ending",
}


_LITE: Final = (
    " TensorFlow Lite has no operations for these derivatives; ONNX has, in which models of PyTorch, and of Keras on "
    "it, are written."
)

#: How weights are stored; what is computed is computed in single precision.
Storage = Literal["float32", "float16"]
# How maps must correlate that are computed with weights in half precision.
_ALIKE: Final = 0.9


@dataclass(frozen=True)
class Exported:
    """A file that explains, and how it was compared.

    Attributes:
        path: the file.
        inputs: what its inputs are called: the images, then the labels.
        outputs: what its results are called.
        coverage: what was done with each non-linearity, as in :class:`Explanations`.
        engine: the engine that it was compared in.
        counts: for how many images it was compared.
        difference: by how much of its norm a map differed at most from the method's, in that engine.
        precise_difference: the same of the graph in double precision, run in the framework; None where the model has
            no double precision.
        stored_difference: with weights stored in half precision, by how much of its norm a map differed then.
        correlation: and how the values of an image's maps correlated at least; None for weights in single precision.
        least_sizes: with sizes="dynamic" of each input the least size along each axis of positions; else empty.

    Example:
        >>> import tempfile, torch
        >>> from guided_backprop import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = GuidedBackprop(model).export(f"{folder}/map.onnx", torch.rand(2, 4))
        >>> exported.outputs, exported.counts, exported.difference < 1e-3
        (('outputs', 'attribution', 'scores', 'is_finite'), [1, 2, 17], True)
    """

    path: Path
    inputs: Sequence[str]
    outputs: Sequence[str]
    coverage: Coverage
    engine: str
    counts: Sequence[int]
    difference: float
    precise_difference: float | None
    stored_difference: float | None = None
    correlation: float | None = None
    least_sizes: Sequence[Sequence[int]] = ()


def export(
    method: Exportable,
    path: str | os.PathLike[str],
    images: Images,
    *,
    labels: LabelKind = "ids",
    classes: Sequence[str] | None = None,
    preprocessing: str | None = None,
    photos: Recipe | None = None,
    storage: Storage = "float32",
    sizes: Sizes = "fixed",
) -> Exported:
    """Write a method and its model to a file; see :meth:`Method.export`."""
    path = Path(path)
    inputs = Inputs.of(given(method.subject, images, None).images)
    framework = method.subject.backend(inputs).framework
    endings = _ENDINGS[framework]
    require(
        Requirement("path", str(path), path.suffix in endings, f"{_FORMS[framework]}, for a model of {framework}",
                    f'Pass "map{endings[0]}".{_LITE if path.suffix == ".tflite" else ""}'),
        Requirement("labels", labels, labels in ("ids", "weights"), '"ids" or "weights"', 'Pass "ids".'),
        Requirement("storage", storage, storage == "float32" or (storage == "float16" and path.suffix == ".onnx"),
                    '"float32", or "float16" for a file of ONNX', "Leave it out."),
        Requirement("sizes", sizes, sizes in {"fixed", "dynamic"},
                    '"fixed" or "dynamic"', "Leave it out."),
    )  # fmt: skip
    if path.is_dir():
        raise OutputExistsError(
            f"path must not be a folder that exists; received path={str(path)!r}. Choose another name, or remove it."
        )
    scaling = None if photos is None else Photos.of(photos)
    made = recorded(method, inputs, labels, photos=scaling, sizes=sizes)
    metadata = replace(
        made.metadata, classes=classes, preprocessing=preprocessing, photos=None if photos is None else str(photos)
    )
    batches = made.trial.batches(made.graph.turns, made.graph.least)
    return exported(made._replace(metadata=metadata), batches, path, storage)


def exported(recorded: Recorded, batches: Sequence[Batch], path: Path, storage: Storage = "float32") -> Exported:
    """Write the file where nobody looks, compare it, and put it at its place."""
    graph, trial, metadata = recorded
    precise = compared(graph, trial, batches)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".guided_backprop_") as folder:
        draft = Path(folder) / path.name
        graph.write(draft, metadata.texts())
        engine = opened(draft, graph.outputs, graph.opens(draft))
        largest = trial.compare(engine, graph, batches)
        versions = {**metadata.versions, **dict([engine.name.split(" ", 1)])}
        said = replace(metadata, versions=versions, difference=largest, precise_difference=precise)
        stored, alike = None, None
        if storage == "float32":
            graph.write(draft, said.texts())
        else:
            stored, alike = _in_half(recorded, batches, draft)
            said = replace(said, storage=storage, stored_difference=stored, correlation=alike)
            graph.write_in_half(draft, said.texts())
        for file in Path(folder).iterdir():
            file.replace(path.with_name(file.name))
    tried = sorted({batch.images.count for batch in batches})
    return Exported(
        path, graph.inputs, graph.outputs, graph.coverage, engine.name, tried, largest, precise, stored, alike,
        graph.least,
    )  # fmt: skip


def _in_half(recorded: Recorded, batches: Sequence[Batch], draft: Path) -> tuple[float, float]:
    """Return what half precision does to the maps: by how much of its norm one differs, how two correlate at least.

    Raises:
        ModelError: too much for them to be the method's.
    """
    graph, trial, metadata = recorded
    graph.write_in_half(draft, metadata.texts())
    stored, alike = trial.measure(opened(draft, graph.outputs, graph.opens(draft)), graph, batches)
    if not alike >= _ALIKE:
        raise ModelError(
            f"maps must be alike when weights are stored in half precision; received a correlation of {alike:.2g}. "
            "Leave storage out."
        )
    return stored, alike


def export_together(methods: Mapping[Path, Exportable], images: Images, explain: Explain) -> list[Exported]:
    """Write methods of one model, which differ in rule and reducer alone, to files; recorded from one forward pass.

    Args:
        methods: the methods, by where each is written.
        images: as for :meth:`Method.export`.
        explain: explains images by several methods.
    """
    first = next(iter(methods.values()))
    inputs = Inputs.of(given(first.subject, images, None).images)
    made = recorded_together([*methods.values()], inputs, "ids", explain)
    batches = made[0].trial.batches(made[0].graph.turns)
    return [exported(each, batches, path) for each, path in zip(made, methods, strict=True)]
