"""STU-Net, the scalable residual 3D U-Net of Huang et al. (arXiv 2304.06716).

Modules carry the names of the published checkpoints, so that those load by name. In the shape comments below N is the
batch, and D, H and W are the depth, height and width of the input in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segonnx.models.base import BuiltModel

STAGE_WIDTHS = (1, 2, 4, 8, 16, 16)
"""Channels of the six stages, in multiples of the base width."""
STRIDES = ((2, 2, 2),) * 5
"""By what the published networks divide the spatial sizes from each stage to the next, (depth, height, width)."""


class ResidualBlock(nn.Module):
    """conv3 - norm - activation - conv3 - norm, plus the input, then activation.

    A stage's first block carries the stage's stride, and projects its input with a 1x1x1 convolution (``conv3``).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int] = (1, 1, 1), *, project: bool = False
    ) -> None:
        super().__init__()
        stride = _three(stride)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.act1 = nn.LeakyReLU(inplace=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.act2 = nn.LeakyReLU(inplace=True)
        self.conv3 = nn.Conv3d(in_channels, out_channels, 1, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return self.act2(y + shortcut)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by the stage's stride, then a 1x1x1 convolution to the next width."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(map(float, stride))
        self.conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest"))  # type: ignore[no-any-return]


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    depth, height, width = sizes
    return depth, height, width


def _stage(in_channels: int, out_channels: int, stride: Sequence[int], depth: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride, project=True)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(depth - 1)))


class STUNet(nn.Module):
    """The network: six encoder stages, five decoder stages, and one head per decoder stage.

    All heads hold parameters, as in the published checkpoints; inference uses the last one alone.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_classes: int,
        in_channels: int = 1,
        strides: Sequence[Sequence[int]] = STRIDES,
    ) -> None:
        super().__init__()
        widths = [width * factor for factor in STAGE_WIDTHS]
        inputs = [in_channels, *widths[:-1]]
        self.conv_blocks_context = nn.ModuleList(
            _stage(inputs[i], widths[i], stride, depth) for i, stride in enumerate(((1, 1, 1), *strides))
        )
        up = list(zip(reversed(widths[1:]), reversed(widths[:-1]), reversed(strides), strict=True))
        self.upsample_layers = nn.ModuleList(Upsample(below, here, stride) for below, here, stride in up)
        self.conv_blocks_localization = nn.ModuleList(_stage(2 * here, here, (1, 1, 1), depth) for _, here, _ in up)
        self.seg_outputs = nn.ModuleList(nn.Conv3d(here, num_classes, 1) for _, here, _ in up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, D, H, W) to logits (N, num_classes, D, H, W).

        D, H and W are multiples of the product of the strides: 32 in the published networks.
        """
        return self.seg_outputs[-1](self._decode(x)[-1])  # type: ignore[no-any-return]

    def forward_all_heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The logits of all five heads, from the lowest resolution up, as training with deep supervision needs them."""
        return [head(y) for head, y in zip(self.seg_outputs, self._decode(x), strict=True)]

    def _decode(self, x: torch.Tensor) -> list[torch.Tensor]:
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        skips.pop()
        decoded = []
        for upsample, stage in zip(self.upsample_layers, self.conv_blocks_localization, strict=True):
            x = stage(torch.cat((upsample(x), skips.pop()), dim=1))
            decoded.append(x)
        return decoded


UNUSED = r"seg_outputs\.[0-3]\..*"
"""The names of the parameters that inference doesn't use."""


def build(*, depth: int, width: int, num_classes: int, in_channels: int = 1) -> BuiltModel:
    """Build STU-Net with ``depth`` residual blocks per stage and ``width`` channels in the first stage."""
    module = STUNet(depth=depth, width=width, num_classes=num_classes, in_channels=in_channels)
    return BuiltModel(
        module,
        unused={UNUSED: "deep-supervision head; inference uses the last head alone"},
        training_forward=module.forward_all_heads,
    )
