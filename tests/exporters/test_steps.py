from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segonnx.core import subprocesses
from segonnx.core.synthetic_inputs import ParityInput
from segonnx.errors import InputError, StageError
from segonnx.exporters.parity import ParityCheck
from segonnx.exporters.prepare import STATE, Preparation, Weights
from segonnx.exporters.steps import ModuleSteps, SpecSteps
from segonnx.models.base import BuiltModel
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

SPEC = ModelSpec("mine", "module", "module", {}, (1, 3, 8, 8), 2, "other", "here")


def double(x: int, progress: subprocesses.Progress) -> int:
    progress("doubling")
    return 2 * x


def test_a_step_in_a_process_of_its_own_is_noted() -> None:
    said: list[str] = []
    steps = SpecSteps(Weights(), 1, said.append)
    assert steps.spawn("twice", double, 21) == 42
    assert said == ["doubling"]
    assert steps.stages["twice"].seconds > 0
    assert steps.stages["twice"].peak_rss_bytes > 0
    assert steps.random_weights


def test_random_weights_change_no_spec() -> None:
    spec = catalog.find("stunet-s")
    steps = SpecSteps(Weights(), 1, subprocesses.silent)
    assert steps.adapt(spec) is spec
    assert steps.stages == {}
    assert not SpecSteps(Weights(pretrained=True), 1, subprocesses.silent).random_weights


class Local(nn.Module):
    """Can't be pickled."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 2, 1), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))  # type: ignore[operator]


def test_a_module_is_prepared_in_this_process(tmp_path: Path) -> None:
    steps = ModuleSteps(BuiltModel(Local(lambda x: x.relu()).eval()), subprocesses.silent)
    prepared = steps.prepare(Preparation(SPEC, SPEC.input_shape, (ParityInput("noise", SPEC.input_shape),), tmp_path))
    assert prepared.parameters == 8
    assert prepared.macs == 3 * 2 * 8 * 8
    assert {path.name for path in tmp_path.iterdir()} == {STATE, "input_0_0.npy", "logits_0.npy"}
    assert steps.stages.keys() == {"prepare"}
    assert not steps.random_weights
    assert steps.adapt(SPEC) is SPEC


def test_the_graph_is_given_what_a_network_then_overwrites(tmp_path: Path) -> None:
    class Overwriting(Local):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mul_(0))

    test_input = ParityInput("noise", SPEC.input_shape)
    steps = ModuleSteps(BuiltModel(Overwriting(nn.ReLU()).eval()), subprocesses.silent)
    steps.prepare(Preparation(SPEC, SPEC.input_shape, (test_input,), tmp_path))
    given = ParityCheck((test_input,), SPEC, tmp_path, 1).given(0)
    assert np.array_equal(given["input"], test_input.make(SPEC.modality))


def test_an_error_of_a_module_is_one_line(tmp_path: Path) -> None:
    def act(_: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("oh")

    steps = ModuleSteps(BuiltModel(Local(act).eval()), subprocesses.silent)
    with pytest.raises(StageError) as caught:
        steps.prepare(Preparation(SPEC, SPEC.input_shape, (ParityInput("noise", SPEC.input_shape),), tmp_path))
    assert str(caught.value) == "ZeroDivisionError: oh"
    assert steps.stages == {}


def test_nothing_is_kept_for_a_module(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="overwrite=True"):
        ModuleSteps(BuiltModel(nn.Identity()), subprocesses.silent).existing(tmp_path, {})
