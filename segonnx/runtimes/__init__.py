"""The runtimes that segonnx compares.

To add one: one file here with a class, and its place in ``_RUNTIMES``; ``tests/runtimes/test_conformance.py`` checks it
with the others.
"""

from __future__ import annotations

from segonnx.runtimes.base import Runtime
from segonnx.runtimes.compiled import CompileRuntime
from segonnx.runtimes.eager import EagerRuntime
from segonnx.runtimes.ort import OrtRuntime

RUNTIMES: tuple[type[Runtime], ...] = (EagerRuntime, CompileRuntime, OrtRuntime)
NAMES = tuple(runtime.name for runtime in RUNTIMES)


def get(name: str) -> type[Runtime]:
    """The runtime called ``name``."""
    return next(runtime for runtime in RUNTIMES if runtime.name == name)
