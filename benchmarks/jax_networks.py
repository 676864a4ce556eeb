"""ResNet-50 as Flax has it, with weights drawn at random."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as fl
import jax
import numpy as np
from flax import nnx

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def linen_resnet() -> Callable[[Any], Any]:
    """Return ResNet-50 of Flax' linen, with its parameters."""

    class Block(fl.Module):
        width: int
        stride: int

        @fl.compact
        def __call__(self, x: Any) -> Any:
            conv = partial(fl.Conv, use_bias=False)
            norm = partial(fl.BatchNorm, use_running_average=True)
            y = fl.relu(norm()(conv(self.width, (1, 1))(x)))
            y = fl.relu(norm()(conv(self.width, (3, 3), self.stride)(y)))
            y = norm()(conv(4 * self.width, (1, 1))(y))
            if x.shape != y.shape:
                x = norm()(conv(4 * self.width, (1, 1), self.stride)(x))
            return fl.relu(x + y)

    class ResNet(fl.Module):
        @fl.compact
        def __call__(self, x: Any) -> Any:
            x = fl.Conv(64, (7, 7), 2, use_bias=False)(x)
            x = fl.relu(fl.BatchNorm(use_running_average=True)(x))
            x = fl.max_pool(x, (3, 3), (2, 2), "SAME")
            for stage, (width, blocks) in enumerate(STAGES):
                for block in range(blocks):
                    x = Block(width, 2 if stage and not block else 1)(x)
            return fl.Dense(1000)(x.mean((1, 2)))

    module = ResNet()
    parameters = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    return partial(module.apply, parameters)


def nnx_resnet() -> Callable[[Any], Any]:
    """Return ResNet-50 of Flax' NNX."""
    rngs = nnx.Rngs(0)

    class Part(nnx.Module):
        def __init__(self, inputs: int, width: int, side: int, stride: int) -> None:
            self.conv = nnx.Conv(inputs, width, (side, side), stride, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.norm(self.conv(x))

    class Block(nnx.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            self.first, self.middle = Part(inputs, width, 1, 1), Part(width, width, 3, stride)
            self.last = Part(width, 4 * width, 1, 1)
            self.skip = Part(inputs, 4 * width, 1, stride) if inputs != 4 * width else None

        def __call__(self, x: Any) -> Any:
            y = self.last(nnx.relu(self.middle(nnx.relu(self.first(x)))))
            return nnx.relu(y + (x if self.skip is None else self.skip(x)))

    class ResNet(nnx.Module):
        def __init__(self) -> None:
            self.stem, blocks, inputs = Part(3, 64, 7, 2), [], 64
            for stage, (width, count) in enumerate(STAGES):
                for block in range(count):
                    blocks.append(Block(inputs, width, 2 if stage and not block else 1))
                    inputs = 4 * width
            self.blocks, self.head = nnx.List(blocks), nnx.Linear(inputs, 1000, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    return ResNet()
