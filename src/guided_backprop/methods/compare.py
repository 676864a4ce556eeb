"""Several methods on the same images: those that differ in their rule alone share a forward pass."""

from collections.abc import Sequence
from types import FunctionType
from typing import Any

from guided_backprop.arrays import Images, Inputs, Labels
from guided_backprop.backends.base import Attributed, Backend, Score, Weigh
from guided_backprop.errors import OptionError
from guided_backprop.explanations import Explanations
from guided_backprop.foreign import answering
from guided_backprop.methods.batches import explain_together
from guided_backprop.methods.data import given
from guided_backprop.methods.explainer import Explainer
from guided_backprop.methods.method import Method
from guided_backprop.subject import is_same


@answering
def compare(images: Images, labels: Labels, methods: Sequence[Explainer], *, mask: Any = None) -> list[Explanations]:
    """Explain the same images by several methods; those that differ only in their rule share one forward pass.

    Args:
        images: as for :meth:`Method.explain`.
        labels: as for :meth:`Method.explain`.
        methods: the methods, of any models, or what is built around them.
        mask: as for :meth:`Method.explain`.

    Returns:
        The explanations by each method, in their order; the same as from :meth:`Method.explain`.

    Raises:
        OptionError: methods is none of several, but one.
        GuidedBackpropError: all that :meth:`Method.explain` raises.

    Example:
        >>> import torch
        >>> from guided_backprop import DeconvNet, GuidedBackprop, Saliency, compare
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> methods = [Saliency(model), DeconvNet(model), GuidedBackprop(model)]
        >>> [found.method for found in compare(torch.rand(5, 4), 1, methods)]
        ['Saliency', 'DeconvNet', 'GuidedBackprop']
    """
    if isinstance(methods, Explainer):
        raise OptionError("methods must be a list; received one method. Pass [method], or write method.explain().")
    if methods:
        images, labels = given(methods[0].held()[0], images, labels)
    results: dict[int, Explanations] = {}
    for position, method in enumerate(methods):
        if position in results:
            continue
        together = _sharing(position, methods)
        if len(together) > 1:
            shared = _explain(Inputs.of(images), labels, [*together.values()], mask)
            results |= zip(together, shared, strict=True)
        else:
            results[position] = method.explain(images, labels, mask=mask)
    return [results[position] for position in range(len(methods))]


def _explain(inputs: Inputs, labels: Labels, methods: list[Method], mask: Any) -> list[Explanations]:
    """Explain by methods that share their forward passes."""
    rules = [method.rule for method in methods]

    def explain_batch(backend: Backend, inputs: Inputs, weigh: Weigh, score: Score | None) -> list[Attributed]:
        return backend.attribute(inputs, weigh, rules, score)

    return explain_together(
        methods[0].subject.backend(inputs),
        [method.job for method in methods],
        explain_batch,
        inputs,
        labels,
        mask=mask,
        batch_size=methods[0].batch_size,
    )


def _sharing(first: int, methods: Sequence[Explainer]) -> dict[int, Method]:
    """Return by their positions the methods from one on that share its forward pass, itself included."""
    one = methods[first]
    if not isinstance(one, Method):
        return {}
    later = ((position, methods[position]) for position in range(first + 1, len(methods)))
    return {first: one} | {
        position: other for position, other in later if isinstance(other, Method) and _share_a_pass(one, other)
    }


def _share_a_pass(one: Method, other: Method) -> bool:
    """Tell whether two methods differ in nothing but the rule and the reducer, which come after the forward pass.

    Everything that they hold is compared, so a further option, of the subject or of a method of the user's own, need
    not be known here; and what a subclass does in its own way it does by itself.
    """
    if _has_own_way(type(one)) or _has_own_way(type(other)):
        return False
    held, held_by_other = ({**vars(method), "rule": None, "reducer": None} for method in (one, other))
    return held.keys() == held_by_other.keys() and all(is_same(held[name], held_by_other[name]) for name in held)


def _has_own_way(kind: type[Method]) -> bool:
    """Tell whether a class overrides anything of Method but how it is made and what it is called."""
    functions = [name for name, value in vars(Method).items() if isinstance(value, FunctionType)]
    return any(getattr(kind, name) is not getattr(Method, name) for name in {*functions} - {"__init__", "__repr__"})
