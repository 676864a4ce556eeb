"""One small residual network, written in every way people write one in PyTorch.

The pre-activation skip lets x feed both a ReLU and the skip, and one activation is used three times, so a
ReLU that is missed anywhere changes the map. The reference network says what is right.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import reference
from networks_torch import to_torch

IMAGES = np.random.default_rng(1).normal(size=(4, 3, 8, 8))
CLASSES = 5
Activation = Callable[[torch.Tensor], torch.Tensor]


def network(cap: float | None = None, seed: int = 0) -> reference.Sequential:
    """Return the reference network: conv, x + conv(relu(x)), relu, pool, strided grouped conv, norm, relu."""
    rng = np.random.default_rng(seed)
    relu = reference.ReLU(cap)
    layers = (
        reference.random_conv(rng, 3, 4, padding=(1, 1)),
        reference.Residual(reference.Sequential((relu, reference.random_conv(rng, 4, 4, padding=(1, 1))))),
        relu,
        reference.MaxPool2d((2, 2), (2, 2)),
        reference.random_conv(rng, 4, 6, stride=(2, 2), padding=(2, 2), dilation=(2, 2), groups=2),
        reference.random_batch_norm(rng, 6),
        relu,
        reference.Flatten(),
        reference.random_linear(rng, 24, CLASSES),
    )
    return reference.Sequential(layers)


def oracle(labels: list[int], rule: reference.Rule = "guided", cap: float | None = None) -> reference.Array:
    """Return the right map."""
    return reference.attribution(network(cap), IMAGES, np.eye(CLASSES)[labels], rule)


class Net(nn.Module):
    """The same network in torch; ``activate`` says how its ReLUs are written."""

    def __init__(self, *activate: Activation, cap: float | None = None) -> None:
        super().__init__()
        layers = network(cap).layers
        self.stem, self.branch = to_torch(layers[0]), to_torch(layers[1].branch.layers[1])
        self.middle = nn.Sequential(*map(to_torch, layers[3:6]))
        self.head = nn.Sequential(*map(to_torch, layers[7:]))
        self.first, self.second, self.third = activate if len(activate) == 3 else activate * 3
        self.eval()

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """The pre-activation block. The clone keeps an activation in place off the skip path."""
        return x + self.branch(self.first(x.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (N, 5)."""
        x = self.second(self.residual(self.stem(x)))
        return self.head(self.third(self.middle(x)))


def relu_net() -> Net:
    """Return the network with one nn.ReLU module used three times."""
    return Net(nn.ReLU())


def zero(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=x.dtype)


def on_whole_view(x: torch.Tensor) -> torch.Tensor:
    """In place on a view of everything."""
    y = x.clone()
    y.view(-1).relu_()
    return y


def on_slices(x: torch.Tensor) -> torch.Tensor:
    """In place on a slice of one tensor, and on a slice of another."""
    y, z = x * 1.0, x * 1.0
    y[:, :2].relu_()
    F.hardtanh_(z[:, 2:], 0.0, float("inf"))
    return torch.cat([y[:, :2], z[:, 2:]], 1)


ACTIVATIONS: dict[str, Activation] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu_": F.relu_,
    "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "in place on a view": on_whole_view,
    "in place on slices": on_slices,
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp_(min=0)": lambda x: x.clamp_(min=0),
    "clamp(0, inf)": lambda x: x.clamp(0, float("inf")),
    "clamp(min=tensor)": lambda x: x.clamp(min=zero(x)),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min(tensor)": lambda x: torch.clamp_min(x, zero(x)),
    "clip": lambda x: torch.clip(x, 0),
    "maximum(x, 0)": lambda x: torch.maximum(x, zero(x)),
    "maximum(0, x)": lambda x: torch.maximum(torch.zeros_like(x), x),
    "max(x, 0)": lambda x: torch.max(x, torch.zeros_like(x)),
    "max(0, x)": lambda x: torch.max(zero(x).expand_as(x), x),
    "fmax(x, 0)": lambda x: torch.fmax(x, zero(x)),
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "hardtanh(0, inf)": lambda x: F.hardtanh(x, 0.0, float("inf")),
    "leaky_relu(slope=0)": lambda x: F.leaky_relu(x, 0.0),
    "leaky_relu_(slope=0)": lambda x: F.leaky_relu_(x, 0.0),
    "rrelu(0, 0)": lambda x: F.rrelu(x, 0.0, 0.0),
    "elu(alpha=0)": lambda x: F.elu(x, 0.0),
}

CAPPED: dict[str, Activation] = {
    "nn.Hardtanh(0, 1)": nn.Hardtanh(0.0, 1.0),
    "clamp(0, 1)": lambda x: x.clamp(0, 1),
    "clamp(tensors)": lambda x: x.clamp(zero(x), zero(x) + 1),
    "hardtanh_": lambda x: F.hardtanh_(x, 0.0, 1.0),
}


def scripted(model: nn.Module, warm: int = 4) -> nn.Module:
    """Return a scripted module that has run often enough to be optimised."""
    return warmed(torch.jit.script(model), warm)


def warmed(model: nn.Module, warm: int = 4) -> nn.Module:
    """Run a model a few times with gradients, as in use."""
    for _ in range(warm):
        model(torch.tensor(IMAGES, requires_grad=True)).sum().backward()
    return model


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Save and load a scripted module."""
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return warmed(torch.jit.load(buffer))


class Checkpointed(Net):
    """The network with its block, and its ReLUs, under a checkpoint."""

    use_reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (N, 5)."""
        x = checkpoint(lambda x: self.second(self.residual(x)), self.stem(x), use_reentrant=self.use_reentrant)
        return self.head(checkpoint(lambda x: self.third(self.middle(x)), x, use_reentrant=self.use_reentrant))


class Reentrant(Checkpointed):
    """The same under the reentrant checkpoint."""

    use_reentrant = True


def compiled(model: nn.Module) -> nn.Module:
    """Compile to a differentiated graph; ``aot_eager`` hides ReLUs as inductor does and needs no compiler."""
    return warmed(torch.compile(model, backend="aot_eager"))


def compiled_in_place(model: nn.Module) -> nn.Module:
    """``Module.compile``."""
    model.compile(backend="aot_eager")
    return warmed(model)


def with_compiled_parts() -> nn.Module:
    """Compile two submodules and one function."""
    model = Net(nn.ReLU(), nn.ReLU(), nn.ReLU())
    model.middle = torch.compile(model.middle, backend="aot_eager")
    model.third = torch.compile(model.third, backend="aot_eager")
    function = torch.compile(lambda x: torch.relu(x), backend="aot_eager")
    model.second.forward = lambda x: function(x)
    return warmed(model)


def frozen(model: nn.Module) -> nn.Module:
    """Stop training the parameters."""
    return model.requires_grad_(False)


FORMS: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "module": relu_net,
    "lambda": lambda: (lambda model: lambda x: model(x))(relu_net()),
    "requires_grad=False": lambda: frozen(relu_net()),
    "fx": lambda: torch.fx.symbolic_trace(relu_net()),
    "export": lambda: torch.export.export(relu_net(), (torch.tensor(IMAGES),)).module(),
    "jit.trace": lambda: warmed(torch.jit.trace(relu_net(), torch.tensor(IMAGES))),
    "jit.script": lambda: scripted(scriptable()),
    "jit.script, first call": lambda: torch.jit.script(scriptable()),
    "jit.script, reloaded": lambda: reloaded(scripted(scriptable())),
    "jit.freeze": lambda: warmed(torch.jit.freeze(torch.jit.script(scriptable()))),
    "torch.compile": lambda: compiled(relu_net()),
    "torch.compile of a lambda": lambda: (lambda model: lambda x: model(x))(compiled(relu_net())),
    "Module.compile": lambda: compiled_in_place(relu_net()),
    "compiled submodule": lambda: with_compiled_parts(),
    "checkpoint": lambda: Checkpointed(nn.ReLU()),
    "checkpoint with maximum": lambda: Checkpointed(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "checkpoint with clamp": lambda: Checkpointed(lambda x: x.clamp(min=0)),
    "DataParallel": lambda: nn.DataParallel(relu_net()).eval(),
}


def scriptable() -> nn.Module:
    """Return the network as modules only, so that it can be scripted."""
    return to_torch(network())


class OwnRelu(torch.autograd.Function):
    """A ReLU as a custom function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0)


def assigned(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y < 0] = 0
    return y


def scattered(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y[x > 0] = x[x > 0]
    return y


def masked_on_view(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, :2].masked_fill_(y[:, :2] < 0, 0.0)
    return torch.cat([y[:, :2], x[:, 2:].relu()], 1)


def clamped_on_view(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, :2].clamp_(min=0)
    return torch.cat([y[:, :2], x[:, 2:].relu()], 1)


def every_third(x: torch.Tensor) -> torch.Tensor:
    """A mask that does not depend on the images."""
    return (torch.arange(x[0].numel()) % 3 == 0).view(x[0].shape).expand_as(x)


def channel_scale(x: torch.Tensor) -> torch.Tensor:
    """One number per channel, of both signs."""
    return torch.linspace(-0.5, 1.5, x.shape[1], dtype=x.dtype).view(1, -1, 1, 1)


# Each is a ReLU, and none of them is one operation.
SPELLED: dict[str, Activation] = {
    "where(x > 0, x, 0)": lambda x: torch.where(x > 0, x, 0.0),
    "where(x <= 0, 0, x)": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "where(x.detach() > 0)": lambda x: torch.where(x.detach() > 0, x, 0.0),
    "x * (x > 0)": lambda x: x * (x > 0),
    "(x > 0).double() * x": lambda x: (x > 0).double() * x,
    "2 * ~(x < 0) * x / 2": lambda x: 2.0 * (~(x < 0)).double() * x / 2,
    "x.mul(mask) with views": lambda x: x.flatten().mul((x > 0).flatten()).view_as(x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "masked_fill_": lambda x: (lambda y: y.masked_fill_(y < 0, 0.0))(x.clone()),
    "masked_scatter": lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)),
    "y[y < 0] = 0": assigned,
    "y[x > 0] = x[x > 0]": scattered,
    "(x + |x|) / 2": lambda x: (x + x.abs()) / 2,
    "0.3 x + 0.3 |x|": lambda x: (0.3 * x + 0.3 * x.abs()) / 0.6,
    "(x + sqrt(x * x)) / 2": lambda x: (x + (x * x).sqrt()) / 2,
    "x - minimum(x, 0)": lambda x: x - torch.minimum(x, zero(x)),
    "-minimum(-x, 0)": lambda x: -torch.minimum(-x, zero(x)),
    "x - clamp(max=0)": lambda x: x - x.clamp(max=0),
    "x - clamp_max": lambda x: x - x.clamp_max(0),
    "heaviside": lambda x: x * torch.heaviside(x.detach(), torch.zeros_like(x)),
    "x * sign(x).clamp(min=0)": lambda x: x * x.detach().sign().clamp(min=0),
    "stack and max": lambda x: torch.stack([x, torch.zeros_like(x)]).max(0).values,
    "stack and amax": lambda x: torch.stack([x, torch.zeros_like(x)], -1).amax(-1),
    "addcmul": lambda x: torch.addcmul(torch.zeros_like(x), x, (x > 0).double()),
    "lerp": lambda x: torch.lerp(torch.zeros_like(x), x, (x > 0).double()),
    "masked in place on a view": masked_on_view,
    "clamped in place on a view": clamped_on_view,
    "where((x > 0) & pad, x, 0)": lambda x: torch.where((x > 0) & ~every_third(x), x, 0.0),
    "x * ((x > 0) * pad)": lambda x: x * ((x > 0) * ~every_third(x)),
    "masked_fill((x < 0) | pad)": lambda x: x.masked_fill((x < 0) | every_third(x), 0.0),
    "where(x > 0, scale * x, 0)": lambda x: torch.where(x > 0, x * channel_scale(x), 0.0),
    "where(x > S, x - S, 0)": lambda x: torch.where(x > channel_scale(x), x - channel_scale(x), 0.0),
    "where(x > 0, x, -0.5)": lambda x: torch.where(x > 0, x, -0.5),
    "where(zeros < x, x, 0)": lambda x: torch.where(torch.zeros_like(x) < x, x, 0.0),
    "(x + (x ** 2) ** 0.5) / 2": lambda x: (x + (x**2) ** 0.5) / 2,
    "(x + norm) / 2": lambda x: (x + x.unsqueeze(-1).norm(dim=-1)) / 2,
    "maximum(x, 0 * x)": lambda x: torch.maximum(x, 0 * x),
    "fmax(x - x, x)": lambda x: torch.fmax(x - x, x),
    "stack, permute, max": lambda x: torch.stack([x, torch.zeros_like(x)]).permute(1, 2, 3, 4, 0).max(-1).values,
    "pad and amax": lambda x: F.pad(x[..., None], (0, 1)).amax(-1),
    "maximum with a bound 0 in places": lambda x: torch.maximum(x, channel_scale(x).clamp(max=0) * 1e9),
    "clamp with a bound 0 in places": lambda x: x.clamp(min=channel_scale(x).clamp(max=0) * 1e9),
    "foreach": lambda x: torch._foreach_clamp_min([x], 0.0)[0],
    "custom autograd.Function": OwnRelu.apply,
}
