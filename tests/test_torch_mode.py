"""Training mode is refused where anything asks for it, by the name of the module; elsewhere it is no matter.

Explaining in a compiled function is no matter either, in the one way of running a model that is enough to see it.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, spectral_norm

from guided_backprop import GuidedBackprop, ModelError
from networks import IMAGES, LABELS, TOLERANCE, mlp
from networks_torch import oracle, relu_net, to_torch


def plain() -> nn.Module:
    return to_torch(mlp(6, 8, 3)).float().train()


def images() -> torch.Tensor:
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(1))


class Wrapper(nn.Module):
    """Runs a model, and asks for no mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class FrozenNorm(Wrapper):
    """Keeps its batch-norm as it is in any mode, as backbones do."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        self.model[1].eval()
        return self


@pytest.mark.filterwarnings("ignore:CUDA initialization", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "build",
    [
        plain,
        lambda: Wrapper(plain().eval()),
        lambda: nn.DataParallel(plain().eval()),
        lambda: torch.compile(plain()),
        lambda: nn.Sequential(torch.compile(plain().eval()), nn.Flatten()),
        lambda: checkpoint_wrapper(plain().eval()),
        lambda: nn.Sequential(plain(), nn.Dropout(0.0)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten(), plain()),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LSTM(3, 3, batch_first=True), Last(), nn.ReLU()),
        lambda: torch.fx.symbolic_trace(plain()),
        lambda: FrozenNorm().train(),
    ],
)
def test_training_mode_is_no_matter_where_nothing_asks_for_it(build):
    model = build()
    found = GuidedBackprop(model).explain(images(), 1)
    np.testing.assert_array_equal(found, GuidedBackprop(model.eval()).explain(images(), 1))


class Last(nn.Module):
    """The last step of a recurrent network."""

    def forward(self, outputs) -> torch.Tensor:
        return outputs[0][:, -1]


class Asking(Wrapper):
    """Asks for its own mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * (2 if self.training else 1)


class AskingInAMethod(Wrapper):
    @property
    def factor(self) -> int:
        return self.scale(lambda: self.training)

    @staticmethod
    def scale(is_training) -> int:
        return 2 if is_training() else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * self.factor


class AskingAbove(Asking):
    """Inherits what asks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class AskingByName(Wrapper):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * (1 + getattr(self, "training"))  # noqa: B009 - that is how some write it


def doubled(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if module.training else x


class AskingInAFunction(Wrapper):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return doubled(self, self.model(x))


class AskingBelow(Wrapper):
    """Asks for the mode of a part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * (2 if self.model[0].training else 1)


def decorated(forward):
    @functools.wraps(forward)
    def run(*arguments):
        return forward(*arguments)

    return run


class AskingDecorated(Wrapper):
    @decorated
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.model(x), 0.5, self.training)


def hooked() -> nn.Module:
    model = plain()
    model[0].register_forward_hook(lambda module, given, result: doubled(module, result))
    return model


def given_another_forward() -> nn.Module:
    model = Wrapper(plain())
    model.forward = functools.partial(doubled, model.model)
    return model


ASKING = {
    "dropout": (lambda: nn.Sequential(plain(), nn.Dropout(0.5)), "1"),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), plain()), "1"),
    "rrelu": (lambda: nn.Sequential(plain(), nn.RReLU()), "1"),
    "attention": (lambda: nn.MultiheadAttention(6, 2, dropout=0.1), "the model"),
    "a transformer": (lambda: nn.TransformerEncoderLayer(6, 2, 8), "self_attn"),
    "spectral norm": (lambda: nn.Sequential(plain(), parametrizations.spectral_norm(nn.Linear(3, 3))), "1.parametr"),
    "a user's own": (lambda: Asking(plain()), "the model"),
    "inside": (lambda: Wrapper(Asking(plain())), "model"),
    "a method": (lambda: AskingInAMethod(plain()), "the model"),
    "a base class": (lambda: AskingAbove(plain()), "the model"),
    "by name": (lambda: AskingByName(plain()), "the model"),
    "a function": (lambda: AskingInAFunction(plain()), "the model"),
    "decorated": (lambda: AskingDecorated(plain()), "the model"),
    "a hook": (hooked, "0"),
    "compiled": (lambda: torch.compile(Asking(plain())), "_orig_mod"),
    "parallel": (lambda: nn.DataParallel(Asking(plain())), "module"),
}


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:enable_nested_tensor", "ignore:CUDA initialization", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("name", ASKING)
def test_what_asks_for_its_mode_is_refused_by_name_before_it_runs(name):
    build, where = ASKING[name]
    model = build().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=rf"training=True on {where}.*model\.eval\(\)"):
        GuidedBackprop(model).explain(images(), 1)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_spectral_norm_asks_in_a_hook():
    with pytest.raises(ModelError, match="training=True on 1"):
        GuidedBackprop(nn.Sequential(plain(), spectral_norm(nn.Linear(3, 3)))).explain(images(), 1)


def test_a_part_that_another_asks_about():
    model = AskingBelow(plain()).eval()
    GuidedBackprop(model).explain(images(), 1)
    model.model[0].train()
    with pytest.raises(ModelError, match=r"training=True on model\.0"):
        GuidedBackprop(model).explain(images(), 1)


def test_another_forward_of_one_module():
    with pytest.raises(ModelError, match="training=True on the model"):
        GuidedBackprop(given_another_forward()).explain(images(), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_explaining_from_inside_a_compiled_function():
    method, given = GuidedBackprop(relu_net()), torch.tensor(IMAGES)
    compiled = torch.compile(lambda x: method.explain(x, LABELS).attribution, backend="aot_eager")
    for _ in range(2):
        np.testing.assert_allclose(compiled(given), oracle(), **TOLERANCE["float64"])
    whole = torch.compile(lambda x: method.explain(x, LABELS).attribution, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="torch.compile|graph break|Unsupported"):
        whole(given)
