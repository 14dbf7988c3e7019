"""Classes, input channels and the network itself, read off checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from segonnx import models
from segonnx.errors import CheckpointError, ParityError
from segonnx.exporters import parameters
from segonnx.exporters.prepare import Weights, adapt, network_with_weights
from segonnx.models import counting, infer_sizes
from segonnx.models.infer_sizes import infer
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

FILE = Path("base_ep4k.model")
STUNETS = ("stunet-s", "stunet-b", "stunet-l", "stunet-h")
AT_105_CLASSES = {"stunet-s": 14_596_941, "stunet-b": 58_262_669, "stunet-l": 440_302_605, "stunet-h": 1_457_326_221}


@pytest.fixture(scope="module", autouse=True)
def each_form_is_made_once() -> Iterator[None]:
    """MobileOne takes long to build and to merge, and every test compares the same."""
    make, known = infer_sizes._forms, {}

    def forms(spec: ModelSpec, **overrides: Any) -> Any:
        key = repr((spec, overrides))
        if key not in known:
            known[key] = make(spec, **overrides)
        return known[key]

    with mock.patch.object(infer_sizes, "_forms", forms):
        yield


def _state(name: str, **overrides: Any) -> Mapping[str, torch.Tensor]:
    return models.build_meta(catalog.find(name), **overrides).module.state_dict()


@pytest.mark.parametrize("name", STUNETS)
def test_stunet_of_the_paper_is_known_by_its_105_classes(name: str) -> None:
    spec = infer(catalog.find(name), _state(name, num_classes=105), FILE)
    assert spec.num_classes == 105
    assert spec.input_shape == catalog.find(name).input_shape
    network = models.build_meta(spec)
    assert counting.parameters(network.module) == AT_105_CLASSES[name] == spec.parameters
    # What the paper prints for so many classes is still held against it.
    assert [figure.source for figure in spec.published] == ["arXiv 2304.06716"]
    modules = counting.parameters_per_module(network.module)
    parameters.require(spec, modules, AT_105_CLASSES[name])
    with pytest.raises(ParityError, match=r"published parameters \(arXiv"):
        parameters.require(spec, {**modules, "more": 10**7}, AT_105_CLASSES[name])


@pytest.mark.parametrize("name", STUNETS)
@pytest.mark.parametrize("said", ["stunet-s", "stunet-b"])
def test_stunet_of_another_size_is_recognised(name: str, said: str) -> None:
    tensors = _state(name, num_classes=14)
    if name == said:
        assert infer(catalog.find(said), tensors, FILE).num_classes == 14
        return
    with pytest.raises(CheckpointError, match=f"isn't of {said}, it is of {name}: export that"):
        infer(catalog.find(said), tensors, FILE)


@pytest.mark.parametrize(("name", "classes", "channels"), [
    ("stunet-s", 3, 4), ("totalsegmentator", 25, 2), ("encoder-lcnet-100", 10, 1), ("encoder-mobileone-s0", 7, 3),
    ("encoder-regnetx-002", 1000, 4), ("unet-mobileone-s0", 2, 1), ("unet-resnet18", 117, 3),
    ("smp:fpn:resnet18", 9, 2), pytest.param("smp:segformer:mit_b0", 9, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_classes_and_channels_are_those_of_the_file(name: str, classes: int, channels: int) -> None:
    spec = catalog.find(name)
    found = infer(spec, _state(name, num_classes=classes, in_channels=channels), FILE)
    assert (found.num_classes, found.input_shape[1]) == (classes, channels)
    same = (classes, channels) == (spec.num_classes, spec.input_shape[1])
    assert found.reference == (spec.reference if same else None)
    assert (found == spec) is same
    assert models.build_meta(found).module.state_dict().keys() == _state(name).keys()


def test_merged_branches_of_mobileone_are_recognised() -> None:
    spec = catalog.find("encoder-mobileone-s0")
    merged = models.build_meta(spec, num_classes=5, in_channels=1).finalized().module.state_dict()
    assert any("reparam" in name for name in merged)
    found = infer(spec, merged, FILE)
    assert (found.num_classes, found.input_shape[1]) == (5, 1)


def test_a_file_of_nothing_known_changes_nothing() -> None:
    spec = catalog.find("encoder-lcnet-100")
    assert infer(spec, {"layer.weight": torch.ones(3, 3)}, FILE) == spec


@pytest.mark.parametrize("form", ["training", "inference"])
def test_mobileone_loads_in_both_forms_and_computes_the_same(form: str, tmp_path: Path) -> None:
    spec = replace(catalog.find("encoder-mobileone-s0"), num_classes=6, reference=None, published=())
    network = models.build(spec)
    module = (network.finalized() if form == "inference" else network).module.eval()
    torch.save(module.state_dict(), tmp_path / "w.pth")
    weights = Weights((tmp_path / "w.pth",))
    told = adapt(catalog.find("encoder-mobileone-s0"), weights, lambda _: None)
    loaded = network_with_weights(told, weights, lambda _: None).module
    assert counting.parameters(loaded) < 2_078_504
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = module(x)
        assert (loaded(x) - expected).abs().max() <= 1e-4 * expected.std()


def test_systems_of_several_checkpoints_are_taken_as_they_are(tiny: ModelSpec) -> None:
    weights = Weights((Path("a.pth"), Path("b.pth")))
    assert adapt(tiny, weights, lambda _: None) is tiny
