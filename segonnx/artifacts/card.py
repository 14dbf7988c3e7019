"""README.md of an artifact: the model card."""

from __future__ import annotations

from collections.abc import Mapping

from segonnx.artifacts.manifest import Manifest, gives_labels
from segonnx.core import markdown
from segonnx.core.markdown import code, escape
from segonnx.errors import one_line


def render(content: Manifest) -> str:
    """The model card in Markdown, from the manifest that it goes with.

    Names and notes of the manifest may be a stranger's: they are shown as text, and are no markup, YAML or Python.
    """
    x, y = content["inputs"][0], content["outputs"][0]
    weights, parameters, parity = content["weights"], content["parameters"], content["parity"]
    tolerance = parity["tolerance"]
    published = (
        " and ".join(escape(f"{f['text']} ({f['source']})") for f in parameters["published_figures"]) or "nothing"
    )
    example = [size if isinstance(size, int) else parity["inputs"][0]["shape"][i] for i, size in enumerate(x["shape"])]
    notice = ""
    if weights["seed"] is not None:
        notice = (
            "\n> **The weights are random.** This file has the network's structure and cost, and predicts nothing.\n"
        )
    if weights.get("trusted"):
        notice += (
            "\n> **The checkpoint was trusted.** It was read with `--trust-checkpoint`: code in it ran, or could have, "
            "on the machine that made this file.\n"
        )
    if (why := content.get("network_only")) is not None:
        notice += (
            "\n> **The network alone.** `segonnx predict` can't prepare images for it; bring inference of your own. "
            f"{why}\n"
        )
    if edited := content.get("training", {}).get("edited"):
        notice += (
            "\n> **Edited plans.** These were changed after the training, and stand here as they were changed: "
            f"{', '.join(edited)}.\n"
        )
    rows = "\n".join(
        f"| {escape(p['kind'])} | {_shape(p['shape'])} | {p['max_rel_error']:.1e} | {p['rms_rel_error']:.1e} "
        f"| {100 * p['label_agreement']:.4f} % |"
        for p in parity["inputs"]
    )
    allowed = (
        f"| allowed | | {tolerance['max_rel_error']:.1e} | {tolerance['rms_rel_error']:.1e} "
        f"| {100 * tolerance['label_agreement']:.4f} % |"
    )
    holds, decide = _decision(content)
    names = ", ".join(f"{label['value']} {escape(label['name'])}" for label in content["labels"])
    labels = f"\n- **Labels:** {names}" if names else ""
    note = escape(content["preprocessing"]["note"])
    what = " of the logits, which the graph then decides by" if gives_labels(content) else ""
    unused = "".join(f"\n- {count:,} unused: {escape(why)}" for why, count in parameters["unused_reasons"].items())
    return f"""---
{_front_matter(weights["licence"])}
---

# {escape(content["name"])}

{markdown.line(content["source"])}, as ONNX (opset {content["opset"]}, standard operators only).
{notice}
- **Weights:** {escape(weights["source"])}
- **Licence of the weights:** {escape(weights["licence"])}
- **Input:** {code(x["name"])}, {escape(x["dtype"])}, {_shape(x["shape"])} as (N, C, spatial...); {note}
- **Output:** {code(y["name"])}, {escape(y["dtype"])}, {_shape(y["shape"])}: {holds}{labels}
- **Multiply-adds of a pass:** {content["macs"]:,}

## Run it

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
x = np.zeros({tuple(example)}, np.float32)
labels = session.run([{_python(y["name"])}], {{{_python(x["name"])}: x}})[0]{decide}
```

`segonnx verify .` checks every byte of this folder and replays `test_data_set_0`.

## How it was checked

Parameters: {parameters["count"]:,}; published: {published}. Each is accounted for in the file:

- {parameters["used"]:,} used as they are
- {parameters["folded"]:,} folded into others{unused}

Numbers{what}: {escape(parity["runtime"])} against {escape(parity["reference"])}.
Errors are relative to the standard deviation of the logits.

| input | shape | largest error | RMS error | same label |
|---|---|---|---|---|
{rows}
{allowed}
"""


def _decision(content: Manifest) -> tuple[str, str]:
    """What the output holds, and what of Python behind it makes labels."""
    y, activation = content["outputs"][0], content.get("activation")
    if gives_labels(content):
        return f"the class of each voxel, from 0 to {y['classes'] - 1}", ""
    behind = ""
    if activation is not None:
        behind = f"; the network was saved with {escape(activation)} behind it, which the file leaves out"
    if content.get("inference", {}).get("regions", False):
        return f"a logit per region{behind}", " > 0  # one label map per region"
    if y["shape"][1] == 1:
        return f"a logit, above 0 where the class is{behind}", "[:, 0] > 0"
    if activation == "sigmoid":
        return f"a logit per class, and classes may overlap{behind}", " > 0  # one label map per class"
    return f"a logit per class{behind}", ".argmax(axis=1)"


def render_ensemble(content: Manifest, members: Mapping[str, Manifest]) -> str:
    """The card of an ensemble in Markdown.

    Args:
        content: the ensemble's manifest.
        members: the members' manifests by their folders.
    """
    rows = "\n".join(
        f"| [{entry['folder']}]({entry['folder']}/README.md) | {members[entry['folder']]['source']} "
        f"| {'yes' if entry['averaged'] else 'no'} | {entry['previous'] or ''} |"
        for entry in content["members"]
    )
    first = members[content["members"][0]["folder"]]
    names = ", ".join(f"{label['value']} {label['name']}" for label in first["labels"])
    steps = content["inference"].get("postprocessing", [])
    kept = "".join(f"\n- the largest component of {step['keep_largest_component']} stays" for step in steps)
    return f"""---
{_front_matter(content["weights"]["licence"])}
---

# {content["name"]}

An ensemble: {content["source"]}. Each member is an artifact of its own.

| member | network | in the mean | takes the label map of |
|---|---|---|---|
{rows}

- **Labels:** {names}
- **Licence of the weights:** {content["weights"]["licence"]}

The label of a voxel is decided by the mean of the members' probabilities.{" Then:" if kept else ""}
{kept}

## Run it

    segonnx predict . IMAGE LABELS

`segonnx verify .` checks every byte of this folder and replays the test data of each member.
"""


def _shape(shape: list[int | str]) -> str:
    return escape(" x ".join(map(str, shape)))


def _front_matter(licence: str) -> str:
    """What programs read of a card, as YAML."""
    import yaml

    known = {"library_name": "onnx", "license": one_line(licence), "tags": ["image-segmentation", "onnx", "segonnx"]}
    text: str = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
    return text.rstrip("\n")


def _python(text: str) -> str:
    """Text as a literal of Python, in double quotes where that needs no more than the quotes."""
    literal = repr(text)
    plain = literal[1:-1] == text and '"' not in text and literal[0] == "'"
    return f'"{text}"' if plain else literal
