"""Rewrites that gain on some processors alone: the graph is made for those, and others take the plain one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segonnx
from segonnx.artifacts import manifest
from segonnx.bench import targets
from segonnx.core import hardware
from segonnx.core.subprocesses import silent


def grouped() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(32, 4, 1, bias=False),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segonnx.export(grouped(), torch.randn(1, 3, 32, 32), tmp_path_factory.mktemp("cpu") / "grouped").folder


@pytest.mark.parametrize(("blocks", "file"), [("avx512", "model.cpu.onnx"), ("avx2", "model.onnx")])
def test_a_processor_gets_the_graph_that_is_not_slower(
    artifact: Path, blocks: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = manifest.read(artifact)
    assert content["cpu_graph"]["blocks"] == {"cpu": "avx512", "rewrites": ["MergeGroupsPass"]}
    monkeypatch.setattr(hardware, "blocks", lambda: blocks)
    assert manifest.fastest_model(content) == file
    assert targets.from_artifact(artifact, silent).cpu_model == file


def test_where_more_was_rewritten_the_graph_stays_and_a_line_says_what_does_not_fit(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content: dict[str, Any] = manifest.read(artifact)
    content["cpu_graph"]["rewrites"].append("SplitConcatPass")
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(hardware, "blocks", lambda: "avx512")
        assert manifest.fastest_model(content) == "model.cpu.onnx"
        assert not caplog.messages
        monkeypatch.setattr(hardware, "blocks", lambda: "avx2")
        assert manifest.fastest_model(content) == "model.cpu.onnx"
    assert caplog.messages == [
        "grouped was rewritten for processors with AVX-512, and this one has none: export with --cpu native for it"
    ]


def test_a_graph_is_made_for_the_processors_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "blocks", lambda: "avx2")
    for cpu in ("avx2", "native"):
        found = segonnx.export(grouped(), torch.randn(1, 3, 32, 32), tmp_path / cpu, cpu=cpu)
        assert "cpu_graph" not in found.manifest
        assert found.manifest["arguments"]["cpu"] == "avx2"


def test_processors_have_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, blocks in ((["avx2", "fma"], "avx2"), (["avx2", "avx512f"], "avx512"), (["asimd"], "avx512")):
        hardware.blocks.cache_clear()
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        assert hardware.blocks() == blocks
    hardware.blocks.cache_clear()
