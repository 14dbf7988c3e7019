"""What nnU-Net reads loosely is read as loosely; its own managers of plans and labels are the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from segonnx.errors import InputError
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.plans import Plan
from tests import handmade

HERE = Path("Dataset999_Hand/nnUNetTrainer__nnUNetPlans__3d_fullres")


def _plan(planned: dict[str, Any] | None = None, **described: Any) -> Plan:
    return plans.plan(planned or handmade.plans(), {**handmade.dataset(), **described}, "3d_fullres", HERE)


def _require_as_nnunet(labels: dict[str, Any], order: Any) -> Plan:
    theirs, ours = LabelManager(labels, order), _plan(labels=labels, regions_class_order=order)
    assert len(ours.outputs) == theirs.num_segmentation_heads
    assert ours.regions == theirs.has_regions
    assert ours.ignore_label == theirs.ignore_label
    assert ours.foreground == tuple(theirs.foreground_labels)
    if theirs.has_regions:
        assert [output.value for output in ours.outputs] == [int(value) for value in order]
        found = [region if isinstance(region, tuple) else (region,) for region in theirs.foreground_regions]
        assert [output.labels for output in ours.outputs] == [tuple(map(int, region)) for region in found]
    else:
        assert [output.labels for output in ours.outputs] == [(label,) for label in theirs.all_labels]
        heads = np.eye(len(theirs.all_labels), dtype=np.float32)
        assert [output.value for output in ours.outputs] == theirs.convert_logits_to_segmentation(heads).tolist()
    return ours


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": "0", "a": "1"}, None),
        ({"background": 0.0, "a": 1.0}, None),
        ({"background": 0, "b": 2, "a": 1}, []),
        ({"background": 0, "a": 1, "b": 2}, [2, 1]),
        ({"background": 0, "a": 1}, "whatever"),
        ({"background": 0, "a": 1, "ignore": None}, None),
        ({"background": 0, "a": [1], "b": 2, "ignore": 3}, None),
        ({"background": 0, "a": 1, "same": 1}, None),
        ({"background": 0, "a": 3, "b": 1, "ignore": 4}, None),
        ({"background": 0, "a": "300"}, None),
        ({"background": 0, "a": "+1", "b": " 0_2\n"}, None),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
        ({"background": 0, "whole": ["1", "2"], "core": "2"}, ["1", "2"]),
        ({"background": 0, "whole": [2, 1], "core": [2], "ignore": 3}, [2, 1]),
        ({"background": 0, "whole": [1, 2], "nothing": [0, 0], "core": 2}, [5, 7]),
        ({"background": "0", "whole": [1, 2], "core": 2}, [0, 1, 2]),
        ({"background": 0, "with air": [0, 1], "core": 2}, [1, 2]),
    ],
)
def test_labels_and_orders_are_read_as_nnunet_reads_them(labels: dict[str, Any], order: Any) -> None:
    _require_as_nnunet(labels, order)
    json.dumps([output.value for output in _plan(labels=labels, regions_class_order=order).outputs])


_LABEL = st.one_of([st.integers(0, 4), st.integers(0, 4).map(str), st.integers(0, 4).map(float)])


@settings(max_examples=150, deadline=None)
@given(
    labels=st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "ignore"]), st.one_of([_LABEL, st.lists(_LABEL, min_size=1, max_size=3)])
    ),
    background=st.sampled_from([0, "0", 0.0, 1, [0]]),
    order=st.one_of([st.none(), st.lists(st.integers(0, 9), max_size=5)]),
)
def test_what_nnunet_refuses_is_refused_and_the_rest_is_equal(labels: Any, background: Any, order: Any) -> None:
    labels = {"background": background, **labels}
    try:
        theirs = LabelManager(labels, order)
    except (AssertionError, RuntimeError, ValueError, TypeError):
        with pytest.raises(InputError):
            _plan(labels=labels, regions_class_order=order)
        return
    if not theirs.num_segmentation_heads:
        with pytest.raises(InputError, match="every region is background"):
            _plan(labels=labels, regions_class_order=order)
        return
    _require_as_nnunet(labels, order)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"background": 0, "a": "one"}, None, "labels/a: a label is a whole number from 0 to 65535; found 'one'"),
        ({"background": 0, "a": 1.5}, None, "labels/a: a label is a whole number .*; found 1.5"),
        ({"background": 0, "a": True}, None, "labels/a: .*; found True"),
        ({"background": 0, "a": float("inf")}, None, "labels/a: .*; found inf"),
        ({"background": 0, "a": {"b": 1}}, None, "labels/a: "),
        ({"background": 0, "a": []}, None, "made of at least one label"),
        ({"background": [0], "a": 1}, None, r"the background must be 0; found \[0\]"),
        ({"background": 0, "a": 1, "ignore": "2"}, None, "ignore label must be a whole number; found '2'"),
        ({"background": 0, "whole": [1, 2], "core": 2}, ["1", "two"], "regions_class_order: a label is .* found 'two'"),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 300], "300 is more than nnU-Net's label maps of 8 bits"),
    ],
)
def test_labels_that_are_none_are_refused_with_what_must_stand_there(labels: Any, order: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _plan(labels=labels, regions_class_order=order)


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ({"channel_names": {"0": "T1", "2": "T2"}}, ["T1", "T2"]),
        ({"channel_names": {"1": "T1", "2": "T2"}}, ["T1", "T2"]),
        ({"channel_names": {"1": "T2", "0": "T1"}}, ["T1", "T2"]),
        ({"channel_names": ["T1", "T2"]}, ["T1", "T2"]),
        ({"channel_names": {"0": None, "1": 7}}, ["channel 0", "7"]),
        ({"channel_names": {"0": "", "1": " T2\n\x1b[1m"}}, ["channel 0", "T2 [1m"]),
        ({"channel_names": [["T1", "a"], "T2"]}, ["['T1', 'a']", "T2"]),
        ({"modality": {"0": "T1", "1": "T2"}, "channel_names": {"0": "CT"}}, ["T1", "T2"]),
    ],
)
def test_channels_are_counted_as_nnunet_counts_them(channels: dict[str, Any], names: list[str]) -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["ZScoreNormalization", "NoNormalization", "NoNormalization"],
        "use_mask_for_norm": [None, True, False],
    }
    found = _plan(planned, **channels)
    assert [channel.name for channel in found.channels] == names
    assert [channel.normalization for channel in found.channels] == ["ZScoreNormalization", "NoNormalization"]
    assert [channel.use_mask for channel in found.channels] == [False, True]
    manager = PlansManager(planned)
    described = {**handmade.dataset(), **channels}
    assert found.input_channels == determine_num_input_channels(manager, "3d_fullres", described)


def test_statistics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    planned = handmade.plans()
    statistics = planned["foreground_intensity_properties_per_channel"]["0"]
    statistics |= {"median": float("nan"), "max": float("inf"), "min": None, "mean": 40.5, "histogram": [1, 2]}
    planned["original_median_spacing_after_transp"] = [float("nan")] * 3
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(planned))
    (channel,) = _plan(plans.read_json(path)).channels
    assert channel.intensities == {"mean": 40.5, "percentile_00_5": -700.0, "percentile_99_5": 250.0, "std": 91.25}
    nothing: list[dict[str, Any] | None] = [{}, {"0": None}, {"0": []}, None]
    for absent in nothing:
        assert _plan({**planned, "foreground_intensity_properties_per_channel": absent}).channels[0].intensities == {}
    del planned["foreground_intensity_properties_per_channel"]
    assert _plan(planned).channels[0].intensities == {}
    older = {**planned, "foreground_intensity_properties_by_modality": {"0": {"mean": 1, "std": 2}}}
    assert _plan(older).channels[0].intensities == {"mean": 1, "std": 2}


def test_an_infinite_bound_cuts_nothing_off(tmp_path: Path) -> None:
    planned = handmade.plans()
    bounds = {"percentile_00_5": float("-inf"), "percentile_99_5": float("inf")}
    planned["foreground_intensity_properties_per_channel"]["0"] |= bounds
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(planned))
    (channel,) = _plan(plans.read_json(path)).channels
    assert (channel.intensities["percentile_00_5"], channel.intensities["percentile_99_5"]) == (-1e30, 1e30)
    json.dumps(dict(channel.intensities), allow_nan=False)


def test_configurations_that_nobody_asks_for_may_be_anything() -> None:
    planned = handmade.plans()
    planned["configurations"] |= {"none": None, "number": 5, "heir": {"inherits_from": "nowhere"}}
    assert _plan(planned) == _plan()
    with pytest.raises(InputError, match="configurations/none/.*None is not of type 'object'"):
        plans.plan(planned, handmade.dataset(), "none", HERE)


def test_a_number_that_is_used_must_be_one(tmp_path: Path) -> None:
    for key, value in (("spacing", [float("nan"), 1, 1]), ("patch_size", [float("inf"), 16, 24])):
        planned = handmade.plans()
        planned["configurations"]["3d_fullres"][key] = value
        path = tmp_path / "plans.json"
        path.write_text(json.dumps(planned))
        with pytest.raises(InputError, match=f"{key}/0: '(NaN|Infinity)' is not of type"):
            _plan(plans.read_json(path))


@pytest.mark.parametrize("old", [False, True])
def test_names_that_the_plans_lack_are_those_of_the_folder(old: bool) -> None:
    planned = handmade.plans(old=old)
    del planned["dataset_name"], planned["plans_name"], planned["label_manager"]
    found = _plan(dict(plans.named(planned, HERE)))
    assert (found.dataset, found.plans) == ("Dataset999_Hand", "nnUNetPlans")
    assert plans.named(planned, Path("x/y"))["plans_name"] == "nnUNetPlans"
    assert plans.named(handmade.plans(), Path("x/y"))["dataset_name"] == "Dataset999_Hand"


@pytest.mark.parametrize(
    "name",
    ["PlainConvUNet", "dynamic_network_architectures.architectures.moved.PlainConvUNet"],
)
def test_a_class_is_found_by_its_name(name: str) -> None:
    planned = handmade.plans()
    architecture = planned["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = name
    assert _plan(planned).architecture == _plan().architecture
    with pytest.warns(UserWarning, match="not found"):
        theirs = get_network_from_plans(name, architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3)
    assert type(theirs).__name__ == "PlainConvUNet"


def test_a_class_of_another_package_says_so() -> None:
    planned = handmade.plans()
    planned["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "mine.PlainConvUNet"
    with pytest.raises(InputError, match=r"'mine.PlainConvUNet', a class of another package, isn't a network .*known"):
        _plan(planned)


def test_what_a_checkpoint_remembers_is_read_as_from_a_file() -> None:
    found = plans.as_json({"a": (1, np.float32(0.5)), "b": float("nan"), 0: np.arange(2)})
    assert found == {"a": [1, 0.5], "b": "NaN", "0": [0, 1]}
    assert plans.as_json({"a": object()}) is None
    assert plans.as_json([1]) is None
