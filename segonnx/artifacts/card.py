"""README.md of an artifact: the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segonnx.artifacts.manifest import Manifest, cpu_model, given_rule, gives_labels, image_shape
from segonnx.artifacts.tasks import TaskDocument
from segonnx.core import file_runs, markdown
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
            f"{escape(why)}\n"
        )
    if edited := content.get("training", {}).get("edited"):
        notice += (
            "\n> **Edited plans.** These were changed after the training, and stand here as they were changed: "
            f"{', '.join(map(escape, edited))}.\n"
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
    also = "".join(f"\nAlso checked in {escape(file_runs.line(one))}.\n" for one in parity.get("also", ()))
    holds, decide = _decided(content)
    first, *rest = _zeros(content)
    given = zip((one["name"] for one in content["inputs"]), ("x", *rest), strict=True)
    arrays = ", ".join(f"{_python(name)}: {array}" for name, array in given)
    inputs, outputs = (_others(f"Another {what}", content[f"{what}s"][1:]) for what in ("input", "output"))
    names = ", ".join(f"{label['value']} {escape(label['name'])}" for label in content["labels"])
    labels = f"\n- **Labels:** {names}" if names else ""
    note = escape(content["preprocessing"]["note"])
    what = " of what the network gives, which the graph then decides by" if gives_labels(content) else ""
    if "ProbabilitiesPass" in content["rewrites"]:
        what = " of the logits that the graph then makes probabilities of"
    unused = "".join(f"\n- {count:,} unused: {escape(why)}" for why, count in parameters["unused_reasons"].items())
    return f"""---
{_front_matter(weights["licence"])}
---

# {escape(content["name"])}

{markdown.line(content["source"])}, as ONNX (opset {content["opset"]}, standard operators only{_least(content)}).
{notice}
- **Weights:** {escape(weights["source"])}
- **Licence of the weights:** {escape(weights["licence"])}{_storage(weights)}{_quantization(content)}
- **Input:** {code(x["name"])}, {escape(x["dtype"])}, {_shape(x["shape"])} as {_axes(content)}; {note}{inputs}
- **Output:** {code(y["name"])}, {escape(y["dtype"])}, {_shape(y["shape"])}: {holds}{labels}{outputs}
- **Multiply-adds of a pass:** {content["macs"]:,}

## Run it

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{cpu_model(content)}", providers=["CPUExecutionProvider"])
x = {first}
labels = session.run([{_python(y["name"])}], {{{arrays}}})[0]{decide}
```
{_two_graphs(content)}
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
{_cpu_row(content)}{allowed}
{also}"""


def render_ensemble(content: Manifest, members: Mapping[str, Manifest]) -> str:
    """The card of an ensemble in Markdown. What is a stranger's is shown as text, as in ``render``.

    Args:
        content: the ensemble's manifest.
        members: the members' manifests by their folders.
    """
    rows = "\n".join(
        f"| [{escape(entry['folder'])}]({entry['folder']}/README.md) | {escape(members[entry['folder']]['source'])} "
        f"| {'yes' if entry['averaged'] else 'no'} | {escape(entry['previous'] or '')} |"
        for entry in content["members"]
    )
    first = members[content["members"][0]["folder"]]
    names = ", ".join(f"{label['value']} {escape(label['name'])}" for label in first["labels"])
    steps = content["inference"].get("postprocessing", [])
    kept = "".join(f"\n- the largest component of {step['keep_largest_component']} stays" for step in steps)
    return f"""---
{_front_matter(content["weights"]["licence"])}
---

# {escape(content["name"])}

An ensemble: {escape(content["source"])}. Each member is an artifact of its own.

| member | network | in the mean | takes the label map of |
|---|---|---|---|
{rows}

- **Labels:** {names}
- **Licence of the weights:** {escape(content["weights"]["licence"])}

The label of a voxel is decided by the mean of the members' probabilities.{" Then:" if kept else ""}
{kept}

## Run it

    segonnx predict . IMAGE LABELS

`segonnx verify .` checks every byte of this folder and replays the test data of each member.
"""


def render_task(content: Manifest, task: TaskDocument, members: Mapping[str, Manifest]) -> str:
    """The card of a task in Markdown. What is a stranger's is shown as text, as in ``render``.

    Args:
        content: the task's manifest.
        task: the content of its task.json.
        members: the members' manifests by their folders.
    """
    rows = "\n".join(
        f"| {escape(stage['name'])} | {_where(stage)} | {_around(stage)} "
        f"| [{escape(network['folder'])}]({network['folder']}/README.md) "
        f"| {escape(members[network['folder']]['source'])} |"
        for stage in task["stages"]
        for network in stage["networks"]
    )
    final = task["stages"][-1]
    names = ", ".join(f"{label['value']} {escape(label['name'])}" for label in final["labels"])
    subset = ""
    if task["subset"] is not None:
        subset = "\n    segonnx predict . IMAGE LABELS --roi-subset NAME,NAME"
    return f"""---
{_front_matter(content["weights"]["licence"])}
---

# {escape(content["name"])}

A task: {markdown.line(content["source"])}, for {task["modality"]} images. Each network is an artifact of its own;
`task.json` says how they make one label map.

| stage | voxels in mm | cut to | network | of |
|---|---|---|---|---|
{rows}

- **Labels:** {names}
- **Licence of the weights:** {escape(content["weights"]["licence"])}

## Run it

    segonnx predict . IMAGE LABELS
    segonnx predict . IMAGE FOLDER --one-file-per-class{subset}

`segonnx verify .` checks every byte of this folder and replays the test data of each network.
"""


def _where(stage: Mapping[str, Any]) -> str:
    return "the network's" if stage["spacing"] is None else " x ".join(f"{size:g}" for size in stage["spacing"])


def _around(stage: Mapping[str, Any]) -> str:
    crop = stage["crop"]
    return "" if crop is None else f"{escape(', '.join(crop['labels']))} of {escape(crop['stage'])}"


def _storage(weights: Manifest) -> str:
    """A line on weights in 16 bits, and what rounding them did."""
    if (storage := weights.get("storage")) is None:
        return ""
    effect = storage["effect"]
    kept = "; ".join(f"{count:,} of {escape(why)}" for why, count in storage["float32"].items())
    return (
        f"\n- **Stored in:** {storage['dtype']}, {storage['numbers']:,} numbers of {storage['tensors']:,} tensors, "
        f"which a runtime widens when it loads the file: arithmetic is float32. In float32 stay: {kept or 'none'}.\n"
        f"  Against the network's own weights, rounding makes logits differ by {effect['max_rel_error']:.1e} at most "
        f"and {effect['rms_rel_error']:.1e} RMS,\n"
        f"  and {100 * effect['label_agreement']:.4f} % of labels are the same"
    )


def _quantization(content: Manifest) -> str:
    """Lines on convolutions in int8, and the verdict on them."""
    if (entry := content.get("quantization")) is None:
        return ""
    verdict, seconds = entry["verdict"], entry["seconds"]
    label, least = min(verdict["dice"].items(), key=lambda one: one[1])
    calibration, agreement = entry["calibration"], 100 * verdict["label_agreement"]
    took, before = 1e3 * seconds["int8"], 1e3 * seconds["float32"]
    return (
        f"\n- **Computes in int8:** {entry['int8']:,} convolutions; {len(entry['float32']):,} and all else in "
        f"float32.\n  Calibrated on {calibration['windows']:,} windows of {calibration['images']:,} images. On "
        f"{verdict['images']:,} others, each label keeps a Dice of {least:.4f} or more against float32 (label "
        f"{escape(label)}),\n  {verdict['worst_dice']:.4f} at worst in one image, and {agreement:.4f} % of voxels keep "
        f"their label.\n  A pass took {took:,.1f} ms, and {before:,.1f} ms in float32, on "
        f"{escape(entry['machine']['cpu'])}"
    )


LEAST_RUNTIME = {17: "1.13", 18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18"}
"""The ONNX Runtime that first ran each opset, by its own table of compatibility with ONNX."""


def _least(content: Manifest) -> str:
    """The least runtime that takes the file, where that is known."""
    known = LEAST_RUNTIME.get(content["opset"]) if content["ir_version"] <= 10 else None
    return f"; ONNX Runtime {known} or later" if known else ""


def _two_graphs(content: Manifest) -> str:
    """Which graph is whose, where there are two."""
    if "cpu_graph" not in content:
        return ""
    return (
        "\n`model.onnx` is the graph as PyTorch writes it, for every runtime. `model.cpu.onnx` is the same rewritten\n"
        "for ONNX Runtime's CPU provider; it takes its weights out of the files beside it, so keep them together.\n"
    )


def _cpu_row(content: Manifest) -> str:
    """The row of the graph for CPUs, where there is one, in the table of the parity."""
    if "cpu_graph" not in content:
        return ""
    found = content["cpu_graph"]["parity"]
    return (
        f"| all, in `model.cpu.onnx` | | {found['max_rel_error']:.1e} | {found['rms_rel_error']:.1e} "
        f"| {100 * found['label_agreement']:.4f} % |\n"
    )


def _axes(content: Manifest) -> str:
    """The axes of the image, and the order of its colours where the graph takes pictures."""
    orders = {"NHWC": "(N, H, W, C)", "NCHW": "(N, C, H, W)"}
    image = content["inputs"][0]
    if "layout" not in image:
        return "(N, C, spatial...)"
    return orders[image["layout"]] + (" in the order R, G, B" if image_shape(content)[1] == 3 else "")


def _zeros(content: Manifest) -> list[str]:
    """For each input an array in Python, of the shape that the model was checked with first."""
    checked = content["parity"]["inputs"][0]["shape"]
    made = []
    for tensor in content["inputs"]:
        sizes = [
            size if isinstance(size, int) else checked[i] if i < len(checked) else 1
            for i, size in enumerate(tensor["shape"])
        ]
        made.append(f"np.zeros({tuple(sizes)}, np.{_numpy(tensor['dtype'])})")
    return made


def _numpy(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype if dtype.isidentifier() else "float32"


def _others(what: str, tensors: list[Manifest]) -> str:
    """Lines on the inputs besides the image, or the outputs besides the segmentation."""
    return "".join(
        f"\n- **{what}:** {code(one['name'])}, {escape(one['dtype'])}, {_shape(one['shape']) or 'a number'}"
        for one in tensors
    )


def _decided(content: Manifest) -> tuple[str, str]:
    """What the output holds, in words, and what makes labels of it, in Python behind the array."""
    y = content["outputs"][0]
    if gives_labels(content):
        return f"the class of each voxel, from 0 to {y['classes'] - 1}", ""
    one = {"logits": "logit", "probabilities": "probability"}[y.get("kind", "logits")]
    rule = given_rule(content)
    behind = ""
    if (activation := content.get("activation")) is not None and one == "logit":
        behind = f"; the network was saved with {escape(activation)} behind it, which the file leaves out"
    if rule.above is None:
        return f"a {one} per class; the largest wins{behind}", ".argmax(axis=1)"
    if y["shape"][1] == 1:
        return f"a {one} of the one class, which is there {rule.text}{behind}", f"[:, 0] > {rule.above:g}"
    each = "region" if content.get("inference", {}).get("regions") else "class"
    what = f"a {one} per {each}; each {each} is there {rule.text}, and they may overlap{behind}"
    return what, f" > {rule.above:g}  # one mask per {each}"


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
