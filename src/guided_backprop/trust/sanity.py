"""How far a map may be believed: the sanity checks of Adebayo et al. 2018 and Sixt et al. 2020, in one call."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import Images, Inputs, Labels, as_numpy
from guided_backprop.backends.randomize import PrivateCopy
from guided_backprop.errors import ImageError, LabelError, ModelError, OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.foreign import answering
from guided_backprop.labels.parse import parse_label
from guided_backprop.methods.around import Around
from guided_backprop.methods.data import Batch, batches_of, is_data
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, is_integer, require
from guided_backprop.trust.convergence import converge, depths, vectors
from guided_backprop.trust.intervals import interval
from guided_backprop.trust.similarity import Maps, cosines, edges, need_libraries
from guided_backprop.trust.verdict import MODES, Row, SanityCheck

Progress = Callable[[int, int], None]

# As many random maps as the paper calibrated its metrics with.
_DRAWS = 50
_OTHERS = 4
# How many images are explained for several classes at once.
_ROWS = 8


@answering
def sanity_check(
    method: Method | Around,
    images: Images,
    labels: Labels = None,
    *,
    modes: Sequence[str] = MODES,
    blocks: int | Sequence[str] = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> SanityCheck:
    """Measure how far a method's maps of a model depend on what the model learned.

    The layers of a private copy are re-initialised block by block, from the output towards the input, and the maps of
    what remains compared with the maps of the model: a map that hardly changes says hardly anything of what the
    re-initialised layers had learned (Adebayo et al. 2018, arXiv:1810.03292). What is explained stays what it is of the
    model itself, its top class for example. The model, its state, and the global random state are untouched.

    Args:
        method: any method, made for the model. The model is a ``torch.nn.Module``, a Keras model on any backend, an
            Equinox or nnx module, or ``functools.partial(function, parameters)`` of a JAX function.
        images: as for :meth:`Method.explain`, of one input. The paper took 50; fewer are allowed, and the result says
            how many they were. A data set, a loader or a generator of batches is measured batch by batch, so that a
            thousand photos take the memory of one batch, and put together at the end.
        labels: as for :meth:`Method.explain`, one per image; of data those of every batch, if it has none.
        modes: which of these are measured:

            * "cascading": all blocks from the output down to this one are re-initialised;
            * "independent": this block alone is;
            * "labels": how alike the maps of the class, of four runner-ups, and of four random classes are;
            * "convergence": the cosine between what two random vectors at the output become on their way back, layer by
              layer (Sixt et al. 2020, arXiv:1912.09818).
        blocks: into how many blocks the layers are bundled at most: the output layer, then as many layers in each as in
            the next; or the names of the blocks from output to input, each a layer, or what its layers' names begin
            with, such as "layer4".
        seed: chooses what is drawn: weights, random maps, classes, vectors.
        progress: is called with how many steps are done and how many there are.

    Returns:
        The similarities, with their baselines; see :class:`SanityCheck`.

    Raises:
        MissingExtraError: SciPy or scikit-image is not installed.
        OptionError: an option has a value that is not offered.
        ModelError: the weights of the model are hidden, or it can't be copied.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop, sanity_check
        >>> conv = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()]
        >>> model = torch.nn.Sequential(*conv, torch.nn.Linear(400, 3)).eval()
        >>> check = sanity_check(GuidedBackprop(model), torch.rand(2, 3, 12, 12))
        >>> [layers for layers in check.blocks]
        [('3',), ('0',)]
        >>> print(check.sentence)  # doctest: +ELLIPSIS
        Randomising the top 1 of 2 blocks leaves GuidedBackprop maps at rank correlation ...
    """
    need_libraries()
    _check_options(method, images, modes, seed)
    size = method.held()[1]
    batches = batches_of(method.subject, size, images, labels) if is_data(images) else [Batch(images, labels)]
    checks: list[_Check] = []
    for batch in batches:
        done = sum(check.steps for check in checks)
        checks.append(_checked(method, batch, [seed, len(checks)] if checks else [seed]))
        checks[-1].measure(modes, blocks, _after(done, progress))
    if not checks:
        raise ImageError("images must not be empty; received no batch. Pass at least one image, better 50.")
    return _put_together(checks, seed)


def _after(done: int, progress: Progress | None) -> Progress:
    """Return what counts the steps of one more batch."""
    return lambda more, steps: None if progress is None else progress(done + more, done + steps)


def _checked(method: Method | Around, batch: Batch, seeds: list[int]) -> "_Check":
    clean = method.explain(batch.images, batch.labels)
    if not len(clean):
        raise ImageError("images must not be empty; received no image. Pass at least one, better 50.")
    if clean.scores.ndim != 1:
        raise LabelError(
            f"labels must be one per image; received {clean.scores.shape[1]} of each. Pass one class id per image."
        )
    fixed = parse_label(batch.labels, len(clean)).fixed(batch.labels, clean.labels)
    return _Check(method, batch.images, clean, fixed, seeds)


def _put_together(checks: "list[_Check]", seed: int) -> SanityCheck:
    """Return what was found of all batches."""
    first, rows = checks[0], []
    for key in first.figures:
        batches = [check.figures[key] for check in checks if key in check.figures]
        figures = np.concatenate([batch.ravel() for batch in batches])
        # Of random maps there are several draws for each image.
        of_images = np.concatenate([batch.reshape(-1, batch.shape[-1]).mean(axis=0) for batch in batches])
        rows.append(Row(*key, float(figures.mean()), float(figures.std()), interval(of_images, seed)))
    return SanityCheck(
        method=first.method,
        model=first.model,
        images=sum(check.count for check in checks),
        blocks=first.blocks,
        names=first.names,
        rows=tuple(rows),
        draws=sum(check.draws for check in checks),
        constant=sum(check.constant for check in checks),
        notes=tuple(dict.fromkeys(note for check in checks for note in check.notes)),
    )


class _Check:
    """The check of one batch.

    Attributes:
        figures: by mode, block and metric, one per image ``(N,)``; of random maps ``(draws, N)``.
        count: how many images.
        steps: in how many steps it is measured.
    """

    def __init__(
        self, method: Method | Around, images: Images, clean: Explanations, labels: Labels, seeds: list[int]
    ) -> None:
        self._method, self._clean, self._labels, self._seeds = method, clean, labels, seeds
        self._images = images
        self._axis = None if clean.reducer is not None else clean.channel_axis
        self._maps = Maps(as_numpy(clean.attribution), self._axis)
        self._backend = method.subject.backend(images)
        self.method, self.model, self.count = clean.method, clean.model, len(clean)
        self.figures: dict[tuple[str, str, str], NDArray[np.float64]] = {}
        # By what was re-initialised: the first block alone is found once.
        self._found: dict[tuple[str, ...], dict[str, NDArray[np.float64]]] = {}
        self.notes: list[str] = []
        self.constant = self.steps = 0
        self._repeats = -(-_DRAWS // len(clean))
        self.draws = self._repeats * len(clean)

    def measure(self, modes: Sequence[str], blocks: int | Sequence[str], progress: Progress) -> None:
        """Measure, step by step."""
        copied = self._copy()
        bundles = _bundles(copied.layers, blocks)
        self.blocks = tuple(tuple(layer for layers in bundle for layer in layers) for bundle in bundles)
        self.names = tuple(blocks) if isinstance(blocks, Sequence) else tuple(map(_name, bundles))
        steps: list[Callable[[], None]] = [self._baselines]
        steps += [step for mode in MODES[:2] if mode in modes for step in self._randomised(mode, copied)]
        if "labels" in modes and self._has_classes():
            steps.append(self._compare_labels)
        if "convergence" in modes and self._is_propagated():
            # What the output layer returns is the output, or next to it.
            steps += self._convergence([bundle[-1][0] for bundle in bundles if bundle[-1] != copied.layers[0]])
        self.steps = len(steps)
        progress(0, len(steps))
        for done, step in enumerate(steps, 1):
            step()
            progress(done, len(steps))

    def _add(self, mode: str, block: str, metrics: Mapping[str, NDArray[np.float64]]) -> None:
        self.figures |= {(mode, block, metric): figures for metric, figures in metrics.items()}

    def _copy(self) -> PrivateCopy:
        """Return a copy that gives what the model gives."""
        subject, rows = self._method.subject, self._images[: self._clean.batch_size]
        copied = subject.private_copy(rows, self._seeds[0])
        given = copied.given(Inputs.of(rows))
        own = subject.around(copied.model).backend(given).outputs(given)
        expected = self._clean.outputs[: len(rows)]
        # Eager and compiled runs round differently, of half precision by so much.
        is_alike = own.shape == expected.shape and np.allclose(
            own, expected, rtol=0, atol=1e-2 * np.abs(expected).max()
        )
        if not is_alike:
            raise ModelError(
                "a copy of the model must give what the model gives; received another output from a copy of "
                f"{self._clean.model}. Keep all that it computes with in parameters and buffers."
            )
        if not copied.layers:
            raise ModelError(
                f"model must have weights; received {self._clean.model}, which uses none. Pass the module itself."
            )
        return copied

    def _baselines(self) -> None:
        """Compare with random maps, and with the edges in the images."""
        generator = np.random.default_rng([*self._seeds, 1])
        shape = self._clean.attribution.shape
        similarities = [
            self._maps.similarity(Maps(generator.standard_normal(shape), self._axis)) for _ in range(self._repeats)
        ]
        self._add(
            "random",
            "",
            {metric: np.stack([similarity[metric] for similarity in similarities]) for metric in similarities[0]},
        )
        if not self._maps.is_picture:
            self.notes.append("SSIM, HOG and edges are for pictures of at least 5 pixels a side")
            return
        self._add("edges", "", self._maps.similarity(Maps(edges(self._pictures()))))
        self._add("recovery", "the model", self._recovered(self._maps))

    def _pictures(self) -> NDArray[np.float64]:
        """Return what is explained, of an input layer its output, as one brightness at each place."""
        pictures = as_numpy(self._clean.images).astype(np.float64)
        return pictures if self._clean.channel_axis is None else pictures.mean(axis=self._clean.channel_axis)

    def _recovered(self, maps: Maps) -> dict[str, NDArray[np.float64]]:
        """Return how alike maps and the images themselves are, brighter or darker than their mean."""
        pictures = self._pictures()
        return maps.similarity(Maps(pictures - pictures.mean(axis=(1, 2), keepdims=True)))

    def _randomised(self, mode: str, copied: PrivateCopy) -> list[Callable[[], None]]:
        method, images = self._method.around(copied.model), copied.given(Inputs.of(self._images))
        every = {layer for block in self.blocks for layer in block}

        def step(layers: tuple[str, ...], block: str) -> None:
            if layers not in self._found:
                copied.randomise(layers)
                maps = Maps(as_numpy(method.explain(images, self._labels).attribution), self._axis)
                self.constant += int(maps.is_constant.sum())
                self._found[layers] = self._maps.similarity(maps)
                if {*layers} == every and maps.is_picture:
                    self._add("recovery", "all layers random", self._recovered(maps))
            self._add(mode, block, self._found[layers])

        steps: list[Callable[[], None]] = []
        above: tuple[str, ...] = ()
        for here, name in zip(self.blocks, self.names, strict=True):
            above += here
            steps.append(partial(step, above if mode == "cascading" else here, name))
        return steps

    def _has_classes(self) -> bool:
        if self._clean.is_of_classes and self._class_scores().shape[1] > 1:
            return True
        self.notes.append("labels are not compared: what is explained is not one of several classes")
        return False

    def _class_scores(self) -> NDArray[np.float64]:
        outputs = self._clean.outputs.astype(np.float64)
        channels = np.moveaxis(outputs, self._backend.channel_axis(outputs) or 1, 1)
        return channels.reshape(*channels.shape[:2], -1).sum(axis=2)  # type: ignore[no-any-return]

    def _compare_labels(self) -> None:
        """Compare the maps of the class with those of the classes behind it, and of random ones."""
        scores, labels = self._class_scores(), self._clean.labels
        scores[np.arange(len(labels)), labels] = -np.inf
        others = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
        runners = others[:, :_OTHERS]
        generator = np.random.default_rng([*self._seeds, 2])
        drawn = generator.permuted(others[:, _OTHERS:], axis=1)[:, :_OTHERS]
        ids = np.concatenate([labels[:, None], runners, drawn], axis=1)
        if ids.shape == self._clean.outputs.shape:
            # Integers of the output's shape would be taken for weights.
            ids = np.concatenate([ids, labels[:, None]], axis=1)
        measured: dict[str, list[list[NDArray[np.float64]]]] = {"cosine": [], "spearman_abs": [], "spearman": []}
        for start in range(0, len(labels), _ROWS):
            rows = slice(start, start + _ROWS)
            maps = as_numpy(self._method.explain(self._images[rows], ids[rows]).attribution)
            first = Maps(maps[:, 0], self._axis)
            for batches in measured.values():
                batches.append([])
            for other in range(1, 1 + runners.shape[1] + drawn.shape[1]):
                alike = first.similarity(Maps(maps[:, other], self._axis))
                measured["cosine"][-1].append(cosines(maps[:, 0], maps[:, other]))
                for metric in ("spearman_abs", "spearman"):
                    measured[metric][-1].append(alike[metric])
        # Of each image the mean over the other classes.
        whole = {
            metric: np.concatenate([np.array(batch) for batch in batches], axis=1)
            for metric, batches in measured.items()
        }
        split = runners.shape[1]
        self._add("labels", "runners-up", {metric: figures[:split].mean(axis=0) for metric, figures in whole.items()})
        if drawn.shape[1]:
            self._add(
                "labels", "random classes", {metric: figures[split:].mean(axis=0) for metric, figures in whole.items()}
            )

    def _is_propagated(self) -> bool:
        is_one_pass = isinstance(self._method, Method) and self._method.is_one_pass
        if is_one_pass and self._clean.outputs[0].size > 1:
            return True
        what = "the model has one output" if is_one_pass else "the method is more than one backward pass"
        self.notes.append(f"convergence is not measured: {what}")
        return False

    def _convergence(self, layers: list[str]) -> list[Callable[[], None]]:
        method = self._method
        assert isinstance(method, Method)

        def step(layer: str) -> None:
            depth = converge(method, self._images, layer, drawn, self._clean.batch_size)
            if depth.cosines is None:
                self.notes.append(f"convergence at {layer} is not measured: {depth.reason}")
            else:
                self._add("convergence", layer, {"cosine": depth.cosines})

        drawn = vectors(self._clean.outputs.shape, self._seeds)
        names = depths(method.subject, self._images, layers)
        if len(names) == 2:
            self.notes.append("convergence is measured at the images alone: no layer inside can be named")
        return [partial(step, layer) for layer in names]


#: The layers of one block, from output to input; what has no kernel beside the layer that it belongs to.
_Bundle = list[tuple[str, ...]]


def _bundles(layers: list[tuple[str, ...]], blocks: int | Sequence[str]) -> list[_Bundle]:
    """Return the blocks from output to input."""
    if isinstance(blocks, int) and not isinstance(blocks, bool) and blocks > 0:
        if len(layers) <= blocks:
            return [[group] for group in layers]
        if blocks == 1:
            return [layers]
        edges = np.linspace(1, len(layers), blocks).round().astype(int)
        return [layers[:1], *(layers[start:stop] for start, stop in pairwise(edges))]
    if isinstance(blocks, (int, str)) or not blocks or not all(isinstance(name, str) for name in blocks):
        raise OptionError(
            "blocks must be a positive integer, or the names of blocks from output to input; received "
            f"blocks={blocks!r}. Pass 12."
        )
    bundles = [_named(layers, name) for name in blocks]
    taken = [layer for bundle in bundles for group in bundle for layer in group]
    if len({*taken}) < len(taken):
        raise OptionError(f"blocks must have no layer in common; received blocks={blocks!r}. Name each layer once.")
    return bundles


def _named(layers: list[tuple[str, ...]], name: str) -> _Bundle:
    bundle = []
    for group in layers:
        inside = tuple(layer for layer in group if layer == name or layer.startswith((f"{name}.", f"{name}/")))
        # What has no kernel comes with the layer that it belongs to.
        bundle += [group if group[0] in inside else inside] if inside else []
    if not bundle:
        known = ", ".join(repr(group[0]) for group in layers[:12])
        raise OptionError(f"blocks must name layers with weights; received {name!r} of {known}. Pass one of these.")
    return bundle


def _name(bundle: _Bundle) -> str:
    first, last = bundle[0][0], bundle[-1][0]
    return first if first == last else f"{first} to {last}"


def _check_options(method: object, images: Images, modes: Sequence[str], seed: int) -> None:
    if not isinstance(method, (Method, Around)):
        raise OptionError(
            f"method must be a method; received method={type(method).__name__}. "
            "Pass, for example, GuidedBackprop(model)."
        )
    if isinstance(images, (tuple, Mapping)):
        raise OptionError(
            f"sanity_check() needs one input; received {len(images)} inputs. Fix the others in a module around the "
            "model."
        )
    are_modes = not isinstance(modes, str) and bool(modes) and {*modes} <= {*MODES}
    require(
        Requirement("modes", modes, are_modes, f"some of {', '.join(MODES)}", "Pass a list of these."),
        Requirement("seed", seed, is_integer(seed, least=0), "an integer of 0 or more", "Pass 0."),
    )
