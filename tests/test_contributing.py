"""CONTRIBUTING.md promises that each of these is one file and one line. Each test adds one in just that way."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from segonnx import cli, models, optimize, runtimes
from segonnx.bench.worker import Job, Loaded, Passes, serve
from segonnx.core import hardware
from segonnx.core.synthetic_inputs import Array
from segonnx.models import counting
from segonnx.models.base import BuiltModel
from segonnx.runtimes.base import Operator, Options, Runnable, Runtime
from segonnx.sources.catalog import ModelSpec


class DoublingRuntime(Runtime):
    """The file of a new runtime: its logits are twice the input."""

    name = "doubling"
    needs = "artifact"

    @classmethod
    def missing(cls) -> str | None:
        return None

    def load(self, runnable: Runnable, options: Options) -> None:
        self.threads = options.threads

    def run(self, x: Array) -> Array:
        return 2 * x

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return {"threads": str(self.threads)}

    def profile(self, x: Array, passes: int) -> list[Operator]:
        return [Operator("Mul", "elementwise", 1, 1e-6)]


def test_a_runtime_is_a_file_and_a_line_in_RUNTIMES(  # noqa: N802 (the registry's name)
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(runtimes.RUNTIMES, "doubling", f"{__name__}:{DoublingRuntime.__name__}")
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    np.save(tmp_path / "x.npy", x)
    job = Job(
        runtime=runtimes.get("doubling"),
        runnable=Runnable(x.shape, model=tmp_path / "model.onnx"),
        options=Options(1),
        cpus=tuple(hardware.choose_cpus(1)),
        x=tmp_path / "x.npy",
        logits=tmp_path / "logits.npy",
        cache=tmp_path,
    )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=serve, args=(theirs, job))
    worker.start()
    try:
        answers = []
        for command in (("run", 3), ("profile", 1), ("end",)):
            ours.send(command)
        for _ in range(4):
            assert ours.poll(60)
            answers.append(ours.recv())
    finally:
        worker.join(60)
        worker.kill()
    assert [status for status, _ in answers] == ["ok"] * 4, answers
    loaded, passes, profile, _ = (value for _, value in answers)
    assert isinstance(loaded, Loaded) and loaded.settings == {"threads": "1"}
    assert isinstance(passes, Passes) and len(passes.seconds) == 3
    assert profile == [Operator("Mul", "elementwise", 1, 1e-6)]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), 2 * x)


def build_pointwise(*, num_classes: int, in_channels: int = 3) -> BuiltModel:
    """The file of a new family: one pointwise convolution."""
    return BuiltModel(nn.Conv2d(in_channels, num_classes, 1))


def test_a_family_of_models_is_a_file_and_a_line_in_BUILDERS(  # noqa: N802 (the registry's name)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(models.BUILDERS, "pointwise", build_pointwise)
    spec = ModelSpec(
        name="pointwise",
        family="2d",
        builder="pointwise",
        options={},
        input_shape=(1, 3, 32, 32),
        num_classes=5,
        modality="RGB",
        source="a test",
    )
    built = models.build_empty(spec).finalized()
    assert counting.parameters(built.module) == 5 * 3 + 5
    assert counting.macs(built, spec.input_shape, all_heads=False) == 5 * 3 * 32 * 32
    assert built.module(torch.zeros(spec.input_shape)).shape == (1, 5, 32, 32)


def test_a_rewrite_is_a_file_and_a_line_in_PASSES(  # noqa: N802 (the registry's name)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segonnx.optimize.base import Rewrite

    class DropIdentityPass(Rewrite):
        """The file of a new rewrite: nodes that copy their input go."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            found = [node for node in model.graph if node.op_type == "Identity"]
            for node in found:
                assert node.inputs[0] is not None
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
                model.graph.remove(node, safe=True)
            return ir.passes.PassResult(model, modified=bool(found))

    monkeypatch.setattr(optimize, "PASSES", (*optimize.PASSES, DropIdentityPass))
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(1, 2, 3))
    copied = ir.node("Identity", [x])
    result = ir.node("Relu", copied.outputs)
    result.outputs[0].name = "y"
    model = ir.Model(ir.Graph([x], result.outputs, nodes=[copied, result], opset_imports={"": 20}), ir_version=10)
    assert optimize.apply(model) == ("DropIdentityPass",)
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert optimize.apply(model) == ()


def test_a_command_is_a_file_and_a_line_in_COMMANDS(  # noqa: N802 (the registry's name)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.command("greet")
    @click.argument("name")
    def command(name: str) -> None:
        """Say hello."""
        click.echo(f"hello {name}")

    file: Any = ModuleType("segonnx.commands.greet")
    file.command = command
    monkeypatch.setitem(sys.modules, "segonnx.commands.greet", file)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "greet"))
    assert CliRunner().invoke(cli.main, ["greet", "Ada"]).output == "hello Ada\n"
    assert "Say hello." in CliRunner().invoke(cli.main, ["--help"]).output
