"""Folders in nnU-Net's layout, made without nnU-Net: plans as it writes them, networks by its library."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

_RESAMPLING = {
    f"resampling_fn_{what}{tail}": value
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1))
    for tail, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}),
    )
}
_COMMON = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [8, 16, 24],
    "spacing": [3.0, 1.5, 1.5],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    **_RESAMPLING,
    "batch_dice": True,
}
ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 12],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
OLD = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "num_pool_per_axis": [1, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "unet_max_num_features": 12,
}
"""What plans had before they held ``architecture``, for the same network but for its widths (4, 8, 12)."""


def plans(dataset: str = "Dataset999_Hand", *, old: bool = False) -> dict[str, Any]:
    """A plans.json with one configuration."""
    network = copy.deepcopy(OLD) if old else {"architecture": copy.deepcopy(ARCHITECTURE)}
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "configurations": {"3d_fullres": copy.deepcopy(_COMMON) | network},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 300.0, "mean": 40.5, "median": 40.0, "min": -900.0,
                "percentile_00_5": -700.0, "percentile_99_5": 250.0, "std": 91.25,
            },
        },
    }  # fmt: skip


def several(dataset: str = "Dataset998_Whole") -> dict[str, Any]:
    """A plans.json with 2d, 3d_fullres, and the two stages of a cascade."""
    result = plans(dataset)
    full = result["configurations"]["3d_fullres"]
    flat = copy.deepcopy(full) | {"patch_size": [16, 24], "spacing": [1.5, 1.5]}
    arguments = flat["architecture"]["arch_kwargs"]
    arguments |= {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
    }
    lowres = copy.deepcopy(full) | {"spacing": [3.0, 2.5, 2.5], "next_stage": "3d_cascade_fullres"}
    result["configurations"] |= {
        "2d": flat,
        "3d_lowres": lowres,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    return result


def dataset(classes: int = 2) -> dict[str, Any]:
    """A dataset.json with so many labels besides the background."""
    names = [f"organ_{value}" for value in range(1, classes + 1)]
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{one: value for value, one in enumerate(names, 1)}},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }


def write(
    root: Path,
    planned: dict[str, Any],
    described: dict[str, Any],
    *,
    trainer: str = "nnUNetTrainer",
    configuration: str = "3d_fullres",
    folds: tuple[str, ...] = ("0",),
    checkpoint: str = "checkpoint_final.pth",
    mirror_axes: tuple[int, ...] | None = (0, 1, 2),
) -> Path:
    """Write a trained folder below ``root``; the network of fold i has the random weights of seed i."""
    import torch

    from segonnx import models
    from segonnx.models import random_weights
    from segonnx.sources.nnunet import plans
    from segonnx.sources.nnunet.trainers import trained_architecture

    folder = root / planned["dataset_name"] / f"{trainer}__{planned['plans_name']}__{configuration}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(planned))
    (folder / "dataset.json").write_text(json.dumps(described))
    plan = plans.plan(planned, described, configuration, folder)
    architecture = trained_architecture(plan.architecture, trainer, plan.patch_size)
    network = models.BUILDERS["nnunet"](
        architecture=architecture.name,
        arguments=architecture.arguments,
        in_channels=plan.input_channels,
        num_classes=len(plan.outputs),
    )
    x = torch.from_numpy(
        np.random.default_rng(0).standard_normal((2, plan.input_channels, *plan.patch_size), dtype=np.float32)
    )
    for seed, fold in enumerate(folds):
        random_weights.randomize(network.module, seed)
        random_weights.initialise(network.module, x)
        (folder / f"fold_{fold}").mkdir()
        content: dict[str, Any] = {
            "network_weights": network.module.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": []},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1,
            "init_args": {
                "plans": planned,
                "configuration": configuration,
                "fold": fold,
                "dataset_json": described,
                "device": torch.device("cuda"),
            },
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        torch.save(content, folder / f"fold_{fold}" / checkpoint)
    return folder
