"""EfficientNet-Lite0 in PyTorch, after Tan and Le 2019 (arXiv:1905.11946) and TensorFlow's description of "lite".

The only network that the library brings; its layers are called as in the file of weights that they are loaded from.
Lite is EfficientNet without squeeze-and-excitation, and with ReLU6 in the place of swish.
"""

import torch
from torch import nn

# For each stage: how many blocks, the kernel, the stride of the first block, the expansion, and the channels.
_STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def _normed(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.01, eps=1e-3)


class _SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does: with a stride of two, of an even size, one pixel more at the end."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        even = stride == 1
        super().__init__(channels, out, kernel, stride, kernel // 2 if even else 0, groups=groups, bias=False)
        ends = (kernel // 2 - 1, kernel // 2) * 2
        self.static_padding = nn.Identity() if even else nn.ZeroPad2d(ends)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.static_padding(images))


class _Block(nn.Module):
    """An inverted bottleneck: expand, filter each channel by itself, project; around it a way past where it fits."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion > 1:
            self._expand_conv = _SameConv2d(channels, wide, 1)
            self._bn0 = _normed(wide)
        self._depthwise_conv = _SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _normed(wide)
        self._project_conv = _SameConv2d(wide, out, 1)
        self._bn2 = _normed(out)
        self._relu6 = nn.ReLU6()
        self._expands, self._is_residual = expansion > 1, stride == 1 and channels == out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._relu6(self._bn0(self._expand_conv(images))) if self._expands else images
        hidden = self._relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + images if self._is_residual else hidden


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: from images ``(N, 3, 224, 224)`` to logits ``(N, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, 2)
        self._bn0 = _normed(32)
        self._blocks = nn.ModuleList()
        channels = 32
        for blocks, kernel, stride, expansion, out in _STAGES:
            for number in range(blocks):
                self._blocks.append(_Block(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
        self._conv_head = _SameConv2d(channels, 1280, 1)
        self._bn1 = _normed(1280)
        self._relu6 = nn.ReLU6()
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self._relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = self._relu6(self._bn1(self._conv_head(hidden)))
        logits: torch.Tensor = self._fc(self._dropout(self._avg_pooling(hidden).flatten(1)))
        return logits
