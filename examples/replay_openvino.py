"""Replays an artifact's test data in OpenVINO: pip install openvino onnx numpy.

python examples/replay_openvino.py artifacts/stunet-s

Prints the largest error relative to the standard deviation of the logits. The exit code is 1 if the manifest allows
less.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino

artifact = Path(sys.argv[1])
manifest = json.loads((artifact / "manifest.json").read_text())
x, expected = (
    onnx.numpy_helper.to_array(onnx.load_tensor(artifact / "test_data_set_0" / name))
    for name in ("input_0.pb", "output_0.pb")
)
# Where the processor has bfloat16, OpenVINO computes in it by default.
model = openvino.Core().compile_model(artifact / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = model([x])[0]
error = float(np.abs(found - expected).max() / expected.std())
print(f"{error:.1e}")
sys.exit(not error <= manifest["parity"]["tolerance"]["max_rel_error"])
