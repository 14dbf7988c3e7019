"""Folders whose plans or labels aren't as nnU-Net's planner writes them: label maps are those of its own predictor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from segonnx.exporters import nnunet
from segonnx.predict import config, pipeline
from segonnx.predict.pipeline import PredictOptions
from segonnx.sources.nnunet.folder import find_checkpoints, locate
from tests import handmade

SHAPE, SPACING = (14, 30, 34), (1.4, 3.1, 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("results"), handmade.plans(), handmade.dataset())


def _functions(function: str, data: dict[str, Any], seg: dict[str, Any], logits: dict[str, Any]) -> dict[str, Any]:
    arguments = {"data": data, "seg": seg, "probabilities": logits}
    return {
        **{f"resampling_fn_{what}": function for what in arguments},
        **{f"resampling_fn_{what}_kwargs": given for what, given in arguments.items()},
    }


def _alike(function: str, **arguments: Any) -> dict[str, Any]:
    return _functions(function, arguments, {**arguments, "is_seg": True}, arguments)


SPLINES = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
ALWAYS: dict[str, Any] = {"force_separate_z": True}
APART: dict[str, Any] = {"force_separate_z": None, "separate_z_anisotropy_threshold": 1.5}


@pytest.mark.filterwarnings("ignore:Network class PlainConvUNet not found")  # which nnU-Net then looks up
@pytest.mark.parametrize(
    "configuration",
    [
        {"architecture": {**handmade.ARCHITECTURE, "network_class_name": "PlainConvUNet"}},
        {"patch_size": [8, 16, 16]},
        {"spacing": [1.5, 1.0]},
        {"normalization_schemes": ["RescaleTo01Normalization"]},
        {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"], "use_mask_for_norm": [None, True]},
        _functions(SPLINES, {**APART, "order": 3}, {"is_seg": True}, {**APART, "order": 1}),
        _functions(SPLINES, {"order": 1, "order_z": 3, **ALWAYS}, {}, {**APART, "order": 0, "order_z": 1}),
        _functions(SPLINES, {}, {"is_seg": True}, {"order": 0}),
        _functions(SPLINES, {**APART, "order": 5, "separate_z_anisotropy_threshold": 20}, {}, {"order": 1}),
        _alike(TORCH, force_separate_z=False, memefficient_seg_resampling=False),
        _alike(TORCH, **APART, memefficient_seg_resampling=True),
        _alike(TORCH, **ALWAYS, mode="bicubic", aniso_axis_mode="linear", num_threads=1),
        _alike(TORCH, **ALWAYS, mode="area", aniso_axis_mode="area", device="cpu"),
        _alike(TORCH, **ALWAYS, mode="nearest", aniso_axis_mode="nearest"),
        _functions("no_resampling_hack", {}, {}, {}),
    ],
)  # fmt: skip
def test_an_edited_plan_predicts_as_nnunet_predicts_with_it(
    configuration: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.plans()
    planned["configurations"]["edited"] = planned["configurations"].pop("3d_fullres")
    planned["configurations"]["3d_fullres"] = {"inherits_from": "edited", **configuration}
    _require_equal(_copy(folder, tmp_path, planned, handmade.dataset()), monkeypatch)


@pytest.mark.parametrize(
    "described",
    [
        {"labels": {"background": "0", "b": "2", "a": "1"}, "regions_class_order": []},
        {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}, "regions_class_order": [2, 1]},
        {"labels": {"background": 0, "w": [1, 2], "a": ["1"], "b": 2}, "regions_class_order": [7, 5, 9]},
        {"labels": {"background": 0, "w": [1, 2], "a": 1, "b": [2], "air": [0, 0]}, "regions_class_order": [1, 2, 2]},
        {"labels": {"background": 0, "a": 4, "b": 2, "ignore": 5}},
        {"labels": {"background": 0, "w": [1, 300], "a": 300, "b": "12"}, "regions_class_order": [1, 2, 200]},
        {"channel_names": {"3": "CT"}},
        {"channel_names": ["CT"]},
        {"channel_names": {"0": None}},
    ],
)
def test_a_data_set_that_is_told_loosely_predicts_as_nnunet_predicts_with_it(
    described: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.plans()
    del planned["dataset_name"], planned["plans_name"], planned["label_manager"]
    model = _copy(folder, tmp_path, planned, {**handmade.dataset(), **described})
    _require_equal(model, monkeypatch)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (SPLINES, {"order": 1, "is_seg": False}),
        (SPLINES, {**APART, "order": 2, "order_z": 1, "is_seg": True}),
        (TORCH, {**APART, "is_seg": True}),
        (TORCH, {**APART, "is_seg": True, "memefficient_seg_resampling": True, "aniso_axis_mode": "linear"}),
        (TORCH, {"force_separate_z": False}),
    ],
)
def test_a_first_stages_labels_are_resampled_as_nnunet_does(
    function: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"] |= {
        "previous_stage": "3d_lowres", "resampling_fn_seg": function, "resampling_fn_seg_kwargs": arguments,
    }  # fmt: skip
    model = handmade.write(tmp_path, planned, handmade.dataset(3))
    labels = np.random.default_rng(1).integers(0, 4, [-(-size // 3) for size in SHAPE]).astype(np.int16)
    labels = labels.repeat(3, 0).repeat(3, 1).repeat(3, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    _require_equal(model, monkeypatch, labels)


@pytest.mark.parametrize("hollow", [False, True])
@pytest.mark.parametrize(
    ("schemes", "masks"),
    [
        (("ZScoreNormalization", "CTNormalization"), (True, True)),
        (("RescaleTo01Normalization", "ZScoreNormalization"), (True, False)),
        (("NoNormalization", "ZScoreNormalization"), (False, True)),
    ],
)
def test_what_is_zero_is_cropped_and_masked_as_by_nnunet(
    schemes: tuple[str, ...], masks: tuple[bool, ...], hollow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.plans()
    chosen = {"normalization_schemes": list(schemes), "use_mask_for_norm": list(masks)}
    planned["configurations"]["3d_fullres"] |= chosen
    statistics = planned["foreground_intensity_properties_per_channel"]
    statistics["1"] = statistics["0"]
    model = handmade.write(tmp_path, planned, handmade.dataset() | {"channel_names": {"0": "a", "1": "b"}})
    _require_equal(model, monkeypatch, image=_with_zeros(2, hollow=hollow))


@pytest.mark.parametrize("function", [SPLINES, TORCH])
@pytest.mark.parametrize("hollow", [False, True])
def test_a_second_stage_crops_what_is_zero_as_nnunet_does(
    function: str, hollow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"] |= {
        "previous_stage": "3d_lowres", "resampling_fn_seg": function, "resampling_fn_seg_kwargs": {"is_seg": True},
    }  # fmt: skip
    model = handmade.write(tmp_path, planned, handmade.dataset())
    labels = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.int16)
    _require_equal(model, monkeypatch, labels, _with_zeros(1, hollow=hollow))


@pytest.mark.parametrize(
    ("spacing", "forward", "backward"),
    [([1.5, 1.5], [0, 1, 2], [0, 1, 2]), ([2.0, 1.5, 2.5], [1, 2, 0], [2, 0, 1])],
)
def test_a_flat_network_resamples_the_slices_where_the_plan_has_three_spacings(
    spacing: list[float], forward: list[int], backward: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = handmade.several()
    planned["configurations"]["2d"]["spacing"] = spacing
    planned |= {"transpose_forward": forward, "transpose_backward": backward}
    model = handmade.write(tmp_path, planned, handmade.dataset(), configuration="2d", mirror_axes=(0, 1))
    _require_equal(model, monkeypatch)


def _with_zeros(channels: int, *, hollow: bool) -> Any:
    """An image that is 0 around, or in holes, some of which are open."""
    image = np.random.default_rng(0).normal(0, 200, (channels, *SHAPE)).astype(np.float32)
    if hollow:
        image[:, 2:-2, 4:9, 5:12] = image[:, :, :3] = image[:, :2, :, -5:] = 0
    else:
        image[:, :3] = image[:, :, -4:] = image[..., :2] = 0
    return image


def _copy(folder: Path, root: Path, planned: dict[str, Any], described: dict[str, Any]) -> Path:
    model = shutil.copytree(folder, root / folder.parent.name / folder.name)
    (model / "plans.json").write_text(json.dumps(planned))
    (model / "dataset.json").write_text(json.dumps(described))
    return model


def _require_equal(model: Path, monkeypatch: pytest.MonkeyPatch, previous: Any = None, image: Any = None) -> None:
    monkeypatch.setattr(torch, "half", torch.float32)  # what nnU-Net adds its windows up in
    if image is None:
        image = np.random.default_rng(0).normal(0, 200, (1, *SHAPE)).astype(np.float32)
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    theirs.initialize_from_trained_model_folder(str(model), [0])
    before = None if previous is None else previous[None]
    properties = {"spacing": list(SPACING)}
    expected, their_probabilities = theirs.predict_single_npy_array(image, properties, before, None, True)

    selection = nnunet.Selection("0")
    (trained,) = nnunet.read(locate(model), find_checkpoints(model, "0", "final"), selection, lambda _: None)
    made = config.of_network(trained.spec.described, "here")

    def forward(x: Any) -> Any:
        with torch.inference_mode():
            return theirs.network.eval()(torch.from_numpy(x)).numpy()

    probabilities = np.empty(their_probabilities.shape, np.float32)
    options = PredictOptions()
    found = pipeline.predict(image, SPACING, made, forward, options, previous=previous, probabilities=probabilities)
    np.testing.assert_allclose(probabilities, their_probabilities, atol=2e-4)
    assert np.mean(found == expected) > 0.9995
    assert len(np.unique(expected)) > 1
