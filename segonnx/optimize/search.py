"""Choice by measurement: which rewrites, and which form of each layer, are fastest in ONNX Runtime on this machine.

Each layer's forms race each other alone, which costs little and proposes; the whole graph decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from segonnx._version import __version__
from segonnx.core import files, hardware
from segonnx.core.ort_session import SessionSettings, open_session
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import Array, ParityInput
from segonnx.errors import InputError, ResourceError

if TYPE_CHECKING:
    import onnx_ir as ir

    from segonnx.optimize.choices import Choices
    from segonnx.optimize.unroll_depth import Found, Layer

ROUNDS = 7
WINS = 6
"""A challenger takes the place of what is there if it wins so many of the rounds: chance does that once in 16 races."""
LAYER_ROUNDS = 5
SAMPLE_S = 0.05
"""Shorter passes are repeated for about so long, and their mean is one sample."""
LANES = (1, 2, 4)
"""Numbers of lanes that race each other."""
LAYERS_SHARE = 0.4
"""The part of the time that the layers' own races may take."""

Tuning = dict[str, Any]
"""The entry ``tuning`` of a manifest."""


def tune(
    stock: Path,
    probe: ParityInput,
    modality: str,
    max_weight_growth: float | None,
    threads: int,
    seconds: float,
    progress: Progress,
) -> Tuning:
    """Choose the rewrites of a graph by timing them.

    Args:
        stock: the graph as torch wrote it; its weights lie in files beside it. Other graphs are written there, too.
        probe: the input.
        modality: of the input.
        max_weight_growth: see ``Choices``.
        threads: of ONNX Runtime.
        seconds: that the search may take; the comparison at its end comes on top.
        progress: told of each step.

    Returns:
        What was chosen, with the medians of the last comparison, in seconds, of the stock graph, of the package's
        defaults and of what the search found. The fastest of the three is chosen. The same graph on the same machine is
        looked up among earlier choices.
    """
    from segonnx.optimize.choices import Choices

    cached = _cache(stock, probe, max_weight_growth, threads, seconds)
    if (known := _load(cached)) is not None:
        progress("taking the tuning of an earlier export")
        return known
    search = _Search(stock, probe.make(modality), threads, time.monotonic() + seconds, progress)
    started = time.monotonic()
    default = Choices(max_weight_growth=max_weight_growth)
    found = search.choose(default)
    tuning = search.settle(default, found)
    tuning["search"]["seconds"] = round(time.monotonic() - started, 1)
    tuning["machine"] = {"cpu": hardware.describe()["cpu"], "threads": threads, **hardware.versions(["onnxruntime"])}
    _store(cached, tuning)
    return tuning


class _Search:
    def __init__(self, stock: Path, x: Array, threads: int, deadline: float, progress: Progress) -> None:
        self._stock = stock
        self._x = x
        self._threads = threads
        self._deadline = deadline
        self._progress = progress
        self._layers: list[dict[str, Any]] = []
        self._complete = True
        self._races = 0

    def choose(self, default: Choices) -> Choices:
        """The fastest choices that the time allows to find."""
        from segonnx.optimize.choices import OPTIONAL

        current, session = default, self._session(default)
        changed, _ = self._rewrite(default)
        for name in OPTIONAL:
            if name in changed:
                challenger = replace(current, without=(*current.without, name))
                current, session = self._challenge(current, session, challenger, f"leaving out {name}")
        if "UnrollDepthPass" not in changed or "UnrollDepthPass" in current.without:
            return current
        for lanes in LANES:
            challenger = replace(current, lanes=lanes)
            current, session = self._challenge(current, session, challenger, f"volumes in lanes: {lanes}")
        _, found = self._rewrite(current)  # what is left out changes what the layers read
        winners = self._race_layers(found, current.lanes)
        # All at once first, then one at a time: what wins alone may lose in its place.
        current, session = self._challenge(current, session, _with(current, winners), "the layers' fastest forms")
        for number, (text, form) in enumerate(winners.items(), 1):
            other = found[text].form if current.forms.get(text) == form else form
            what = f"{other} for {text} ({number} of {len(winners)})"
            current, session = self._challenge(current, session, _with(current, {text: other}), what)
        forms = {text: form for text, form in current.forms.items() if form != found[text].form}
        return replace(current, forms=forms)

    def settle(self, default: Choices, found: Choices) -> Tuning:
        """The last race: the stock graph, the defaults and what was found; the record of the fastest."""
        from segonnx.optimize.choices import STOCK

        runners = {"stock": STOCK, "default": default} | ({"tuned": found} if found != default else {})
        sessions = {}
        for name, choices in runners.items():
            self._progress(f"tuning: loading the {name} graph for the last comparison")
            sessions[name] = self._session(choices)
        samples: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(ROUNDS):
            self._progress(f"tuning: last comparison, round {number + 1} of {ROUNDS}")
            for name, session in sessions.items():
                samples[name].append(session.sample())
        medians = {name: median(values) for name, values in samples.items()}
        kept = min(medians, key=medians.__getitem__)
        return {
            "kept": kept,
            "without": list(runners[kept].without),
            "forms": dict(sorted(runners[kept].forms.items())),
            "lanes": runners[kept].lanes,
            "medians_s": medians,
            "search": {"complete": self._complete, "races": self._races, "layers": self._layers},
        }

    def _challenge(self, current: Choices, session: Session, challenger: Choices, what: str) -> tuple[Choices, Session]:
        """The challenger if it beats what is there, in a race of the whole graphs."""
        if challenger == current:
            return current, session
        if time.monotonic() >= self._deadline:
            self._complete = False
            return current, session
        self._progress(f"tuning: {what}")
        self._races += 1
        rival = self._session(challenger)
        wins = 0
        for number in range(1, ROUNDS + 1):
            wins += rival.sample() < session.sample()
            if number - wins > ROUNDS - WINS:
                return current, session
        return challenger, rival

    def _race_layers(self, found: Mapping[str, Found], lanes: int) -> dict[str, str]:
        """The forms that were faster alone than those that are there, the largest gain first."""
        ends = time.monotonic() + LAYERS_SHARE * (self._deadline - time.monotonic())
        open_layers = [one for one in found.values() if len(one.forms) > 1]
        gains: dict[str, tuple[float, str]] = {}
        for number, one in enumerate(sorted(open_layers, key=_work, reverse=True), 1):
            if time.monotonic() >= ends:
                self._complete = False
                break
            self._progress(f"tuning: forms of {one.layer} ({number} of {len(open_layers)})")
            seconds = self._race_forms(one, lanes)
            best = min(seconds, key=seconds.__getitem__)
            self._layers.append(
                {"layer": str(one.layer), "convolutions": one.convolutions, "default": one.form, "seconds": seconds}
            )
            if best != one.form:
                gains[str(one.layer)] = (one.convolutions * (seconds[one.form] - seconds[best]), best)
        return {text: form for text, (_, form) in sorted(gains.items(), key=lambda item: -item[1][0])}

    def _race_forms(self, one: Found, lanes: int) -> dict[str, float]:
        """Median seconds of each form of a layer, alone."""
        import onnx_ir as ir

        from segonnx.optimize.unroll_depth import UnrollDepthPass

        x = np.random.default_rng(0).standard_normal((1, 1, *one.layer.size), np.float32)
        sessions = {}
        for form in one.forms:
            model = _alone(one.layer)
            UnrollDepthPass({str(one.layer): form}, lanes)(model)
            sessions[form] = Session(ir.to_proto(model).SerializeToString(), x, self._threads)
        rounds = [{form: session.sample() for form, session in sessions.items()} for _ in range(LAYER_ROUNDS)]
        return {form: median(samples[form] for samples in rounds) for form in sessions}

    def _rewrite(self, choices: Choices) -> tuple[tuple[str, ...], dict[str, Found]]:
        import onnx_ir as ir

        from segonnx import optimize

        model = ir.load(self._stock)
        changed, found = optimize.run(model, choices)
        ir.save(model, self._candidate)
        return changed, found

    def _session(self, choices: Choices) -> Session:
        self._rewrite(choices)
        try:
            return Session(self._candidate, self._x, self._threads)
        finally:
            self._candidate.unlink()

    @property
    def _candidate(self) -> Path:
        return self._stock.with_name("candidate.onnx")  # beside the external data, which it shares


class Session:
    """A graph in ONNX Runtime, after its warm-up. Its threads sleep while it doesn't run.

    Args:
        model: its path, or its bytes.
        x: the input.
        threads: of ONNX Runtime.
    """

    def __init__(self, model: Path | bytes, x: Array, threads: int) -> None:
        self._session = open_session(model, SessionSettings(threads=threads, spinning="while-running"))
        output = self._session.get_outputs()[0]
        self._out = np.empty(output.shape, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input(self._session.get_inputs()[0].name, x)
        self._binding.bind_output(output.name, "cpu", 0, np.float32, self._out.shape, self._out.ctypes.data)
        self._passes = 1
        self.sample()
        self._passes = max(1, round(SAMPLE_S / self.sample()))

    def sample(self) -> float:
        """Seconds of a pass: the mean of a few where they are short."""
        begun = time.perf_counter()
        for _ in range(self._passes):
            self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - begun) / self._passes


def _with(choices: Choices, forms: Mapping[str, str]) -> Choices:
    return replace(choices, forms={**choices.forms, **forms})


def _work(one: Found) -> int:
    """Multiply-adds of the layer, all of its convolutions together."""
    layer = one.layer
    inputs = sum(channels for channels, _ in layer.sources)
    voxels = np.prod([size // stride for size, stride in zip(layer.size, layer.strides, strict=True)])
    return int(one.convolutions * inputs * layer.outputs * np.prod(layer.kernel) * voxels)


def _alone(layer: Layer) -> ir.Model:
    """A network of this layer, whose inputs a slight convolution of one channel makes."""
    import onnx
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(*shape: int) -> str:
        name = f"w{len(tensors)}"
        values = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    parts = []
    for number, (channels, alike) in enumerate(layer.sources):
        # Every alike-th slice, where they are to be repeated.
        kernel = (2, 1, 1)
        y = add("Conv", ["x", weight(channels, 1, *kernel)], strides=[alike, 1, 1], pads=[1, 0, 0, 0, 0, 0])
        if alike > 1:
            tensors.append(numpy_helper.from_array(np.array([1, 1, alike, 1, 1], np.float32), f"scales{number}"))
            y = add("Resize", [y, "", f"scales{number}"], mode="nearest")
        parts.append(y)
    y = parts[0] if len(parts) == 1 else add("Concat", parts, axis=1)
    inputs = sum(channels for channels, _ in layer.sources)
    y = add(
        "Conv", [y, weight(layer.outputs, inputs, *layer.kernel), weight(layer.outputs)],
        strides=layer.strides, pads=layer.pads,
    )  # fmt: skip
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *layer.size])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def cache_folder() -> Path:
    """Where tunings are kept: ``$SEGONNX_CACHE``, or the user's cache folder."""
    if found := os.environ.get("SEGONNX_CACHE"):
        return Path(found)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segonnx" / "tuning"


def _cache(stock: Path, probe: ParityInput, max_weight_growth: float | None, threads: int, seconds: float) -> Path:
    """The cache's file for this graph, whatever its weights are, on this machine."""
    import onnx_ir as ir

    digest = hashlib.sha256()
    say: Callable[[object], None] = lambda what: digest.update(repr(what).encode())  # noqa: E731
    say((__version__, hardware.versions(["onnxruntime"]), hardware.describe()["cpu"], hardware.cpu_flags()))
    say((probe, max_weight_growth, threads, seconds))
    for node in ir.load(stock).graph:
        say((node.op_type, sorted((name, str(one.value)) for name, one in node.attributes.items())))
        say([None if value is None else (value.name, str(value.shape)) for value in (*node.inputs, *node.outputs)])
    return cache_folder() / f"{digest.hexdigest()}.json"


def _load(path: Path) -> Tuning | None:
    """What the cache holds; None where it holds nothing that can be used."""
    from segonnx.optimize import choices

    try:
        return choices.read(path)
    except InputError:
        return None


def _store(path: Path, tuning: Tuning) -> None:
    """Keep a tuning, where the folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps({"tuning": tuning}, indent=1) + "\n")
    except (OSError, ResourceError):
        return
