"""One way to predict an image, in a process of its own: rounds on request, for ``benchmarks.whole_images``.

    python benchmarks/whole_ways.py WAY SPEC    WAY is nnunet, openvino or segonnx; SPEC is a JSON file

Prints a line when it is ready. Then it predicts once for each line that it reads, and prints the seconds of each step.
It imports segonnx from PYTHONPATH, which may be another version than this program's.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, float]]


def main(way: str, spec: str) -> None:
    """Answer requests until the input ends."""
    described = json.loads(Path(spec).read_text())
    # What nnU-Net prints, also while it is loaded, is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    predict = _segonnx(described) if way == "segonnx" else _nnunet(described, openvino=way == "openvino")
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            steps = predict()
        print(json.dumps({"seconds": time.perf_counter() - began, "steps": steps}), file=answers, flush=True)


def _segonnx(spec: dict[str, Any]) -> Round:
    from segonnx.predict import files
    from segonnx.predict.predictor import Artifact

    *previous, artifact = (Artifact(path) for path in spec["artifacts"])

    def predict() -> dict[str, float]:
        options = files.FileOptions(mirror=spec["mirror"], overwrite=True)
        first = previous[0] if previous else None
        (done,) = files.predict(artifact, Path(spec["source"]), Path(spec["target"]), options, previous=first)
        return dict(done.seconds)

    return predict


def _nnunet(spec: dict[str, Any], *, openvino: bool) -> Round:
    import torch
    from nnunetv2.inference import predict_from_raw_data as module

    stages = []
    for folder, fold in zip(spec["folders"], spec["folds"], strict=True):
        made = module.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=spec["mirror"])
        made.initialize_from_trained_model_folder(folder, [fold])
        if openvino:
            made.network, made.list_of_parameters = _in_openvino(made), [{}]
        stages.append(made)
    steps: dict[str, float] = {}
    for made in stages:
        made.predict_logits_from_preprocessed_data = _timed(
            made.predict_logits_from_preprocessed_data, steps, "network"
        )
    module.export_prediction_from_logits = _timed(module.export_prediction_from_logits, steps, "back")
    paths = sorted(str(path) for path in Path(spec["source"]).iterdir())

    def predict() -> dict[str, float]:
        steps.clear()
        before, began = None, time.perf_counter()
        for number, made in enumerate(stages, 1):
            out = Path(spec["target"]) if number == len(stages) else Path(spec["target"]) / f"stage{number}"
            out.mkdir(exist_ok=True)
            made.predict_from_files_sequential([paths], [str(out / "case")], folder_with_segs_from_prev_stage=before)
            before = str(out)
        return {"prepare": time.perf_counter() - began - sum(steps.values()), **steps}

    return predict


def _timed(function: Any, steps: dict[str, float], name: str) -> Any:
    def timed(*given: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*given, **more)
        finally:
            steps[name] = steps.get(name, 0.0) + time.perf_counter() - began

    return timed


def _in_openvino(predictor: Any) -> Any:
    """nnU-Net's network, compiled by OpenVINO for one window at a time, in float32."""
    import openvino
    import torch

    parameters = predictor.list_of_parameters[0]
    predictor.network.load_state_dict(parameters)
    first = next(one for name, one in parameters.items() if one.ndim > 2)
    shape = [1, first.shape[1], *predictor.configuration_manager.patch_size]
    converted = openvino.convert_model(predictor.network.eval(), example_input=torch.zeros(shape), input=[shape])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(converted, "CPU", hints)

    class InOpenVINO(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(compiled(x.numpy())[0])

        def load_state_dict(self, *_: object, **__: object) -> None:
            pass

    return InOpenVINO()


if __name__ == "__main__":
    main(*sys.argv[1:])
