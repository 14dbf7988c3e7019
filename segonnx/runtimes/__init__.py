"""The runtimes that segonnx compares.

To add one: one file here with a class, and its place in ``RUNTIMES``; ``tests/runtimes/test_conformance.py`` checks it
with the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segonnx.runtimes.base import Runtime

RUNTIMES = {
    "eager": "segonnx.runtimes.eager:EagerRuntime",
    "eager-channels-last": "segonnx.runtimes.eager:EagerChannelsLastRuntime",
    "compile": "segonnx.runtimes.compiled:CompileRuntime",
    "compile-channels-last": "segonnx.runtimes.compiled:CompileChannelsLastRuntime",
    "ort": "segonnx.runtimes.ort:OrtRuntime",
    "ort-stock": "segonnx.runtimes.ort:OrtStockRuntime",
    "openvino": "segonnx.runtimes.openvino:OpenVinoRuntime",
    "openvino-stock": "segonnx.runtimes.openvino:OpenVinoStockRuntime",
}
"""What users type after --backend, and the class: ``get`` imports it, so that whoever needs names imports nothing."""
NAMES = tuple(RUNTIMES)
DEFAULTS = ("eager", "compile", "ort", "openvino")
"""Those that a bench compares where none is named."""


def get(name: str) -> type[Runtime]:
    """The runtime called ``name``."""
    module, _, attribute = RUNTIMES[name].partition(":")
    runtime: type[Runtime] = getattr(importlib.import_module(module), attribute)
    return runtime
