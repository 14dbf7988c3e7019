"""Runtimes that do what tests need, in real worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from segonnx.bench.plan import Target
from segonnx.core import synthetic_inputs
from segonnx.runtimes.base import Operator, Options, Runnable, Runtime
from segonnx.runtimes.ort import OrtRuntime

SHAPE = (1, 5, 4)
BLOCK_S = 0.3


class Steady(Runtime):
    """One that works, and takes ``seconds`` for a pass."""

    name = "steady"
    needs = "artifact"
    seconds: float = 0.01

    @classmethod
    def missing(cls) -> str | None:
        return None

    def load(self, runnable: Runnable, options: Options) -> None:
        pass

    def run(self, x: synthetic_inputs.Array) -> synthetic_inputs.Array:
        end = time.perf_counter() + self.seconds
        time.sleep(max(0.0, self.seconds - 2e-3))  # a sleep ends late, so the rest is waited for
        while time.perf_counter() < end:
            pass
        return np.zeros(SHAPE, np.float32)

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return {"dtype": "float32"}

    def profile(self, x: synthetic_inputs.Array, passes: int) -> list[Operator]:
        return [Operator("Sleep", "other", 1, self.seconds)]


class Equal(Steady):
    """Another one like it."""

    name = "equal"


class Quick(Steady):
    """One that is twice as fast."""

    name = "quick"
    seconds = 0.005


class Slow(Steady):
    """One whose pass is longer than a block."""

    name = "slow"
    seconds = 0.25


class Absent(Steady):
    """One that isn't installed."""

    name = "absent"

    @classmethod
    def missing(cls) -> str | None:
        return "absent isn't installed: pip install absent"


class Unloadable(Steady):
    """One that can't load the model."""

    name = "unloadable"

    def load(self, runnable: Runnable, options: Options) -> None:
        raise ValueError("this model is too strange")


class _Late(Steady):
    """One that fails once its warm-up is over."""

    seconds = BLOCK_S

    def __init__(self) -> None:
        self.runs = 0

    def run(self, x: synthetic_inputs.Array) -> synthetic_inputs.Array:
        self.runs += 1
        if self.runs > 6:
            self.fail()
        return super().run(x)

    def fail(self) -> None:
        raise NotImplementedError


class Raising(_Late):
    """One that raises."""

    name = "raising"

    def fail(self) -> None:
        raise RuntimeError("gone astray")


class Killed(_Late):
    """One that the kernel kills, as it does where memory runs out."""

    name = "killed"

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(_Late):
    """One that never comes back."""

    name = "hanging"

    def fail(self) -> None:
        time.sleep(1000)


class Wrong(Steady):
    """One whose logits are others'."""

    name = "wrong"

    def run(self, x: synthetic_inputs.Array) -> synthetic_inputs.Array:
        super().run(x)
        return np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)


class Mirrored(OrtRuntime):
    """ONNX Runtime, with what it gives the wrong way round."""

    name = "mirrored"

    def run(self, x: synthetic_inputs.Array) -> synthetic_inputs.Array:
        return np.flip(super().run(x), axis=-1)


class Paced(Steady):
    """One whose every process is slower than the one before."""

    name = "paced"

    def load(self, runnable: Runnable, options: Options) -> None:
        # The processes share a folder, that of the model, and each leaves a file there.
        assert runnable.model is not None
        started = len(list(runnable.model.parent.glob("started-*")))
        (runnable.model.parent / f"started-{started}").touch()
        self.seconds = 0.005 * (1 + started / 2)


class Working(Steady):
    """One that multiplies matrices."""

    name = "working"
    size = 256

    def run(self, x: synthetic_inputs.Array) -> synthetic_inputs.Array:
        matrix = np.full((self.size, self.size), 0.01, np.float32)
        for _ in range(8):
            np.dot(matrix, matrix)
        return np.zeros(SHAPE, np.float32)


class Spinning(Steady):
    """One whose threads never rest, timed or not."""

    name = "spinning"

    def load(self, runnable: Runnable, options: Options) -> None:
        for _ in range(os.cpu_count() or 1):
            threading.Thread(target=self._spin, daemon=True).start()

    @staticmethod
    def _spin() -> None:
        matrix = np.full((256, 256), 0.01, np.float32)
        while True:
            np.dot(matrix, matrix)  # lets go of the interpreter's lock


KNOWN: dict[str, type[Runtime]] = {
    kind.name: kind
    for kind in (
        Steady, Equal, Quick, Slow, Absent, Unloadable, Raising, Killed, Hanging, Wrong, Mirrored, Paced, Working,
        Spinning,
    )
}  # fmt: skip


def target(folder: Path) -> Target:
    """A target for them, whose artifact has nothing recorded."""
    return Target("fake", "2d", 10**6, 10**6, (1, 3, 4), "RGB", 5, artifact=folder)
