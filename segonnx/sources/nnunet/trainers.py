"""nnU-Net's trainers that build another network than the one that is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segonnx.sources.nnunet.plans import Architecture, axis_strides

STUNET = "STUNet"
"""What ``Architecture`` calls the network of STU-Net's trainers."""
STUNET_STRIDES = 5
"""How often STU-Net divides the spatial sizes."""
MAX_STUNET_SIZE = 8192
"""A checkpoint isn't taken for a deeper or wider STU-Net."""

_PRIMUS = {
    "S": {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6},
    "B": {"embed_dim": 792, "eva_depth": 12, "eva_numheads": 12},
    "M": {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12},
    "L": {"embed_dim": 1056, "eva_depth": 24, "eva_numheads": 16},
}
_PRIMUS_TRAINERS = {
    **{f"nnUNet_Primus_{size}_Trainer": ("Primus", size) for size in _PRIMUS},
    **{f"nnUNet_Primus_M_Trainer_BS8{rate}": ("Primus", "M") for rate in ("", "_2e4")},
    **{f"_Primus_{size}_{patch}_BS1": ("Primus", size) for size, patch in zip("SBML", (96, 96, 96, 48), strict=True)},
    **{
        f"nnUNet_Primus{version}{size}_Trainer": (f"Primus{version}", size)
        for version in ("V2", "V3")
        for size in _PRIMUS
    },
}
"""nnU-Net's trainers that build one network whatever the plan says, with its class and its size."""


def trained_architecture(
    planned: Architecture, trainer: str, patch_size: tuple[int, ...], shapes: Mapping[str, Sequence[int]] | None = None
) -> Architecture:
    """The network that a trainer builds from a plan; most build what is planned.

    Args:
        planned: the plan's network.
        trainer: the trainer's class.
        patch_size: the plan's.
        shapes: the shapes of the checkpoint's tensors, by name: STU-Net's sizes are read off them.
    """
    if trainer.startswith("STUNetTrainer") and len(patch_size) == 3 and "strides" in planned.arguments:
        return _stunet(planned, shapes or {}) or planned
    if trainer == "nnUNetTrainerBN" and "conv_op" in planned.arguments:
        axes = planned.arguments["conv_op"].removeprefix("Conv")
        norm = {"norm_op": f"BatchNorm{axes}", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
        return Architecture(planned.name, {**planned.arguments, **norm})
    if trainer in _PRIMUS_TRAINERS:
        name, size = _PRIMUS_TRAINERS[trainer]
        return Architecture(
            name,
            {
                **_PRIMUS[size],
                "patch_embed_size": [8, 8, 8],
                "input_shape": list(patch_size),
                "scale_attn_inner": True,
                "init_values": 0.1,
            },
        )
    return planned


def _stunet(planned: Architecture, shapes: Mapping[str, Sequence[int]]) -> Architecture | None:
    """The STU-Net whose tensors these are, None if they are of another network.

    Its trainer takes the plan's strides as far as it has stages, and leaves the sizes at the stages that are left.
    """
    first = shapes.get("conv_blocks_context.0.0.conv1.weight", ())
    if len(first) != 5 or not 0 < first[0] <= MAX_STUNET_SIZE:
        return None
    blocks = sum(f"conv_blocks_context.0.{block}.conv1.weight" in shapes for block in range(64))
    strides = [list(stride) for stride in axis_strides(planned, 3)[1 : STUNET_STRIDES + 1]]
    strides += [[1, 1, 1]] * (STUNET_STRIDES - len(strides))
    return Architecture(STUNET, {"depth": blocks, "width": first[0], "strides": strides})
