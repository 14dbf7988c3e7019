"""A 3D network of large depthwise convolutions, as MedNeXt has them (Roy et al., MICCAI 2023), in its size S."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """A depthwise convolution, a norm of each channel, and two pointwise ones; stride 2 halves or doubles the size."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int = 2, down: bool = False, up: bool = False) -> None:
        super().__init__()
        stride = 2 if down or up else 1
        kind: Any = nn.ConvTranspose3d if up else nn.Conv3d
        more = {"output_padding": 1} if up else {}
        self.depthwise = kind(inputs, inputs, 3, stride, 1, groups=inputs, **more)
        self.norm = nn.GroupNorm(inputs, inputs)
        self.pointwise = nn.Sequential(
            nn.Conv3d(inputs, expansion * inputs, 1), nn.GELU(), nn.Conv3d(expansion * inputs, outputs, 1)
        )
        self.way = nn.Identity() if stride == 1 else kind(inputs, outputs, 1, stride, **more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.pointwise(self.norm(self.depthwise(x))) + self.way(x)
        return result


class MedNeXt(nn.Module):
    """(N, 1, D, H, W) to the logits (N, 3, D, H, W); sizes are multiples of 16."""

    def __init__(self, channels: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels + 1)]
        self.stem = nn.Conv3d(1, channels, 1)
        self.encoder = nn.ModuleList([nn.Sequential(Block(width, width), Block(width, width)) for width in widths])
        self.downs = nn.ModuleList([Block(a, b, down=True) for a, b in itertools.pairwise(widths)])
        self.ups = nn.ModuleList([Block(b, a, up=True) for a, b in itertools.pairwise(widths)])
        self.decoder = nn.ModuleList([nn.Sequential(Block(width, width), Block(width, width)) for width in widths[:-1]])
        self.head = nn.Conv3d(channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.encoder[0](self.stem(x))]
        for down, block in zip(self.downs, list(self.encoder)[1:], strict=True):
            skips.append(block(down(skips[-1])))
        x = skips.pop()
        for up, block in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = block(up(x) + skips.pop())
        result: torch.Tensor = self.head(x)
        return result
