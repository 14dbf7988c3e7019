"""Choice by measurement: the rewrites and algorithms that are fastest in ONNX Runtime on this machine.

Each layer's algorithms race each other alone, which costs little and proposes. The whole graph decides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from segonnx import optimize
from segonnx.core import hardware
from segonnx.core.subprocesses import Progress
from segonnx.core.synthetic_inputs import Array
from segonnx.optimize import BASELINE, OPTIONAL, Rewritten, single_layer, tuning
from segonnx.optimize.choices import Choices
from segonnx.optimize.layers import RewrittenLayer
from segonnx.optimize.timed_session import TimedSession
from segonnx.optimize.tuning import Tuning
from segonnx.optimize.unroll_depth import UnrollDepthPass

ROUNDS = 7
WINS = 6
"""A challenger takes the place of the current graph if it wins so many of the rounds: chance does that once in 16
races."""
LAYER_ROUNDS = 5
DEPTH_CHUNKS = (1, 2, 4)
"""Numbers of depth chunks that race each other."""
LAYERS_SHARE = 0.4
"""The part of the time that the layers' own races may take."""


def tune(
    baseline: Path, x: Array, max_weight_growth: float | None, threads: int, seconds: float, progress: Progress
) -> Tuning:
    """Choose the rewrites of a graph by timing them.

    Args:
        baseline: the graph as torch wrote it; its weights lie in files beside it. Other graphs are written there, too.
        x: the input.
        max_weight_growth: see ``Choices``.
        threads: of ONNX Runtime.
        seconds: that the search may take; the comparison at its end comes on top.
        progress: callback for each step.

    Returns:
        What was chosen, with the medians of the last comparison, in seconds, of the baseline, of the package's
        defaults and of what the search found. The fastest of the three is chosen. The same graph on the same machine is
        looked up among earlier choices.
    """
    cached = tuning.cache_file(baseline, x, max_weight_growth, threads, seconds)
    if (known := tuning.load(cached)) is not None:
        progress("taking the tuning of an earlier export")
        return known
    started = time.monotonic()
    search = Search(baseline, x, threads, started + seconds, progress)
    default = Choices(max_weight_growth=max_weight_growth)
    made = search.settle(default, search.choose(default))
    made["search"]["seconds"] = round(time.monotonic() - started, 1)
    made["machine"] = {"cpu": hardware.describe()["cpu"], "threads": threads, **hardware.versions(["onnxruntime"])}
    tuning.store(cached, made)
    return made


class Search:
    """One search for the fastest choices.

    Args:
        baseline: the graph as torch wrote it.
        x: the input.
        threads: of ONNX Runtime.
        deadline: in seconds of ``time.monotonic``, after which no race begins.
        progress: callback for each step.
    """

    def __init__(self, baseline: Path, x: Array, threads: int, deadline: float, progress: Progress) -> None:
        self.deadline = deadline
        self._baseline = baseline
        self._x = x
        self._threads = threads
        self._progress = progress
        self._layers: list[dict[str, Any]] = []
        self._complete = True
        self._races = 0

    def choose(self, default: Choices) -> Choices:
        """The fastest choices that the time allows to find."""
        current, session = default, self.session(default)
        changed = self.rewrite(default).passes
        for name in OPTIONAL:
            if name in changed:
                challenger = replace(current, without=(*current.without, name))
                current, session = self._challenge(current, session, challenger, f"leaving out {name}")
        if {"UnrollDepthPass", "UnrollRowsPass"}.isdisjoint(set(changed) - set(current.without)):
            return current
        for count in DEPTH_CHUNKS:
            challenger = replace(current, depth_chunks=count)
            current, session = self._challenge(current, session, challenger, f"depth chunks: {count}")
        layers = self.rewrite(current).layers  # what is left out changes what the layers read
        winners = self._race_layers(layers, current.depth_chunks)
        # All at once first, then one at a time: what wins alone may lose in its place.
        challenger = _with(current, winners)
        current, session = self._challenge(current, session, challenger, "the layers' fastest algorithms")
        for number, (text, algorithm) in enumerate(winners.items(), 1):
            other = layers[text].algorithm if current.algorithms.get(text) == algorithm else algorithm
            what = f"{other} for {text} ({number} of {len(winners)})"
            current, session = self._challenge(current, session, _with(current, {text: other}), what)
        kept = {text: name for text, name in current.algorithms.items() if name != layers[text].algorithm}
        return replace(current, algorithms=kept)

    def settle(self, default: Choices, found: Choices) -> Tuning:
        """The last race: the baseline, the defaults and what was found; the record of the fastest."""
        graphs = {"stock": BASELINE, "default": default} | ({"tuned": found} if found != default else {})
        sessions = {}
        for name, choices in graphs.items():
            self._progress(f"tuning: loading the {name} graph for the last comparison")
            sessions[name] = self.session(choices)
        samples: dict[str, list[float]] = {name: [] for name in graphs}
        for number in range(1, ROUNDS + 1):
            self._progress(f"tuning: last comparison, round {number} of {ROUNDS}")
            for name, session in sessions.items():
                samples[name].append(session.sample())
        medians = {name: median(values) for name, values in samples.items()}
        kept = min(medians, key=medians.__getitem__)
        return {
            "kept": kept,
            **tuning.record(graphs[kept]),
            "medians_s": medians,
            "search": {"complete": self._complete, "races": self._races, "layers": self._layers},
        }

    def rewrite(self, choices: Choices) -> Rewritten:
        """Write the graph of these choices to ``_candidate``."""
        model = ir.load(self._baseline)
        rewritten = optimize.run(model, choices)
        ir.save(model, self._candidate)
        return rewritten

    def session(self, choices: Choices) -> TimedSession:
        """The graph of these choices, ready to be timed."""
        self.rewrite(choices)
        try:
            return TimedSession(self._candidate, self._x, self._threads)
        finally:
            self._candidate.unlink()

    @property
    def _candidate(self) -> Path:
        return self._baseline.with_name("candidate.onnx")  # beside the external data, which it shares

    def _challenge(
        self, current: Choices, session: TimedSession, challenger: Choices, what: str
    ) -> tuple[Choices, TimedSession]:
        """The winner of a race of two whole graphs: the challenger, if it beats the current one."""
        if challenger == current:
            return current, session
        if time.monotonic() >= self.deadline:
            self._complete = False
            return current, session
        self._progress(f"tuning: {what}")
        self._races += 1
        rival = self.session(challenger)
        wins = 0
        for number in range(1, ROUNDS + 1):
            wins += rival.sample() < session.sample()
            if number - wins > ROUNDS - WINS:
                return current, session
        return challenger, rival

    def _race_layers(self, layers: Mapping[str, RewrittenLayer], depth_chunks: int) -> dict[str, str]:
        """The algorithms that were faster alone than the current ones, by their layers, what saves the most first."""
        ends = time.monotonic() + LAYERS_SHARE * (self.deadline - time.monotonic())
        undecided = [layer for layer in layers.values() if len(layer.algorithms) > 1]
        undecided.sort(key=lambda layer: layer.multiply_adds, reverse=True)
        saved: dict[str, tuple[float, str]] = {}
        for number, layer in enumerate(undecided, 1):
            if time.monotonic() >= ends:
                self._complete = False
                break
            self._progress(f"tuning: algorithms of {layer.layer} ({number} of {len(undecided)})")
            seconds = self.race_algorithms(layer, depth_chunks)
            best = min(seconds, key=seconds.__getitem__)
            text, count, current = str(layer.layer), layer.convolutions, layer.algorithm
            self._layers.append({"layer": text, "convolutions": count, "default": current, "seconds": seconds})
            if best != current:
                saved[text] = (count * (seconds[current] - seconds[best]), best)
        return {text: best for text, (_, best) in sorted(saved.items(), key=lambda item: -item[1][0])}

    def race_algorithms(self, layer: RewrittenLayer, depth_chunks: int) -> dict[str, float]:
        """Median seconds of each algorithm of a layer, alone."""
        x = np.random.default_rng(0).standard_normal((1, 1, *layer.layer.size), np.float32)
        sessions = {}
        for name in layer.algorithms:
            model = single_layer.model_of(layer.layer)
            UnrollDepthPass({str(layer.layer): name}, depth_chunks)(model)
            sessions[name] = TimedSession(ir.to_proto(model).SerializeToString(), x, self._threads)
        rounds = [{name: session.sample() for name, session in sessions.items()} for _ in range(LAYER_ROUNDS)]
        return {name: median(samples[name] for samples in rounds) for name in sessions}


def _with(choices: Choices, algorithms: Mapping[str, str]) -> Choices:
    return replace(choices, algorithms={**choices.algorithms, **algorithms})
