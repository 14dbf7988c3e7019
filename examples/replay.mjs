// Replays an artifact's test data in ONNX Runtime for Node: npm install --ignore-scripts onnxruntime-node
//
//   node examples/replay.mjs artifacts/stunet-s
//
// Prints the largest error relative to the standard deviation of the logits. The exit code is 1 if the manifest allows
// less.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const ort = createRequire(join(process.cwd(), "package.json"))("onnxruntime-node");
const [artifact] = process.argv.slice(2);

// A .pb file is a protobuf message of ONNX, TensorProto: 1 dims, 2 data_type (1: float32), 9 raw_data.
function tensor(path) {
  const bytes = readFileSync(path);
  const dims = [];
  let place = 0;
  let data = null;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[place++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (place < bytes.length) {
    const key = varint();
    const [field, wire] = [key >> 3, key & 7];
    if (wire === 0) {
      const value = varint();
      if (field === 1) dims.push(value);
      if (field === 2 && value !== 1) throw new Error(`${path} isn't float32`);
    } else if (wire === 2) {
      const end = varint() + place;
      if (field === 1) while (place < end) dims.push(varint());
      if (field === 9) data = bytes.subarray(place, end);
      place = end;
    } else throw new Error(`${path} is no tensor`);
  }
  // A copy of its own, since a Float32Array starts at a multiple of four bytes.
  return new ort.Tensor("float32", new Float32Array(Uint8Array.from(data).buffer), dims);
}

const manifest = JSON.parse(readFileSync(join(artifact, "manifest.json"), "utf8"));
// Given the path, ONNX Runtime finds model.onnx.data beside the model by itself.
const session = await ort.InferenceSession.create(join(artifact, "model.onnx"));
const x = tensor(join(artifact, "test_data_set_0", "input_0.pb"));
const expected = tensor(join(artifact, "test_data_set_0", "output_0.pb")).data;
const found = (await session.run({ [manifest.inputs[0].name]: x }))[manifest.outputs[0].name].data;

let [largest, sum, squares] = [0, 0, 0];
for (let i = 0; i < expected.length; i++) {
  const difference = Math.abs(found[i] - expected[i]);
  largest = difference <= largest ? largest : difference; // NaN stays
  sum += expected[i];
  squares += expected[i] ** 2;
}
const std = Math.sqrt(squares / expected.length - (sum / expected.length) ** 2) || 1;
const error = largest / std;
console.log(error.toExponential(1));
process.exit(found.length === expected.length && error <= manifest.parity.tolerance.max_rel_error ? 0 : 1);
