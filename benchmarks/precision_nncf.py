"""Let NNCF quantize a model after training, for ``benchmarks.precision``. Runs in an environment that has NNCF.

python benchmarks/precision_nncf.py MODEL.onnx FOLDER    FOLDER/calibration holds .npy inputs; writes FOLDER/model.xml
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main(model: Path, folder: Path) -> None:
    """Quantize with NNCF's defaults, the ranges of all inputs."""
    inputs = [np.load(path) for path in sorted((folder / "calibration").glob("*.npy"))]
    quantized = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(inputs), subset_size=len(inputs))
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
