from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from segonnx import models
from segonnx.errors import ParityError
from segonnx.exporters import parameters
from segonnx.models import counting
from segonnx.sources import catalog
from segonnx.sources.catalog import Figure


def test_the_built_network_passes() -> None:
    spec = catalog.find("stunet-s")
    counted = parameters.count(spec)
    parameters.require(spec, counted.modules, counted.training_parameters)


def test_a_mismatch_names_the_module_and_the_numbers() -> None:
    spec = catalog.find("stunet-s")
    modules = counting.parameters_per_module(models.build_meta(spec, in_channels=2).module)
    with pytest.raises(ParityError, match="parameter parity failed") as caught:
        parameters.require(spec, modules, sum(modules.values()))
    lines = str(caught.value).splitlines()
    # A second input channel: 16 * 27 weights more in the first convolution, and 16 in its projection.
    assert [line.split() for line in lines[2:]] == [["conv_blocks_context.0.0", "7,472", "7,920", "+448"]]


def test_the_training_form_is_checked_too() -> None:
    spec = catalog.find("encoder-mobileone-s0")
    counted = parameters.count(spec)
    with pytest.raises(ParityError, match="training parameters"):
        parameters.require(spec, counted.modules, counted.training_parameters - 1)


@pytest.mark.parametrize("field", ["published", "published_macs"])
def test_a_published_figure_that_does_not_match_fails(field: str) -> None:
    spec = catalog.find("stunet-s")
    figure = getattr(spec, field)[-1]
    wrong = replace(figure, text="14.7M" if field == "published" else "0.12T")
    assert all(check.passed for check in parameters.check(spec))
    changes: dict[str, Any] = {field: (wrong,)}
    failed = [check for check in parameters.check(replace(spec, **changes)) if not check.passed]
    assert len(failed) == 1
    assert failed[0].expected == wrong.text


def test_networks_without_a_reference_have_nothing_to_fail() -> None:
    assert parameters.check(catalog.find("smp:unet:resnet18")) == []
    assert Figure("1K", "test").value == 1000
