"""What is built around a method: it explains by running that, on other images or with something made of its maps."""

import copy
from typing import Self

from guided_backprop.arrays import Model
from guided_backprop.foreign import answering
from guided_backprop.methods.explainer import Explainer
from guided_backprop.methods.method import Method
from guided_backprop.methods.options import Requirement, require
from guided_backprop.subject import Subject


class Around(Explainer):
    """A method, and what is made of it; labels, data and results are as for :class:`Method`.

    Args:
        method: a method made for the model; its ``batch_size`` says how many images it is given at once.

    Raises:
        OptionError: what is given is no method.
    """

    @answering
    def __init__(self, method: Method) -> None:
        kind = type(self).__name__
        way = f"Pass {kind}(GuidedBackprop(model))."
        require(Requirement("method", method, isinstance(method, Method), "a method", way))
        self.method = method

    def __repr__(self) -> str:
        """Return the call that makes this, on one line, the model by its name."""
        return self._described(repr(self.method))

    @property
    def name(self) -> str:
        """The method's name, with all that was chosen."""
        return self._described(self.method.name)

    @property
    def subject(self) -> Subject:
        """The model, and what is said about it."""
        return self.method.subject

    def held(self) -> tuple[Subject, int | None]:
        return self.method.held()

    def _described(self, method: str) -> str:
        """Return the call that makes this around what a method is called."""
        return f"{type(self).__name__}({method})"

    def as_it_is(self) -> Self:
        other = copy.copy(self)
        other.method = self.method.as_it_is()
        return other

    def around(self, model: Model) -> Self:
        other = copy.copy(self)
        other.method = self.method.around(model)
        return other
