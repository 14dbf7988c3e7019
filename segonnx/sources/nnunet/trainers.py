"""nnU-Net's trainers that build another network than the one that is planned."""

from __future__ import annotations

from segonnx.sources.nnunet.plans import Architecture

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


def trained_architecture(planned: Architecture, trainer: str, patch_size: tuple[int, ...]) -> Architecture:
    """The network that a trainer of nnU-Net builds from a plan; most build what is planned."""
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
