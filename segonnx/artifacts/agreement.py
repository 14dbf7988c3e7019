"""What the entries of a manifest must say alike: all that its readers rely on, and JSON Schema has no words for.

Each check takes a manifest that fits the schema, and gives the first contradiction, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segonnx.artifacts import layout
from segonnx.core.pixels import channels_first

MAX_ELEMENTS = 2**36
"""The most numbers of an input or output: of float32 they take 256 GiB."""

_OTHER_LEVEL = {False: "above 0.5", True: "above 0"}
"""The decision that an output can't have, by whether it gives probabilities."""

Check = Callable[[dict[str, Any]], str | None]


def contradiction(content: dict[str, Any]) -> str | None:
    """The first place where a manifest that fits its schema contradicts itself, and why; None where it doesn't."""
    return next((wrong for check in _CHECKS if (wrong := check(content)) is not None), None)


def compound_contradiction(content: dict[str, Any]) -> str | None:
    """The same of the manifest of an ensemble or a task. How its members go together is ``compounds``' matter."""
    folders = [member["folder"] for member in content["members"]]
    if len(set(folders)) != len(folders):
        return "members: one is named twice"
    return _files(content)


def _sizes(content: dict[str, Any]) -> str | None:
    tensors = {f"{what}/{i}": one for what in ("inputs", "outputs") for i, one in enumerate(content[what])}
    names = [one["name"] for one in tensors.values()]
    if len(set(names)) != len(names):
        return f"inputs and outputs: two have the same name: {', '.join(names)}"
    tensors |= {f"parity/inputs/{i}": one for i, one in enumerate(content["parity"]["inputs"])}
    for place, tensor in tensors.items():
        count = math.prod(size for size in tensor["shape"] if isinstance(size, int))
        if count > MAX_ELEMENTS:
            return f"{place}/shape: {tensor['shape']} are more than {MAX_ELEMENTS:,} numbers"
    x = content["inputs"][0]["shape"]
    if not isinstance(_channels(content), int):
        return f"inputs/0/shape: the number of channels is open: {x}"
    for i, one in enumerate(content["parity"]["inputs"]):
        if not _is_one_of(one["shape"], x):
            return f"parity/inputs/{i}/shape: {one['shape']} is no {x}"
    return None


def _channels(content: dict[str, Any]) -> int | str:
    """The number of the image's channels."""
    image = content["inputs"][0]
    shape: list[int | str] = channels_first(image["shape"], image.get("layout"))
    return shape[1]


def _pixels(content: dict[str, Any]) -> str | None:
    """Pictures of 8 bits are what a graph takes that prepares them, and no other."""
    image, given = content["inputs"][0], content["preprocessing"]
    if given.get("in_graph", False) == (image["dtype"] == "uint8"):
        return None
    does = "does it" if "in_graph" in given else "doesn't"
    return f"preprocessing/in_graph: the graph takes {image['dtype']}, the manifest says that it {does}"


def _is_one_of(shape: Sequence[int], described: Sequence[int | str]) -> bool:
    """Whether a shape is one that a description with open sizes allows."""
    return len(shape) == len(described) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, described, strict=True)
    )


def _output(content: dict[str, Any]) -> str | None:
    y = content["outputs"][0]
    labels = y.get("kind") == "labels"
    if labels == (y["dtype"] == "float32"):
        return f"outputs/0: it gives {y['dtype']}, the manifest says {'labels' if labels else 'logits'}"
    if not labels and y.get("decision") == _OTHER_LEVEL[y.get("kind") == "probabilities"]:
        return f"outputs/0/decision: {y['decision']}, of {y.get('kind', 'logits')}"
    if not labels and not (isinstance(y["shape"][1], int) and y["shape"][1] <= 65536):
        return f"outputs/0/shape: {y['shape']} has no number of classes up to 65,536"
    named, classes = len(content["labels"]), y["classes"] if labels else y["shape"][1]
    # A network of one class has one name, and labels of two values.
    if named not in ((0, classes, 1) if labels and classes == 2 else (0, classes)):
        return f"labels: {named} entries for {classes} output channels"
    return None


def _parity(content: dict[str, Any]) -> str | None:
    parity = content["parity"]
    allowed = parity["tolerance"]
    places = {"parity": parity}
    for key in ("inputs", "also"):
        places |= {f"parity/{key}/{i}": one for i, one in enumerate(parity.get(key, ()))}
    if "cpu_graph" in content:
        places["cpu_graph/parity"] = content["cpu_graph"]["parity"]
    for place, found in places.items():
        for key in ("max_rel_error", "rms_rel_error"):
            if found.get(key, 0) > allowed[key]:
                return f"{place}/{key}: {found[key]} is more than the tolerance {allowed[key]}"
        if found["label_agreement"] < allowed["label_agreement"]:
            return f"{place}/label_agreement: {found['label_agreement']} is less than {allowed['label_agreement']}"
    return None


def _preparation(content: dict[str, Any]) -> str | None:
    """From an image to the network's input."""
    given, taken = content["preprocessing"], _channels(content)
    for key in ("mean", "std"):
        # Version 1 had ImageNet's three for networks of one channel, too; nothing follows them there.
        if content["schema_version"] > 1 and key in given and len(given[key]) != taken:
            return f"preprocessing/{key}: {len(given[key])} numbers for {taken} channels"
    if "channels" not in given:
        return "inference: without preprocessing/channels it tells nothing" if "inference" in content else None
    forward, backward = given["transpose_forward"], given["transpose_backward"]
    if sorted(forward) != [0, 1, 2]:
        return f"preprocessing/transpose_forward: {forward} is no permutation"
    if [forward[axis] for axis in backward] != [0, 1, 2]:
        return f"preprocessing/transpose_backward: {backward} doesn't undo transpose_forward {forward}"
    earlier = (given.get("previous_stage") or {"labels": ()})["labels"]
    if len(set(earlier)) != len(earlier):
        return "preprocessing/previous_stage/labels: one is there twice"
    if len(given["channels"]) + len(earlier) != taken:
        return f"preprocessing/channels: {len(given['channels'])}, and {len(earlier)} labels, for {taken} channels"
    if "network_only" in content:  # which says what is wrong with it
        return None
    for i, channel in enumerate(given["channels"]):
        if channel["normalization"] == "CTNormalization" and (wrong := _intensities(channel["intensities"])):
            return f"preprocessing/channels/{i}/intensities: {wrong}"
    return None


def _intensities(known: Mapping[str, float]) -> str | None:
    """Of a CT: what it is cut at and divided by."""
    for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
        if key not in known:
            return f"{key!r} is a required property"
    if known["std"] < 0:
        return f"std: {known['std']} is less than the minimum of 0"
    if known["percentile_00_5"] > known["percentile_99_5"]:
        return "percentile_00_5 is above percentile_99_5"
    return None


def _decision(content: dict[str, Any]) -> str | None:
    """From logits to a label map."""
    if (inference := content.get("inference")) is None:
        return None
    axes = len(content["inputs"][0]["shape"]) - 2
    if len(inference["patch_size"]) != axes:
        return f"inference/patch_size: {len(inference['patch_size'])} sizes for {axes} axes"
    if math.prod(inference["patch_size"]) > MAX_ELEMENTS:
        return f"inference/patch_size: {inference['patch_size']} are more than {MAX_ELEMENTS:,} voxels"
    if max(inference["mirror_axes"], default=0) >= axes:
        return f"inference/mirror_axes: {inference['mirror_axes']} of {axes} axes"
    if inference["regions"] != (inference["nonlin"] == "sigmoid"):
        return f"inference/nonlin: {inference['nonlin']}, and regions is {inference['regions']}"
    decision = content["outputs"][0].get("decision")
    if (
        decision is not None
        and inference["regions"] != (decision != "argmax")
        and content["outputs"][0]["shape"][1] != 1
    ):
        return f"outputs/0/decision: {decision}, and regions is {inference['regions']}"
    labels = content["labels"]
    if not labels:
        return "labels: none, and inference needs a value for each output channel"
    if not inference["regions"] and len({label["value"] for label in labels}) != len(labels):
        return "labels: two have the same value"
    return None


def _files(content: dict[str, Any]) -> str | None:
    names = content["files"]
    if ("cpu_graph" in content) != (layout.CPU_MODEL in names):
        return f"cpu_graph: it is there, and {layout.CPU_MODEL} isn't, or the other way round"
    lower: dict[str, str] = {}
    for name in names:
        if name in (layout.MANIFEST, layout.SIGNATURE):
            return f"files: {name} can't be listed in the manifest"
        if (other := lower.setdefault(name.lower(), name)) != name:
            return f"files: {other!r} and {name!r} would be one file, on some systems at least"
    for name, written in lower.items():
        parts = name.split("/")
        if any("/".join(parts[:count]) in lower for count in range(1, len(parts))):
            return f"files: {written!r} lies in another file"
    if sum(entry["bytes"] for entry in names.values()) > 2**53:
        return "files: they take more bytes than any disk has"
    return None


_CHECKS: tuple[Check, ...] = (_sizes, _pixels, _output, _parity, _preparation, _decision, _files)
