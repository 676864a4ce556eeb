"""What all methods have in common: a model and what is said about it, a rule, and how a batch is explained."""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from guided_backprop.arrays import Images, Inputs, Labels, Layer, Model
from guided_backprop.backends.base import Attributed, Backend, Memory, Score, Vouch, Weigh
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.export.engine import EngineName
from guided_backprop.export.plan import Plan
from guided_backprop.foreign import answering
from guided_backprop.methods.batches import Job, explain_given
from guided_backprop.methods.data import given
from guided_backprop.methods.explainer import Explainer, no_graph
from guided_backprop.methods.options import Requirement, is_integer, require
from guided_backprop.rules import GUIDED, ReluRule
from guided_backprop.subject import Subject, brief

if TYPE_CHECKING:
    from guided_backprop.methods.compiled import Compiled

Reducer = Literal["mean", "sum", "max", "min", "absmax"]
REDUCERS: tuple[Reducer, ...] = get_args(Reducer)


class Method(Explainer):
    """A way to explain a model: how much, and in which direction, each input value moves the score.

    The model is run as it is and is never changed; several threads may use one method at once. A batch may
    be run forward twice, the second time watched, if the graph leaves open what only its values can tell.

    Args:
        model: a ``torch.nn.Module`` in eval mode, or any differentiable callable on tensors, which maps
            images ``(N, ...)`` to outputs ``(N, K)``, ``(N, K, ...)`` or ``(N,)``.
        output_layer: explain the output of this layer instead of the model's: the layer itself, its name, or
            its position in :func:`layer_names`; None for the model's own output. In a Keras model the name is enough
            where no other layer has it; else the way there, as "resnet50/conv1_relu". In a JAX function, a name given
            with ``guided_backprop.jax.tap``. A layer that is run several times is a pair of that and which of its
            runs, counted from 0: ``("shared", 1)``. Nothing after it is run, but once for images of each shape, to
            see that it is run once where no run is chosen.
        input_layer: explain from this layer on, instead of from the images: an embedding, a stem, a latent code; given
            as ``output_layer`` is, and in front of it if both are. The attribution is of the shape, dtype and
            framework of the layer's output (NumPy's if the images are), one real array with a row per image; and that
            output is what the explanations have as their ``images``. What the model is given may be integers, such as
            tokens. None for the images.
        output: which of several outputs is explained, by name or by position; None for the only one, or the
            one called "logits".
        batch_size: how many images are explained at once; None for all. The result is the same, the
            memory is bounded.
        reducer: how the channel axis is reduced: "mean", "sum", "max", "min", "absmax" (the largest
            magnitude, unsigned), or None to keep all channels.
        smooth: with "guide", guided backpropagation lets only positive gradients through smooth activations as
            well, those listed in ``guided_backprop.rules.SMOOTH`` (GELU, SiLU, LeakyReLU...), and their own
            derivative does the rest. That extends the method beyond what was published; the result's ``method``
            says so.
        memory: with "lean", a PyTorch model keeps for the backward pass only what that needs: no inputs of
            convolutions and pooling, and one bit for each value of a ReLU. The maps are the same.
        undo_head: where the model ends in a softmax, log-softmax or sigmoid, explain the logit in front
            of it. A probability's own map is scaled down by up to millions and mixes all classes.
        vouch: what is known of parts that hide what they compute, by the name that the error gave
            them: "plain" for one that contains no ReLU, "relu" for a custom function that is one.

    Raises:
        OptionError: an option has a value that is not offered; the model has no such layer, or several of that name.
        ModelError: the model is not callable, or has no layers by name.
        MissingExtraError: the model's framework is not installed.

    Attributes:
        subject: the model, and what is said about it.
        rule: what a ReLU lets through.
        reducer: as above.
        batch_size: as above.
        compiled: the graph that :meth:`compile` made, and what runs it; None for a method as it is.

    Example:
        >>> import torch
        >>> from guided_backprop import GuidedBackprop
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        >>> method = GuidedBackprop(model, batch_size=2, reducer="mean")
        >>> method.name, method.explain(torch.rand(4, 3, 8, 8), 1).attribution.shape
        ('GuidedBackprop', torch.Size([4, 8, 8]))
    """

    rule: ReluRule

    @answering
    def __init__(
        self,
        model: Model,
        *,
        output_layer: Layer = None,
        input_layer: Layer = None,
        output: str | int | None = None,
        batch_size: int | None = None,
        reducer: Reducer | None = None,
        smooth: Literal["guide"] | None = None,
        memory: Memory | None = None,
        undo_head: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        vouched = dict(vouch or {})
        require(
            Requirement(
                "model", model, not isinstance(model, Explainer), "a model", "A method's own is method.subject.model."
            ),
            Requirement(
                "batch_size",
                batch_size,
                batch_size is None or is_integer(batch_size, least=1),
                "a positive integer or None",
                "Pass how many images to explain at once.",
            ),
            Requirement(
                "reducer",
                reducer,
                reducer is None or reducer in REDUCERS,
                f"one of {', '.join(REDUCERS)} or None",
                "Pass one of these names.",
            ),
            Requirement(
                "smooth", smooth, smooth in (None, "guide"), '"guide" or None', "Pass None for the method as published."
            ),
            Requirement("memory", memory, memory in (None, "lean"), '"lean" or None', "Pass one of these."),
            *(
                Requirement(
                    f"vouch[{name!r}]",
                    treatment,
                    treatment in ("relu", "plain"),
                    '"relu" or "plain"',
                    'Pass "plain" if it contains no ReLU.',
                )
                for name, treatment in vouched.items()
            ),
        )
        if smooth is not None:
            self.rule = _guiding_smooth(self.rule, type(self).__name__)
        self.subject = Subject(
            model,
            output_layer=output_layer,
            input_layer=input_layer,
            output=output,
            undo_head=undo_head,
            vouch=vouched,
            memory=memory,
        )
        self.reducer, self.batch_size = reducer, batch_size
        self.compiled: Compiled | None = None
        self.subject.check()

    def __repr__(self) -> str:
        """Return the method with all that it holds, on one line, models and layers by their names."""
        held = {name: value for name, value in vars(self).items() if name not in ("subject", "rule")}
        if self.rule.guides_smooth:
            held["smooth"] = "guide"
        chosen = [f"{name}={brief(value)}" for name, value in held.items() if value is not None]
        return f"{type(self).__name__}({', '.join([self.subject.described(), *chosen])})"

    @property
    def name(self) -> str:
        """The method's name, with what it was extended by."""
        return f"{type(self).__name__}(smooth='guide')" if self.rule.guides_smooth else type(self).__name__

    @property
    def job(self) -> Job:
        """What is made of what this finds."""
        return Job(self.name, self.reducer, self.explains_inside)

    @property
    def explains_inside(self) -> bool:
        """Whether a layer's output is explained instead of the images."""
        return self.is_one_pass and self.subject.input_layer is not None

    @property
    def is_one_pass(self) -> bool:
        """Whether a map is what one backward pass under the rule gives."""
        kind = type(self)
        return kind.explain_batch is Method.explain_batch and kind._as_it_is is Method._as_it_is

    @property
    def plan(self) -> Plan:
        if not self.is_one_pass or self.explains_inside:
            raise no_graph(self)
        return Plan(self.rule, self.reducer)

    @answering
    def explain(
        self, images: Images, labels: Labels = None, *, mask: Any = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image.

        Args:
            images: floating-point batch ``(N, ...)``, already preprocessed, in the model's own layout;
                a tensor of the model's framework, or a NumPy array. For a model of several inputs a tuple of
                such batches, or a dictionary by the names of the model's arguments; a Keras model is given it
                whole, as it takes it. Inputs of integers are not explained, but for what ``input_layer`` makes of
                them. A list is the tuple of inputs of a model that takes several, else images, which are stacked. A
                ``tf.data.Dataset``, a ``DataLoader``, a PyTorch ``Dataset`` or any iterable of batches, alone or as
                ``(images, labels)``, is put together.
            labels: what of the output is explained, unless the data says it. The output's channels (classes) are
                its axis 1; its last axis where the model is channels-last and the output has positions.

                * class ids, one per image or one for all: that channel, summed over positions;
                * ``(N, K)`` class ids, ``"top5"``, or ``"all"`` in their order: K explanations of each image, from one
                  forward pass;
                * None: the channel with the highest sum;
                * a tuple ``(channel, row, column)``, or a list of tuples, one per image: that entry;
                * ``(channel, "max")``: a channel where it is strongest, as for a neuron; ``"max"``: all of them;
                * weights of the output's shape: a one-hot row, a contrast of -1, 0 and 1;
                * a :class:`Box`: a box found by a detector;
                * a callable from the output, a tensor of the framework, to ``(N,)`` scores; its own derivative is
                  taken as it is, for the rule is the model's alone.
            mask: the positions of a class that count, as in a segmented region: ``(...)`` or ``(N, ...)``,
                booleans or weights, of the shape of the output's positions.
            progress: whether a line says how many images are done, of several batches; None to show it on a terminal
                or in a notebook, from the third second on.

        Returns:
            The explanations, one per image. The attribution is the gradient of the score under the
            method's rule: signed, in units of score per unit of image.

        Raises:
            ImageError: images are not a batch of finite floating-point numbers.
            LabelError: labels do not index or weigh the model's output, or the mask has another shape.
            NoReluError: no ReLU lies between score and image, and the method acts on ReLUs.
            OpaqueRegionError: a part of the model hides what it computes.
            ModelError: the model is in training mode, fails on the images, or is not differentiable; or a layer is not
                run, or several times and none of them was chosen.
            ScoreError: a score does not depend on its image, or is not finite.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> explanations = GuidedBackprop(model.eval()).explain(torch.ones(5, 4), labels=1)
            >>> explanations.attribution.shape, str(explanations.coverage)
            (torch.Size([5, 4]), 'relu x1 guided')
        """
        return explain_given(
            self.subject,
            self.job,
            self.explain_batch,
            images,
            labels,
            mask=mask,
            batch_size=self.batch_size,
            progress=progress,
            sees_values=self.compiled is not None and self.compiled.sees_values,
        )

    def optimize(self, images: Images) -> Self:
        """Return this method for the same model, faster; tried on these images.

        In PyTorch, batch-norm is folded into the convolution in front of it, and pictures lie in memory channels
        last. The model itself is untouched, and its weights are read in each call: changed ones count at once. A model
        that takes another way on other images is run as it is. Scores and maps differ by rounding: a ReLU or a
        maximum nearly at a tie may turn. In TensorFlow and JAX this returns an equal method: both compile already.

        Args:
            images: a batch such as will be explained; a small one is enough.

        Raises:
            ImageError: as :meth:`explain`.
            ModelError: as :meth:`explain`.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
            >>> model = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval()
            >>> method = GuidedBackprop(model).optimize(torch.rand(1, 3, 8, 8))
            >>> method.explain(torch.rand(5, 3, 8, 8), 1).attribution.shape
            torch.Size([5, 3, 8, 8])
        """
        other = copy.copy(self)
        other.compiled = None
        other.subject = self.subject.optimized(given(self.subject, images, None).images)
        return other

    def compile(self, images: Images, engine: "Literal['auto'] | EngineName" = "auto") -> Self:
        """Return this method for the same model, its explanations computed as one graph by what is fastest.

        In PyTorch an engine runs the graph, which is that of :meth:`export`, recorded of these images and compared with
        this method as there, for one image, for these and for 17. It takes any number of images of these sizes.
        ``explain`` takes what it always takes: labels that are no class ids, such as "top5", masks and boxes, are
        worked out in Python and go into the graph as weights. What no graph can be, a function as label or images of
        another size or dtype, is explained as it is, and ``explanations.engine`` says so, and which engine computed the
        others. Maps differ by rounding from those of this method, in single precision.

        Weights are fixed: a model that changed since is an error, never explained by its former weights. With "auto"
        the run of :meth:`optimize` and this method as it is are tried as well; where one of them is the fastest it is
        taken, and changed weights count.
        Graphs are kept on disk, so that a second start only opens and compares them: ``guided-backprop cache``.

        In JAX and TensorFlow the framework runs one program with the weights in it as constants, for each number of
        images in JAX, for all in TensorFlow; or this method as it is, if that takes no longer on these images. All else
        holds as above, but that nothing is kept on disk.

        Args:
            images: a batch such as will be explained, in single precision: the fastest engine is found on it.
            engine: "onnxruntime", "openvino", or "auto" for the fastest of those that are installed and agree, of
                :meth:`optimize` and of this method; "auto" in JAX and TensorFlow.

        Raises:
            OptionError: there is no such engine, or the method is none of one pass at the images.
            ImageError: there is no image, or it isn't in single precision.
            ModelError: the model is no module in single precision on the processor, or one that :meth:`export` refuses;
                its arrays in JAX are not on the processor, or it is another one in each run.
            MissingExtraError: ``[export]`` is not installed, or the engine.
            GuidedBackpropError: all that :meth:`explain` raises.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
            >>> method = GuidedBackprop(model).compile(torch.rand(2, 3, 8, 8), engine="onnxruntime")
            >>> method.explain(torch.rand(5, 3, 8, 8)).engine.split()[0]
            'onnxruntime'
        """
        # What compiles knows of methods, so it is asked when it is needed.
        from guided_backprop.methods.compile import compile  # noqa: A004, PLC0415

        other = copy.copy(self)
        other.compiled = compile(self, images, engine)
        return other

    def around(self, model: Model) -> Self:
        other = copy.copy(self)
        other.compiled = None
        for name, value in vars(self).items():
            if isinstance(value, Subject):
                setattr(other, name, value.around(model))
        return other

    def as_it_is(self) -> Self:
        other = copy.copy(self)
        other.compiled = None
        return other

    def held(self) -> tuple[Subject, int | None]:
        return self.subject, self.batch_size

    def explain_batch(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        """Explain one batch: by one backward pass under the rule, where a method says nothing else."""
        if self.compiled is not None:
            return self.compiled.attribute(backend, inputs, weigh, score, self._as_it_is)
        return self._as_it_is(backend, inputs, weigh, score)

    def _as_it_is(self, backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> Attributed:
        return backend.attribute(inputs, weigh, [self.rule], score)[0]


def _guiding_smooth(rule: ReluRule, name: str) -> ReluRule:
    """Return the rule that lets only positive gradients through smooth activations as well."""
    if rule != GUIDED:
        raise OptionError(f'smooth="guide" extends guided backpropagation; received it for {name}. Use GuidedBackprop.')
    return replace(GUIDED, guides_smooth=True)
