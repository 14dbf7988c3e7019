#!/bin/sh
# Replays an artifact's test data with polygraphy's command line: pip install polygraphy onnx onnxruntime
#
#   sh examples/replay_polygraphy.sh artifacts/stunet-s
#
# The exit code is 1 where a value is further off than the tolerances in the artifact's data.json.
set -eu
artifact=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# polygraphy reads inputs and expected outputs as JSON files of its own.
python - "$artifact" "$work" <<'CODE'
import json
import sys
from pathlib import Path

import onnx
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

artifact, work = map(Path, sys.argv[1:])
names = {key: json.loads((artifact / "manifest.json").read_text())[key][0]["name"] for key in ("inputs", "outputs")}
x, expected = (
    onnx.numpy_helper.to_array(onnx.load_tensor(artifact / "test_data_set_0" / name))
    for name in ("input_0.pb", "output_0.pb")
)
save_json([{names["inputs"]: x}], str(work / "inputs.json"))
results = RunResults()
results.add([{names["outputs"]: expected}], runner_name="recorded")
results.save(str(work / "outputs.json"))
allowed = json.loads((artifact / "data.json").read_text())
(work / "tolerances").write_text(f"--atol {allowed['atol']} --rtol {allowed['rtol']}")
CODE
# shellcheck disable=SC2046 (two options and their values)
polygraphy run "$artifact/model.onnx" --onnxrt --load-inputs "$work/inputs.json" --load-outputs "$work/outputs.json" \
  $(cat "$work/tolerances")
