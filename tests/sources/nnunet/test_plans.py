"""Plans are data: everything in them is checked, nothing that they name is imported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from segonnx.errors import InputError
from segonnx.sources import totalsegmentator
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.plans import Plan
from tests import handmade

HERE = Path("folder")


def _plan(planned: dict[str, Any], described: dict[str, Any], configuration: str = "3d_fullres") -> Plan:
    return plans.plan(planned, described, configuration, HERE)


def test_a_plan_is_read_with_all_that_inference_needs() -> None:
    plan = _plan(handmade.plans(), handmade.dataset())
    assert plan.architecture.name == "PlainConvUNet"
    assert plan.architecture.arguments["conv_op"] == "Conv3d"
    assert plan.architecture.arguments["dropout_op"] is None
    assert plan.patch_size == (8, 16, 24)
    assert plan.spacing == (3.0, 1.5, 1.5)
    assert plan.transpose_forward == (2, 0, 1)
    assert plan.transpose_backward == (1, 2, 0)
    (channel,) = plan.channels
    assert (channel.name, channel.normalization, channel.use_mask) == ("CT", "CTNormalization", False)
    assert channel.intensities["percentile_99_5"] == 250.0
    assert [(one.name, one.value) for one in plan.outputs] == [("background", 0), ("organ_1", 1), ("organ_2", 2)]
    assert not plan.regions
    assert plan.resampling["data"].arguments["order"] == 3
    assert plan.resampling["probabilities"].arguments["order"] == 1
    assert plans.divisors(plan.architecture, 3) == (2, 4, 4)
    assert plan.input_channels == 1


def test_old_plans_mean_the_same_network() -> None:
    old, new = (_plan(handmade.plans(old=old), handmade.dataset()).architecture for old in (True, False))
    assert old.name == new.name
    arguments = {key: value for key, value in new.arguments.items() if not key.startswith("dropout")}
    assert old.arguments == arguments


def test_a_configuration_inherits_and_a_second_stage_gets_the_labels_as_channels() -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plan = _plan(planned, handmade.dataset(classes=3), "3d_cascade_fullres")
    assert plan.previous_stage == "3d_lowres"
    assert plan.foreground == (1, 2, 3)
    assert plan.input_channels == 4


def test_regions_are_outputs_in_the_order_of_the_file() -> None:
    described = handmade.dataset()
    described["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3, "ignore": 4}
    described["regions_class_order"] = [1, 2, 3]
    plan = _plan(handmade.plans(), described)
    assert plan.regions
    assert [(one.name, one.value, one.labels) for one in plan.outputs] == [
        ("whole", 1, (1, 2, 3)), ("core", 2, (2, 3)), ("active", 3, (3,)),
    ]  # fmt: skip
    assert plan.ignore_label == 4
    assert plan.foreground == (1, 2, 3)


def test_an_ignore_label_is_no_output() -> None:
    described = handmade.dataset()
    described["labels"]["ignore"] = 3
    plan = _plan(handmade.plans(), described)
    assert len(plan.outputs) == 3
    assert plan.ignore_label == 3


def _configuration(**changes: Any) -> dict[str, Any]:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"].update(changes)
    return planned


def _arguments(**changes: Any) -> dict[str, Any]:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)
    return planned


def _without(key: str) -> dict[str, Any]:
    planned = handmade.plans()
    for place in (planned, planned["configurations"]["3d_fullres"]):
        place.pop(key, None)
    return planned


def _named(name: str) -> dict[str, Any]:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = name
    return planned


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        (_named("os.system"), "'os.system', a class of another package, isn't a network"),
        (_named("dynamic_network_architectures.architectures.unet.os"), "isn't a network"),
        (_arguments(conv_op="os.system"), "conv_op: 'os.system' is not one of"),
        (_arguments(norm_op="os.system"), "norm_op: 'os.system' is not one of"),
        (_arguments(nonlin="tests.trap.Trap"), "nonlin: 'tests.trap.Trap' is not one of"),
        (_arguments(initialize="os.system"), "initialize"),
        (_configuration(UNet_class_name="os.system", architecture=None), "None is not of type 'object'"),
        (_arguments(n_stages=10**9), "n_stages: 1000000000 is greater"),
        (_arguments(features_per_stage=[4, 8, 10**12]), "features_per_stage"),
        (_arguments(features_per_stage=[4, -8, 12]), "features_per_stage"),
        (_arguments(features_per_stage=[4, 8]), "2 entries for a network of 3 stages"),
        (_arguments(n_conv_per_stage_decoder=[2, 2, 2]), "3 entries for a network of 3 stages"),
        (_arguments(strides=[[1, 1], [2, 2], [2, 2]]), r"strides: \[1, 1\] for a network of 3 axes"),
        (_arguments(kernel_sizes="large"), "kernel_sizes"),
        (_arguments(conv_op="torch.nn.Conv2d"), "doesn't go with a patch of 3 sizes"),
        (_arguments(norm_op_kwargs={"eps": {"deep": 1}}), "norm_op_kwargs"),
        (_arguments(norm_op_kwargs={"eps": None}), "norm_op_kwargs/eps"),
        (_arguments(norm_op_kwargs={"eps": -1.0}), "norm_op_kwargs/eps"),
        (_arguments(norm_op_kwargs={"device": "cuda"}), "norm_op_kwargs"),
        (_arguments(dropout_op_kwargs={"p": 2}), "dropout_op_kwargs/p"),
        (_arguments(nonlin_kwargs={"negative_slope": "x"}), "nonlin_kwargs/negative_slope"),
        (_configuration(patch_size=[8, 16]), "Conv3d doesn't go with a patch of 2 sizes"),
        (_configuration(spacing=[1]), r"spacing: \[1\] is too short"),
        (_configuration(patch_size=[8, 16, -24]), "patch_size/2: -24 is less"),
        (_configuration(patch_size=[8, 16, 10**7]), "patch_size/2"),
        (_configuration(patch_size={"a": 1}), "patch_size"),
        (_configuration(patch_size=[8, 16, 2.5]), "patch_size/2"),
        (_configuration(spacing=[0, 1, 1]), "spacing/0"),
        (_configuration(spacing=[1e300, 1, 1]), "spacing/0"),
        (_configuration(inherits_from="3d_fullres"), "inherits from itself"),
        (_configuration(inherits_from="3d_lowres"), r"no configuration '3d_lowres' \(which 3d_fullres inherits from\)"),
        (_configuration(normalization_schemes=["../../etc"]), "normalization_schemes/0"),
        (_configuration(normalization_schemes=[]), "normalization_schemes"),
        (_configuration(patch_size=[8.0, 16, 24]), "patch_size/0: 8.0 is not of type 'integer'"),
        (_configuration(patch_size=[4096] * 3, spacing=[1, 1, 1]), "more than 68,719,476,736 numbers"),
        (_configuration(spacing=[1e-300, 1, 1]), "spacing/0"),
        (_configuration(resampling_fn_data_kwargs={"order": "x"}), "resampling_fn_data_kwargs/order"),
        (_configuration(resampling_fn_data_kwargs={"order": 9}), "resampling_fn_data_kwargs/order"),
        (_configuration(resampling_fn_seg_kwargs={"force_separate_z": 3}), "force_separate_z"),
        (_configuration(resampling_fn_seg_kwargs={"a\x1b[2J": 3}), "resampling_fn_seg_kwargs"),
        (_configuration(preprocessor_name="Default\n"), "preprocessor_name"),
        (_configuration(inherits_from=["3d_lowres"]), "inherits_from"),
        (_arguments(kernel_sizes=31, features_per_stage=8192), "more than 68,719,476,736 parameters"),
        (_without("spacing"), "'spacing' is a required property"),
        (_without("configurations"), "'configurations' is a required property"),
        (_without("transpose_backward"), "'transpose_backward' is a required property"),
        ({**handmade.plans(), "transpose_backward": [0, 1, 2]}, "don't match"),
        ({**handmade.plans(), "label_manager": "MyLabels"}, "'LabelManager' was expected"),
        ({**handmade.plans(), "configurations": {"2d": {}}}, "has no configuration '3d_fullres'; it has 2d"),
    ],
)
def test_wrong_plans_are_refused_in_one_line(planned: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _plan(planned, handmade.dataset())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(HERE / plans.PLANS) in str(caught.value)


def test_a_chain_of_heirs_is_followed_so_far_and_no_further() -> None:
    planned = handmade.plans()
    every = planned["configurations"]
    every |= {"c0": every["3d_fullres"], **{f"c{i}": {"inherits_from": f"c{i - 1}"} for i in range(1, 900)}}
    assert _plan(planned, handmade.dataset(), f"c{plans.MAX_ANCESTORS}").patch_size == (8, 16, 24)
    with pytest.raises(InputError, match="'c899' inherits from more than 64 configurations"):
        _plan(planned, handmade.dataset(), "c899")
    every |= {f"x{i}": {} for i in range(1000)}
    with pytest.raises(InputError, match="configurations") as caught:
        _plan(planned, handmade.dataset())
    assert len(str(caught.value)) < 600


def test_the_names_of_megabytes_of_a_plan_are_no_line_of_megabytes() -> None:
    planned = handmade.plans()
    planned["configurations"]["x" * 5_000_000] = {}
    with pytest.raises(InputError) as caught:
        _plan(planned, handmade.dataset(), "other")
    assert len(str(caught.value)) < 1100


@pytest.mark.parametrize("background", [False])
def test_the_background_is_the_number_zero(background: object) -> None:
    described = handmade.dataset()
    described["labels"]["background"] = background
    with pytest.raises(InputError, match="labels/background"):
        _plan(handmade.plans(), described)


def test_a_transformer_of_more_tokens_than_a_machine_holds_is_refused() -> None:
    planned = _named("dynamic_network_architectures.architectures.primus.Primus")
    network = planned["configurations"]["3d_fullres"]["architecture"]
    for size, fine in ((64, True), (4096, False)):
        network["arch_kwargs"] = {"embed_dim": 96, "patch_embed_size": [1, 1, 1], "input_shape": [size] * 3}
        if fine:
            assert plans.least_parameters(_plan(planned, handmade.dataset()).architecture.arguments) == 4 * 96**2
        else:
            with pytest.raises(InputError, match="tokens of 96 are more than"):
                _plan(planned, handmade.dataset())


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"organ": 1}, None, "'background' is a required property"),
        ({"background": 1, "organ": 0}, None, "labels/background"),
        ({"background": 0, "organ": "one"}, None, "labels/organ"),
        ({"background": 0, "organ": 10**9}, None, "labels/organ"),
        ({"background": 0, "organ": 1, "ignore": 5}, None, "must follow the highest label 1; found 5"),
        ({"background": 0, "whole": [1, 2], "core": 2}, None, "2 regions need as many entries; found none"),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1], "2 regions need as many entries; found 1"),
    ],
)
def test_wrong_labels_are_refused(labels: dict[str, Any], order: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _plan(handmade.plans(), {**handmade.dataset(), "labels": labels, "regions_class_order": order})


def test_nothing_that_a_plan_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it ran')!r})\nTrap = object\n")
    monkeypatch.syspath_prepend(tmp_path)
    for planned in (_named("trap.Trap"), _arguments(conv_op="trap.Trap"), _arguments(block="trap.Trap")):
        with pytest.raises(InputError):
            _plan(planned, handmade.dataset())
    assert "trap" not in sys.modules
    assert os.listdir(tmp_path) == ["trap.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "isn't JSON"),
        ("{", "isn't JSON"),
        ("[1]", "holds no JSON object"),
        ("[" * 10**5, "isn't JSON"),
        ("\udcff", "isn't JSON"),
    ],
)
def test_files_that_are_no_json_object_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / plans.PLANS
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        plans.read_json(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / plans.PLANS).open("wb") as file:
        file.truncate(plans.MAX_BYTES + 1)
    with pytest.raises(InputError, match="is larger than"):
        plans.read_json(tmp_path / plans.PLANS)
    with pytest.raises(InputError, match="can't be read: No such file"):
        plans.read_json(tmp_path / plans.DATASET)


def test_plans_are_read_without_torch() -> None:
    import subprocess

    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from segonnx.sources.nnunet import plans\nfrom tests import handmade\n"
        "plans.plan(handmade.plans(), handmade.dataset(), '3d_fullres', Path())\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) is False


def test_folders_of_totalsegmentator_are_known_by_data_set_and_trainer() -> None:
    trainer = "nnUNetTrainer_4000epochs_NoMirroring"
    task = totalsegmentator.folder("Dataset297_TotalSegmentator_total_3mm_1559subj", trainer)
    assert task is not None
    assert (task.task, task.licence, len(task.classes)) == ("total", "apache-2.0", 117)
    assert task.classes[4] == "liver"
    organs = totalsegmentator.folder("Dataset291_TotalSegmentator_part1_organs_1559subj", "nnUNetTrainerNoMirroring")
    assert organs is not None
    assert len(organs.classes) == 24
    licensed = totalsegmentator.folder("Dataset481_tissue_1559subj", "nnUNetTrainer")
    assert licensed is not None
    assert "non-commercial" in licensed.licence
    assert totalsegmentator.folder("Dataset297_TotalSegmentator_total_3mm_1559subj", "nnUNetTrainer") is None
    assert totalsegmentator.folder("Dataset008_HepaticVessel", "nnUNetTrainer") is None  # the Decathlon's, too
