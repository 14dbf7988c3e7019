"""What a module gives: which output, in which order of its axes, logits or probabilities, and the labels of each."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody calls it)

import segonnx
from segonnx.errors import InputError
from segonnx.exporters import activation
from tests.exporters.modules import Fn, X, run, torch_gives

pytestmark = pytest.mark.usefixtures("steps_here")


class Pair(NamedTuple):
    mask: torch.Tensor
    aux: torch.Tensor


NESTED = Fn(lambda m, x: {"out": {"mask": m.conv(x), "aux": m.conv(x, 1)}, "z": x}, (3, 2), (3, 4))
PAIR = Fn(lambda m, x: Pair(m.conv(x), m.conv(x, 1)), (3, 2), (3, 4))
TUPLE = Fn(lambda m, x: (m.conv(x), [m.conv(x, 1)]), (3, 2), (3, 4))


@pytest.mark.parametrize(
    ("module", "output", "number"),
    [
        (NESTED, ("out", "mask"), 0),
        (NESTED, ("out", "aux"), 1),
        (PAIR, "aux", 1),
        (PAIR, 0, 0),
        (TUPLE, -1, 1),
        (TUPLE, (1, 0), 1),
        (Fn(lambda m, x: collections.OrderedDict(out=m.conv(x)), (3, 2)), None, 0),
        (Fn(lambda m, x: [{"out": m.conv(x)}], (3, 2)), None, 0),
    ],
)
def test_an_output_is_found_by_its_keys(module: Fn, output: Any, number: int, tmp_path: Path) -> None:
    done = segonnx.export(module, X, tmp_path / "it", output=output)
    x = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        expected = module.conv(x, number).numpy()
    assert np.allclose(run(done.folder, x)[0], expected, atol=1e-4)
    if len(module.convs) > 1:
        others = sum(parameter.numel() for parameter in module.convs[1 - number].parameters())
        assert done.manifest["parameters"]["unused_reasons"] == {f"output {output!r} doesn't need it": others}


def test_a_chosen_output_excuses_no_parameter_that_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from segonnx.exporters import module_checks

    assert module_checks.needed is not None
    found = module_checks.needed
    monkeypatch.setattr(module_checks, "needed", lambda *given: {n for n in found(*given) or () if "bias" not in n})
    done = segonnx.export(PAIR, X, tmp_path / "it", output="mask")  # what is in the file needs no excuse
    assert done.manifest["parameters"]["unused"] == sum(p.numel() for p in PAIR.convs[1].parameters())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (NESTED, {}, r"several outputs: choose one with output=KEY, where KEY is 'out' or 'z'"),
        (NESTED, {"output": "out"}, r"choose one with output=\('out', KEY\), where KEY is 'mask' or 'aux'"),
        (NESTED, {"output": "mask"}, r"no output 'mask' \(output=\): 'out' or 'z'"),
        (NESTED, {"output": ("out", "mask", 0)}, r"output=\('out', 'mask'\) is one tensor: leave out the rest"),
        (TUPLE, {"output": 2}, "no output 2 .*: a number from 0 to 1"),
        (TUPLE, {"output": -3}, "no output -3"),
        (TUPLE, {"output": 1.5}, "output= takes a key, a number"),
        (Fn(lambda m, x: m.conv(x), (3, 1)), {"output": 0}, "gives one tensor: leave out output=0"),
        (Fn(lambda m, x: m.conv(x).permute(0, 2, 3, 1), (3, 2)), {}, "looks like NHWC: output_axes='NHWC' takes it"),
        (Fn(lambda m, x: m.conv(x)[:, 0], (3, 1)), {}, "looks like NHW: output_axes='NHW' takes it"),
        (Fn(lambda m, x: m.conv(x)[0], (3, 2)), {}, r"gives \(2, 32, 48\) for 1 images"),
        (Fn(lambda m, x: m.conv(x)[:, :, :20, :7], (3, 2)), {}, r"isn't \(N, classes, .* say so with"),
        (Fn(lambda m, x: m.conv(x), (3, 2)), {"output_axes": "CHWN"}, "output_axes='CHWN' isn't known"),
        (Fn(lambda m, x: m.conv(x), (3, 2)), {"output_axes": "NHW"}, r"has 3 axes, the module gives \(1, 2, 32, 48\)"),
        (Fn(lambda m, x: (m.conv(x) > 0).to(torch.uint8), (3, 1)), {}, "gives labels itself, .*say result='labels'"),
        (Fn(lambda m, x: m.conv(x).double(), (3, 1)), {}, "of torch.float64; it must be float32"),
    ],
)
def test_an_output_that_is_not_plain_is_asked_for(
    module: Fn, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        segonnx.export(module, X, tmp_path / "it", **options)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_axes_that_may_be_two_things_are_asked_for(tmp_path: Path) -> None:
    module, x = Fn(lambda m, x: m.conv(x), (3, 32)), torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match="may be NCHW or NHWC: say which with output_axes="):
        segonnx.export(module, x, tmp_path / "it")
    assert segonnx.export(module, x, tmp_path / "it", output_axes="NCHW").manifest["outputs"][0]["shape"][1] == 32


@pytest.mark.parametrize(
    ("forward", "axes", "classes"),
    [
        (lambda m, x: m.conv(x).permute(0, 2, 3, 1), "NHWC", 3),
        (lambda m, x: m.conv(x)[:, 0], "NHW", 1),
        (lambda m, x: m.conv(x)[:, :, ::4, ::4], None, 3),
        (lambda m, x: F.interpolate(m.conv(x), size=(7, 11)), None, 3),
    ],
)
def test_axes_are_put_in_order(forward: Any, axes: Any, classes: int, tmp_path: Path) -> None:
    module = Fn(forward, (3, classes))
    done = segonnx.export(module, X, tmp_path / "it", output_axes=axes)
    assert done.manifest["outputs"][0]["shape"][1] == classes
    x = torch.randn(1, 3, 32, 48)
    expected = torch_gives(module, x)
    if axes is not None:
        expected = expected.permute(0, 3, 1, 2) if axes == "NHWC" else expected[:, None]
    assert np.allclose(run(done.folder, x)[0], expected.numpy(), atol=1e-4)


def _line(folder: Path) -> Any:
    """The labels that the card's own line gives."""
    import onnxruntime

    card = (folder / "README.md").read_text("utf-8")
    line = next(line for line in card.splitlines() if line.startswith("labels = "))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names: dict[str, Any] = {"session": session, "np": np, "x": np.random.default_rng(1).standard_normal(X.shape, "f4")}
    exec(line, names)
    return names["labels"], torch.from_numpy(names["x"])


KINDS = {
    "one logit": (lambda m, x: m.conv(x), 1, lambda y: y[:, 0] > 0),
    "logits": (lambda m, x: m.conv(x), 4, lambda y: y.argmax(1)),
    "a sigmoid": (lambda m, x: m.conv(x).sigmoid(), 1, lambda y: y[:, 0] > 0.5),
    "a softmax": (lambda m, x: m.conv(x).softmax(1), 4, lambda y: y.argmax(1)),
    "sigmoids": (lambda m, x: m.conv(x).sigmoid(), 4, lambda y: y > 0.5),
    "an enlarged sigmoid": (
        lambda m, x: F.interpolate(m.conv(x[:, :, ::2, ::2]).sigmoid(), scale_factor=2, mode="bilinear"),
        1,
        lambda y: y[:, 0] > 0.5,
    ),
    "a log-softmax": (lambda m, x: m.conv(x).log_softmax(1), 3, lambda y: y.argmax(1)),
    "a softmax by hand": (
        lambda m, x: m.conv(x).exp() / m.conv(x).exp().sum(1, keepdim=True), 3, lambda y: y.argmax(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("result", [None, "labels"])
def test_labels_are_those_of_the_module_itself(kind: str, result: Any, tmp_path: Path) -> None:
    forward, classes, decide = KINDS[kind]
    module = Fn(forward, (3, classes))
    if kind == "sigmoids" and result == "labels":
        with pytest.raises(InputError, match="classes, each with a sigmoid, overlap"):
            segonnx.export(module, X, tmp_path / "it", result="labels")
        return
    done = segonnx.export(module, X, tmp_path / "it", result=result)
    labels, x = _line(done.folder)
    expected = decide(torch_gives(module, x)).numpy()
    assert labels.shape == expected.shape
    assert np.mean(labels == expected) > 0.999 and len(np.unique(labels)) > 1
    segonnx.verify(done.folder)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("overlapping", [None, True])
def test_probabilities_are_those_of_the_logits(classes: int, overlapping: bool | None, tmp_path: Path) -> None:
    module = Fn(lambda m, x: m.conv(x), (3, classes))
    done = segonnx.export(module, X, tmp_path / "it", result="probabilities", overlapping=overlapping)
    apart = classes > 1 and not overlapping
    (output,) = done.manifest["outputs"]
    assert (output["name"], output["kind"], output["decision"]) == (
        "probabilities", "probabilities", "argmax" if apart else "above 0.5"
    )  # fmt: skip
    x = torch.randn(1, 3, 32, 48)
    logits = torch_gives(module, x)
    expected = logits.softmax(1) if apart else logits.sigmoid()
    assert np.allclose(run(done.folder, x)[0], expected.numpy(), atol=1e-5)
    segonnx.verify(done.folder)
    labels, x = _line(done.folder)
    own = torch_gives(module, x)
    assert np.array_equal(labels, (own.argmax(1) if apart else (own[:, 0] if classes == 1 else own) > 0).numpy())


@pytest.mark.parametrize(
    ("forward", "classes", "options", "message"),
    [
        (lambda m, x: F.hardsigmoid(m.conv(x)), 1, {}, "nothing in its graph says whether they are probabilities"),
        (lambda m, x: 1 / (1 + (-m.conv(x)).exp()), 2, {}, "say it with output_kind='probabilities' or"),
        (lambda m, x: F.logsigmoid(m.conv(x)), 1, {"result": "labels"}, "ends in a log-sigmoid"),
        (lambda m, x: m.conv(x).sigmoid(), 1, {"output_kind": "logits"}, r"said to give logits .*ends in a sigmoid"),
        (lambda m, x: m.conv(x), 1, {"output_kind": "probabilities"}, r"said to give probabilities .*values go from -"),
        (lambda m, x: m.conv(x).sigmoid(), 1, {"result": "logits"}, "it ends in probabilities already"),
        (lambda m, x: m.conv(x).softmax(1), 3, {"overlapping": True}, "said to give classes that overlap, and they"),
        (
            lambda m, x: m.conv(x).softmax(1)[:, 1:],
            3,
            {},
            r"ends in a softmax, .* overlapping=False .*overlapping=True",
        ),
    ],
)
def test_what_the_numbers_are_is_asked_for_where_nothing_tells(
    forward: Any, classes: int, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        segonnx.export(Fn(forward, (3, classes)), X, tmp_path / "it", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_was_said_of_the_numbers_decides(tmp_path: Path) -> None:
    module = Fn(lambda m, x: F.hardsigmoid(m.conv(x)), (3, 1))
    done = segonnx.export(module, X, tmp_path / "it", result="labels", output_kind="probabilities")
    x = torch.randn(1, 3, 32, 48)
    assert np.array_equal(run(done.folder, x)[0], (torch_gives(module, x)[:, 0] > 0.5).numpy())
    each = Fn(lambda m, x: m.conv(x).sigmoid(), (3, 4))
    done = segonnx.export(each, X, tmp_path / "each", result="labels", overlapping=False)
    assert np.array_equal(run(done.folder, x)[0], torch_gives(each, x).argmax(1).numpy())


@pytest.mark.parametrize(
    ("forward", "classes", "labels", "values"),
    [
        (lambda m, x: m.conv(x), 1, ["polyp"], [1]),
        (lambda m, x: m.conv(x), 3, ["background", "liver", "tumour"], [0, 1, 2]),
        (lambda m, x: m.conv(x).sigmoid(), 2, ["vessel", "lesion"], [1, 2]),
    ],
)
def test_a_label_has_the_value_that_it_gets(
    forward: Any, classes: int, labels: list[str], values: list[int], tmp_path: Path
) -> None:
    done = segonnx.export(Fn(forward, (3, classes)), X, tmp_path / "it", labels=labels)
    found = {entry["name"]: entry["value"] for entry in done.manifest["labels"]}
    assert found == dict(zip(labels, values, strict=True))


def test_one_class_is_named_alone(tmp_path: Path) -> None:
    module = Fn(lambda m, x: m.conv(x), (3, 1))
    for place, labels in enumerate((["background", "polyp"], ["polyp"])):
        done = segonnx.export(module, X, tmp_path / str(place), labels=labels)
        assert done.manifest["labels"] == [{"name": "polyp", "value": 1, "labels": [1]}]
    with pytest.raises(InputError, match=r"has 1 class; labels= names 3; one class has one name, of what is there"):
        segonnx.export(module, X, tmp_path / "it", labels=["a", "b", "c"])


def test_an_activation_is_seen_through_what_only_moves_values() -> None:
    def ends(*operators: str) -> Any:
        nodes, name = [], "x"
        for number, operator in enumerate(operators):
            nodes.append(onnx.helper.make_node(operator, [name], [f"v{number}"]))
            name = f"v{number}"
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [1, 2])], [value(name, 1, None)])
        return activation.final(ir.from_proto(onnx.helper.make_model(graph)))

    assert ends("Sigmoid") == ends("Sigmoid", "Transpose", "Identity", "Squeeze") == "sigmoid"
    assert ends("Softmax", "Clip") == "softmax"
    assert ends("Sigmoid", "Log") == "log-sigmoid"
    assert ends("Relu") is ends("Sigmoid", "Relu") is ends("Identity") is None


def test_the_card_says_what_the_numbers_are(tmp_path: Path) -> None:
    done = segonnx.export(Fn(lambda m, x: m.conv(x).sigmoid(), (3, 4)), X, tmp_path / "it")
    card = (done.folder / "README.md").read_text("utf-8")
    assert "a probability per class; each class is there above 0.5, and they may overlap" in card
    assert re.search(r"\[0\] > 0\.5  # one mask per class$", card, re.MULTILINE)
