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


def fit_head(
    trained: Path, fold: str, window: np.ndarray, labels: np.ndarray, classes: int, *, ridge: float = 0.05
) -> None:
    """Fit the last layer of a fold to a label map: the linear discriminant of what the network makes of a window.

    Args:
        trained: The trained folder, whose networks give labels and no regions.
        fold: The fold's name.
        window: The window as the network sees it, float32 (z, y, x).
        labels: The label map of the window, of the same shape.
        classes: The number of the network's outputs.
        ridge: How much of the unit matrix is added, in variances of the features.
    """
    import torch

    from segonnx import models
    from segonnx.sources.nnunet import plans
    from segonnx.sources.nnunet.trainers import trained_architecture

    path = trained / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    asked, trainer = content["init_args"], content["trainer_name"]
    plan = plans.plan(asked["plans"], asked["dataset_json"], asked["configuration"], trained)
    architecture = trained_architecture(plan.architecture, trainer, plan.patch_size)
    network: Any = models.BUILDERS["nnunet"](
        architecture=architecture.name, arguments=architecture.arguments, in_channels=1, num_classes=classes
    ).module
    network.load_state_dict(content["network_weights"])
    head = network.decoder.seg_layers[-1]
    seen: list[Any] = []
    hook = head.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.inference_mode():
        network.eval()(torch.from_numpy(np.ascontiguousarray(window))[None, None])
    hook.remove()
    features = seen[0][0].flatten(1).double().numpy()
    kinds = labels.ravel()
    there = np.bincount(kinds, minlength=classes) > 0
    middle = features.mean(axis=1)
    means = np.stack([features[:, kinds == one].mean(axis=1) if there[one] else middle for one in range(classes)])
    rest = features - means[kinds].T
    # Some of the unit matrix, or the weights grow until rounding counts.
    weight = means @ np.linalg.inv(np.cov(rest) + np.eye(len(rest)) * ridge * np.var(features))
    bias = -0.5 * np.einsum("ij,ij->i", weight, means)
    # What all classes have in common decides nothing, and takes the digits of those who add up in float16.
    weight -= weight[there].mean(axis=0)
    bias -= bias[there].mean()
    bias[~there] = -100
    last = len(network.decoder.seg_layers) - 1
    name = f"decoder.seg_layers.{last}"
    content["network_weights"][f"{name}.weight"] = torch.from_numpy(weight).float().reshape(head.weight.shape)
    content["network_weights"][f"{name}.bias"] = torch.from_numpy(bias).float()
    torch.save(content, path)
