"""Writes the page: one file that is opened from disk, or a folder that a web host serves."""

import base64
import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from guided_backprop.errors import MissingExtraError, ModelError, OutputError, refused_as
from guided_backprop.explanations import Explanations
from guided_backprop.methods.gradients import DeconvNet, GuidedBackprop, Saliency
from guided_backprop.models import VisionModel, probabilities
from guided_backprop.models.preprocessing import ResizeCrop
from guided_backprop.models.recipe import recipe_of
from guided_backprop.page.engine import LICENCE, PACKAGE, VERSION, Engine
from guided_backprop.page.graphs import Graphs, graphs
from guided_backprop.report.inline import base_style, environment, source_hash, text_of
from guided_backprop.report.pages import check_free
from guided_backprop.show.colours import RAMP
from guided_backprop.show.embed import data_uri
from guided_backprop.version import __version__

# The guided one first: it is what the page is about.
_METHODS: Final = (GuidedBackprop, Saliency, DeconvNet)
_SAID: Final = {
    "GuidedBackprop": "positive gradients, where ReLUs are on",
    "Saliency": "the plain gradient",
    "DeconvNet": "positive gradients",
}
_RECIPE: Final = ("size", "crop", "resampling", "scale", "mean", "std", "grey", "channels_last")
_SCRIPTS: Final = ("pillow.js", "draw.js", "page.js")
_ROOM: Final = "guided_backprop.page"
# The longer side of an example.
_LARGEST: Final = 640


@dataclass(frozen=True)
class _Part:
    """Something large: in the page as text, or a file beside it."""

    id: str
    data: bytes

    @property
    def packed(self) -> bytes:
        """The same, smaller, and alike each time it is made."""
        return gzip.compress(self.data, mtime=0)

    @property
    def file(self) -> str:
        return f"{self.id}.gz"


def write_page(
    path: Path,
    vision: VisionModel,
    examples: Mapping[str, Image.Image] | None = None,
    *,
    engine: Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a page that explains photos by itself.

    Args:
        path: a file that ends in .html, which holds all; or a folder for a web host, whose page is ``index.html``.
        vision: a PyTorch classifier, and what a photo becomes before it sees it.
        examples: photos that the page offers, by name.
        engine: the folder of onnxruntime-web; None for the one that npm fetches.
        overwrite: replace what exists.

    Returns:
        The files that were written, the page first.

    Raises:
        OutputExistsError: there is something at the path.
        MissingExtraError: a package, or the engine, isn't there.
        ModelError: the network is no classifier, or what it does with a photo can't be said as a recipe.
        GuidedBackpropError: all that :meth:`Method.export` raises.
    """
    is_file = path.suffix == ".html"
    page = path if is_file else path / "index.html"
    check_free(page, overwrite=overwrite)
    runtime = Engine.found(engine)
    recipe = recipe_of(vision.preprocess)
    photos = list((examples or {}).values()) or [_noise()]
    images = vision.images(photos)
    methods = [method(vision.network) for method in _METHODS]
    explained = methods[0].explain(images, progress=False)
    if explained.outputs.ndim != 2 or explained.outputs.shape[1] < 2:
        raise ModelError(
            "a page needs a classifier, whose outputs are (N, classes); received outputs of shape "
            f"{explained.outputs.shape}. Pass a part of the model, or a wrapper that returns one output."
        )
    made = graphs(methods, images)
    facts = _facts(vision, made, recipe, tuple(np.shape(images)[1:]), explained)
    parts = [
        _Part("engine-module", runtime.module),
        _Part("engine-binary", runtime.binary),
        _Part("weights", made.weights),
        *(_Part(f"graph-{name}", data) for name, data in made.files.items()),
    ]
    html = _html(facts, parts, runtime, examples or {}, is_beside=not is_file)
    files = {page: html.encode()} | ({} if is_file else {path / part.file: part.packed for part in parts})
    _write(files)
    return list(files)


def _facts(
    vision: VisionModel, made: Graphs, recipe: ResizeCrop, shape: Sequence[int], explained: Explanations
) -> dict[str, Any]:
    """Return what the page's script has to know, and under "facts" what people are told."""
    vision.require_names(explained.outputs)
    shares = probabilities(explained.outputs, explained.head)
    is_one = shares is not None and np.allclose(shares, explained.outputs)
    said = "as it is" if is_one else "exp" if explained.head in ("log_softmax", "log_sigmoid") else "softmax"
    difference, guided = max(exported.difference for exported in made.exported), made.exported[0]
    compared = f"the maps differ by at most {difference:.1g} of their norm from the library's, in {guided.engine}"
    return {
        "name": vision.name,
        "classes": [vision.class_name(label) for label in range(explained.outputs.shape[1])],
        "methods": [{"name": name, "said": _SAID[name]} for name in made.files],
        "weights": made.place,
        "shape": list(shape),
        "probability": said,
        **{name: getattr(recipe, name) for name in _RECIPE},
        "facts": [
            ["Network", vision.name],
            ["A photo becomes", str(recipe)],
            ["ReLUs", str(guided.coverage)],
            ["Compared", compared],
            ["Made by", f"guided-backprop {__version__}; runs in {PACKAGE} {VERSION} ({LICENCE})"],
        ],
    }


def _html(
    facts: Mapping[str, Any],
    parts: Sequence[_Part],
    runtime: Engine,
    examples: Mapping[str, Image.Image],
    *,
    is_beside: bool,
) -> str:
    try:
        markup = import_module("markupsafe").Markup
    except ImportError as error:
        raise MissingExtraError(
            "a page needs Jinja2; received an environment without it. Run: pip install 'guided-backprop[report]'."
        ) from error
    style = base_style() + text_of(_ROOM, "page.css")
    script = (
        '"use strict";\n' + f"const RAMP = {RAMP.tolist()};\n" + "\n".join(text_of(_ROOM, name) for name in _SCRIPTS)
    )
    # Its map of sources is not here.
    engine = runtime.script.decode().partition("//# sourceMappingURL")[0]
    code = {"style": style, "engine": engine, "script": script}
    # A script ends where the page says so, whatever it means there.
    about = json.dumps({name: fact for name, fact in facts.items() if name != "facts"}).replace("<", "\\u003c")
    texts = [
        {"id": part.id, "file": part.file if is_beside else "", "text": "" if is_beside else markup(_text(part.packed))}
        for part in parts
    ]
    return (
        environment(_ROOM)
        .get_template("page.html.j2")
        .render(
            name=facts["name"],
            methods=facts["methods"],
            facts=facts["facts"],
            examples=[{"name": name, "uri": data_uri(np.asarray(photo), _LARGEST)} for name, photo in examples.items()],
            beside=is_beside,
            parts=texts,
            about=markup(about),
            hashes={name: source_hash(text) for name, text in code.items()},
            **{name: markup(text) for name, text in code.items()},
        )
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _noise() -> Image.Image:
    """Return a photo on which a network shows much: noise of spots."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC)


def _write(files: Mapping[Path, bytes]) -> None:
    """Write files, each whole or not at all, the page last."""
    folder = next(iter(files)).parent
    with refused_as(
        lambda reason: OutputError(f"path must be writable; received {str(folder)!r} ({reason}). Choose another.")
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".page-") as name:
            for path, data in files.items():
                (Path(name) / path.name).write_bytes(data)
            for path in reversed([*files]):
                (Path(name) / path.name).replace(path)
