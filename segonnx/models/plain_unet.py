"""nnU-Net's plain convolutional U-Net, as TotalSegmentator uses it, from dynamic-network-architectures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segonnx.models.base import BuiltModel


def build(*, features: Sequence[int], num_classes: int, in_channels: int = 1) -> BuiltModel:
    """Build a 3D PlainConvUNet: kernel 3, stride 2 after the first stage, two convolutions per stage."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    stages = len(features)
    module = PlainConvUNet(
        input_channels=in_channels,
        n_stages=stages,
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        n_conv_per_stage=2,
        num_classes=num_classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
    return BuiltModel(
        module,
        unused={
            rf"decoder\.seg_layers\.[0-{stages - 3}]\..*": "deep-supervision head; inference uses the last head alone"
        },
    )
