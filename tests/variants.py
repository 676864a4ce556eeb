"""The ways a PyTorch model is run: as it is, keeping less for the backward pass, optimised. All give the same maps."""

from collections.abc import Iterator
from typing import Any

import pytest

from guided_backprop import Method

VARIANTS = {
    "as it is": {},
    "lean": {"memory": "lean"},
    "optimised": {"is_optimized": True},
    "lean, optimised": {"memory": "lean", "is_optimized": True},
}


def variant(method: type[Method], memory: str | None = None, is_optimized: bool = False) -> type[Method]:
    """Return a method that always runs in one of these ways, and goes by the same name."""

    class Variant(method):
        def __init__(self, model: Any, **options: Any) -> None:
            super().__init__(model, **({"memory": memory} | options))

        def explain(self, images: Any, labels: Any = None, *, mask: Any = None) -> Any:
            if not is_optimized or self.subject.is_optimized:
                return super().explain(images, labels, mask=mask)
            if getattr(images, "ndim", 0) and not len(images):
                return super().explain(images, labels, mask=mask)
            try:
                self._prepare(images)
            except Exception:
                # What cannot be explained cannot be optimised either; nothing else.
                super().explain(images, labels, mask=mask)
                raise
            return self._optimized.explain(images, labels, mask=mask)

        def _prepare(self, images: Any) -> None:
            if hasattr(self, "_optimized"):
                return
            try:
                # Optimised once, and used for other images.
                self._optimized = self.optimize(images[:1])
            except Exception:
                # The model takes batches of one size.
                self._optimized = self.optimize(images)

    Variant.__name__ = Variant.__qualname__ = method.__name__
    return Variant


def each_variant(*names: str) -> Any:
    """Return a fixture that runs the tests of its module once in each of these ways."""

    @pytest.fixture(autouse=True, scope="module", params=names)
    def run(request: pytest.FixtureRequest) -> Iterator[None]:
        options = VARIANTS[request.param]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("Saliency", "DeconvNet", "GuidedBackprop"):
                if options and hasattr(request.module, name):
                    patch.setattr(request.module, name, variant(getattr(request.module, name), **options))
            for rule, method in getattr(request.module, "METHODS", {}).items():
                if options:
                    patch.setitem(request.module.METHODS, rule, variant(method, **options))
            yield

    return run
