from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from segonnx import catalog, models
from segonnx.catalog import System
from segonnx.errors import CheckpointError
from segonnx.models import seeded, weights


@pytest.fixture
def state(tiny: System) -> dict[str, torch.Tensor]:
    module = models.build_empty(tiny).module
    seeded.randomize(module, 7)
    return module.state_dict()


def _write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapper", [None, *weights.WRAPPERS])
def test_checkpoints_load_under_their_wrappers(
    wrapper: str | None, tiny: System, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    network = models.build(tiny)
    weights.load(network, _write(tmp_path / "w.pth", state if wrapper is None else {wrapper: state, "epoch": 4000}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.module.state_dict().items())


def test_safetensors_load(tiny: System, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    network = models.build(tiny)
    weights.load(network, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.module.state_dict().items())


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def test_no_code_of_a_checkpoint_runs(tiny: System, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    network = models.build(tiny)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Evil(proof)))
    for path in (plain, _write(tmp_path / "zip.pth", {"state_dict": state, "extra": Evil(proof)})):
        with pytest.raises(CheckpointError, match="can't be read safely"):
            weights.load(network, path)
    assert not proof.exists()


def test_bad_checkpoints_are_refused_in_one_line(tiny: System, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = "seg_outputs.4.weight"
    truncated = _write(tmp_path / "truncated.pth", state)
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    with_nan = {**state, name: torch.full_like(state[name], float("nan"))}
    cases = {
        tmp_path / "missing.pth": "is not a file",
        truncated: "can't be read safely",
        tmp_path / "text.pth": "can't be read safely",
        tmp_path / "text.safetensors": "can't be read safely",
        _write(tmp_path / "empty.pth", {}): "holds no weights",
        _write(tmp_path / "list.pth", [1, 2]): "holds no weights",
        _write(tmp_path / "less.pth", {k: v for k, v in state.items() if k != name}): f"misses {name}",
        _write(tmp_path / "more.pth", {**state, "new.weight": torch.ones(1)}): "has unknown new.weight",
        _write(tmp_path / "other.pth", {**state, name: state[name][:3]}): f"other shapes for {name}",
        _write(tmp_path / "nan.pth", with_nan): f"{name} holds NaN",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            weights.load(models.build(tiny), path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["stunet-tiny", "encoder-lcnet-100", "smp:segformer:mit_b0", "totalsegmentator"])
def test_saved_state_is_restored_to_the_last_tensor(name: str, tiny: System, tmp_path: Path) -> None:
    system = tiny if name == tiny.name else catalog.find(name)
    if name == "totalsegmentator":
        system = replace(system, options={"features": (4, 4, 4)})
    network = models.build(system).finalized()
    weights.save(network.module, tmp_path / "w.safetensors")
    restored = weights.restore(system, tmp_path / "w.safetensors").module
    expected = weights.state(network.module)
    assert weights.state(restored).keys() == expected.keys()
    for key, tensor in weights.state(restored).items():
        assert torch.equal(tensor, expected[key]), key
