"""PyTorch: networks as modules, ways to write their ReLUs, and ways to use the finished model."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from guided_backprop_suite.cases import Asked, Case, Framework
from guided_backprop_suite.networks import Array, Layer, Network

Relu = Callable[[], nn.Module]

# The layers that PyTorch has not.


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class Checkpointed(Residual):
    """The same, its branch computed anew in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.branch, x, use_reentrant=False)  # type: ignore[no-any-return]


class Product(nn.Module):
    """The product of two branches."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.second(x)  # type: ignore[no-any-return]


class Mask(Product):
    """The second branch, where the first is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.first(x) > 0, self.second(x), 0.0)


class Standardise(nn.Module):
    """Standard scores; the variance is kept from being negative by rounding."""

    def forward(self, x: Tensor) -> Tensor:
        axes = [1, 2, 3]
        mean = x.mean(axes, keepdim=True)
        variance = torch.clamp((x * x).mean(axes, keepdim=True) - mean * mean, min=0)
        return (x - mean) / torch.sqrt(variance + 1e-5)


class Root(nn.Module):
    """The square root, a little away from 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x + 0.1)


class Tokens(nn.Module):
    """Position by position, its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).flatten(1)


class Spelled(nn.Module):
    """A ReLU written as a function or a tensor method in somebody's forward."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# From layers to a model.


def model_of(network: Network, relu: Relu = nn.ReLU, block: type[Residual] = Residual) -> nn.Module:
    """Return the network in double precision and evaluation; ``relu`` makes its ReLUs."""

    def sequential(layers: list[Layer]) -> nn.Module:
        return nn.Sequential(*map(build, layers))

    def conv(layer: Layer) -> nn.Module:
        places = {name: layer[name] for name in ("stride", "padding", "dilation", "groups") if name in layer}
        outputs, inputs, *kernel = layer["weight"].shape
        return nn.Conv2d(inputs * layer.get("groups", 1), outputs, kernel, **places)

    def build(layer: Layer) -> nn.Module:
        module = kinds[layer["kind"]](layer)
        arrays = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
        for name, key in arrays.items():
            if key in layer:
                getattr(module, name).data = torch.tensor(layer[key])
        return module

    kinds: dict[str, Callable[[Layer], nn.Module]] = {
        "conv": conv,
        "relu": lambda layer: relu(),
        "linear": lambda layer: nn.Linear(*reversed(layer["weight"].shape)),
        "norm": lambda layer: nn.BatchNorm2d(len(layer["weight"])),
        "residual": lambda layer: block(sequential(layer["layers"])),
        "product": lambda layer: Product(*map(sequential, layer["branches"])),
        "mask": lambda layer: Mask(*map(sequential, layer["branches"])),
        "max_pool": lambda layer: nn.MaxPool2d(layer["kernel"]),
        "mean": lambda layer: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "flatten": lambda layer: nn.Flatten(),
        "standardise": lambda layer: Standardise(),
        "root": lambda layer: Root(),
        "tokens": lambda layer: Tokens(),
    }
    return sequential(network.layers).double().eval()


# Ways to write a ReLU.


def relu_on_a_view(x: Tensor) -> Tensor:
    """Clip a view of x in place, and go on with x."""
    x.view(-1).relu_()
    return x


def put(x: Tensor) -> Tensor:
    """Put what is positive in its place among zeros."""
    place = torch.where(x > 0)
    return torch.zeros_like(x).index_put(place, x[place])


def masked_by_product(x: Tensor) -> Tensor:
    """Leave out what is negative by a matrix with zeros on its diagonal."""
    row = x.flatten(1)
    return torch.einsum("ni,nij->nj", row, torch.diag_embed((row > 0).to(x.dtype))).view_as(x)


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "`F.relu(x)`": F.relu,
    "`torch.relu(x)`": torch.relu,
    "`x.relu()`": lambda x: x.relu(),
    "`F.relu_(x)`": F.relu_,
    "`x.relu_()`": lambda x: x.relu_(),
    "`x.view(-1).relu_()`, then `x`": relu_on_a_view,
    "`x.clamp(min=0)`": lambda x: x.clamp(min=0),
    "`torch.clamp_min(x, 0)`": lambda x: torch.clamp_min(x, 0),
    "`torch.maximum(x, zero)`": lambda x: torch.maximum(x, x.new_zeros(())),
    "`torch.fmax(x, zero)`": lambda x: torch.fmax(x, x.new_zeros(())),
    "`F.threshold(x, 0, 0)`": lambda x: F.threshold(x, 0, 0),
    "`F.hardtanh(x, 0, inf)`": lambda x: F.hardtanh(x, 0, float("inf")),
    "`F.relu6(x)`, values below 6": F.relu6,
    "`F.leaky_relu(x, 0)`": lambda x: F.leaky_relu(x, 0),
    "`x * (x > 0)`": lambda x: x * (x > 0),
    "`torch.where(x > 0, x, 0)`": lambda x: torch.where(x > 0, x, 0),
    "`x.masked_fill(x < 0, 0)`": lambda x: x.masked_fill(x < 0, 0),
    "`(x + x.abs()) / 2`": lambda x: (x + x.abs()) / 2,
    "`x - x.clamp(max=0)`": lambda x: x - x.clamp(max=0),
    "`-(-x).clamp(max=0)`": lambda x: -(-x).clamp(max=0),
    "`(x - 1).clamp(min=-1) + 1`": lambda x: (x - 1).clamp(min=-1) + 1,
    "`torch.stack([x, zero]).amax(0)`": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0),
    "`torch.stack([x, zero]).sort(0).values[1]`": lambda x: torch.stack([x, torch.zeros_like(x)]).sort(0)[0][1],
    "zeros, and `x` where an index says": put,
    "a mask in a matrix product": masked_by_product,
    "`F.relu(x)`, if the image is bright enough": lambda x: F.relu(x) if x.mean() > -100 else x,
}
MODULE, FUNCTION = "`nn.ReLU()`", "`F.relu(x)`"


def written(function: Callable[[Tensor], Tensor]) -> Callable[[Network], nn.Module]:
    return lambda network: model_of(network, lambda: Spelled(function))


def modules(relu: Relu) -> Callable[[Network], nn.Module]:
    return lambda network: model_of(network, relu)


def reused(network: Network) -> nn.Module:
    """Return a network that calls one module for all its ReLUs."""
    relu = nn.ReLU()
    return model_of(network, lambda: relu)


# Ways to use the finished model.


def image_of(network: Network) -> Tensor:
    return torch.tensor(network.images)


def used(model: nn.Module, network: Network, *, gradients: bool) -> nn.Module:
    """Use the model as in production, or as for a saliency map: whatever optimises itself has now done so."""
    for _ in range(3):
        with torch.no_grad():
            model(image_of(network))
        if gradients:
            plain_gradient(model, image_of(network), network.labels)
    return model


def compiled(network: Network) -> nn.Module:
    """Return a compiled network; each starts with nothing cached."""
    torch.compiler.reset()
    return torch.compile(model_of(network), backend="aot_eager")  # type: ignore[return-value]


def scripted(network: Network) -> nn.Module:
    return used(torch.jit.script(model_of(network)), network, gradients=True)


def exported(network: Network) -> nn.Module:
    return torch.export.export(model_of(network), (image_of(network),)).module()


class CallsBack(nn.Module):
    """A model that lets another thread run while it runs: as in a server, where that is another request."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.meanwhile: Callable[[], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        return self.model(x)  # type: ignore[no-any-return]


class Dropping(nn.Module):
    """Dropout at the images that is never off."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.dropout(x, 0.5, training=True))  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[Network], nn.Module]] = {
    "`nn.ReLU()` in a checkpointed block": lambda network: model_of(network, block=Checkpointed),
    "`torch.fx.symbolic_trace(model)`": lambda network: torch.fx.symbolic_trace(model_of(network)),
    "`torch.export.export(model, ...).module()`": exported,
    "`torch.jit.script(model)`, after plain gradients": scripted,
    "`torch.compile(model)`, after predictions": lambda network: used(compiled(network), network, gradients=False),
    "`torch.compile(model)`, after plain gradients": lambda network: used(compiled(network), network, gradients=True),
}

# The rows.

SHAPES = {"rows": "three rows of a table", "odd": "one image, one channel, odd sizes", "grouped": "grouped, dilated"}
TIED = (FUNCTION, "`x.clamp(min=0)`", "`torch.maximum(x, zero)`")
CAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "`F.relu6(x)`": F.relu6,
    "`x.clamp(0, 6)`": lambda x: x.clamp(0, 6),
    "`F.hardtanh(x, 0, 6)`": lambda x: F.hardtanh(x, 0, 6),
    "`torch.minimum(F.relu(x), six)`": lambda x: torch.minimum(F.relu(x), x.new_full((), 6.0)),
}


def _cases() -> list[Case]:
    plain = modules(nn.ReLU)
    in_place, six = modules(lambda: nn.ReLU(inplace=True)), modules(nn.ReLU6)
    rows = [
        Case("spellings", MODULE, "residual", plain),
        Case("spellings", "`nn.ReLU(inplace=True)`", "residual", in_place),
        Case("spellings", "one `nn.ReLU()` called everywhere", "residual", reused),
        Case("spellings", "`nn.ReLU()` in `x + f(relu(x))`", "shared", plain),
        Case("spellings", "`nn.ReLU6()`, values below 6", "residual", six),
        *(Case("spellings", name, "residual", written(function)) for name, function in WRITTEN.items()),
        *(Case("forms", name, "residual", build) for name, build in FORMS.items()),
        *(Case("shapes", f"{said}, {MODULE}", name, plain) for name, said in SHAPES.items()),
    ]
    rows += [Case("ties", f"at 0, {MODULE}", "ties", plain)]
    rows += [Case("ties", f"at 0, {name}", "ties", written(WRITTEN[name]), has_same_gradient=False) for name in TIED]
    rows += [Case("caps", "`nn.ReLU6()`", "caps", six)]
    rows += [Case("caps", name, "caps", written(function)) for name, function in CAPPED.items()]
    for name, said in (("gate", "one branch's ReLU times another branch"), ("mask", "a branch where another is > 0")):
        rows += [Case("branch gates", f"{said}, {MODULE}", name, plain)]
    rows += [
        Case("guards", f"a variance that `clamp(min=0)` keeps from rounding, {MODULE}", "guard", plain),
        Case("guards", f"a ReLU in front of a root, {MODULE}", "root", plain),
        Case("guards", f"a ReLU in front of a root, {FUNCTION}", "root", written(F.relu)),
        Case("batch-norm", f"one image, channels to tokens, {MODULE}", "tokens", plain, has_same_gradient=False),
        Case("threads", f"four threads explain one model, {MODULE}", "residual", plain, Asked.THREADS),
        Case(
            "threads",
            f"another thread's plain gradient meanwhile, {MODULE}",
            "residual",
            lambda network: CallsBack(model_of(network)),
            meanwhile=True,
        ),
        Case("state", f"all is left as it was, {MODULE}", "residual", plain, Asked.STATE),
        Case("state", "weights that are not trained", "residual", lambda n: model_of(n).requires_grad_(False)),
        Case("random parts", "dropout that is on", "residual", lambda n: Dropping(model_of(n)).eval(), Asked.REFUSAL),
    ]
    return rows


# The framework.


def plain_gradient(model: Any, images: Tensor, labels: Any) -> Tensor:
    """Return the gradient that PyTorch itself gives."""
    images = images.detach().clone().requires_grad_()
    outputs = model(images)
    return torch.autograd.grad(outputs[range(len(labels)), labels.tolist()].sum(), images)[0]


def state(model: Any) -> Mapping[str, Any]:
    """Return weights, their gradients, modes and hooks, and what the next random number is made from."""
    found: dict[str, Any] = {"the random state": torch.get_rng_state().numpy()}
    for name, value in model.state_dict(keep_vars=True).items():
        found[f"{name}"] = value.detach().numpy().copy()
        found[f"the gradient of {name}"] = (value.requires_grad, value.grad is None)
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            found[f"{name or 'the model'}"] = (module.training, type(module).__name__, *map(len, hooks))
    return found


def back(found: Any) -> Array:
    """Return a map as an array."""
    return found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)


def outputs(model: Any, images: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(images))


TORCH = Framework("torch", _cases(), torch.tensor, back, outputs, plain_gradient, state)
