"""The files beside the probabilities that nnU-Net's own commands read, such as ``nnUNetv2_ensemble``."""

from __future__ import annotations

import json
import pickle
from typing import Any

from segonnx.artifacts.manifest import Manifest
from segonnx.predict.images import Image
from segonnx.predict.readers import itk, nifti

DATASET, PLANS = "dataset.json", "plans.json"


def properties(image: Image) -> bytes:
    """The content of ``CASE.pkl``: the geometry that nnU-Net's class gives a label map which it writes.

    Args:
        image: The image as it was read.

    Returns:
        A pickle of a dictionary of numbers and arrays.
    """
    geometry = image.geometry
    content: dict[str, Any] = {"spacing": list(image.spacing)}
    if isinstance(geometry, itk.Geometry):
        content["sitk_stuff"] = {
            "spacing": geometry.spacing,
            "origin": geometry.origin,
            "direction": geometry.direction,
        }
        if geometry.orientation is not None:
            content["sitk_stuff"]["original_orientation"] = geometry.orientation
    elif isinstance(geometry, nifti.Geometry):
        content["nibabel_stuff"] = {"original_affine": geometry.own}
        if image.reader == "NibabelIOWithReorient":
            content["nibabel_stuff"]["reoriented_affine"] = geometry.turned
    return pickle.dumps(content, protocol=4)


def descriptions(described: Manifest) -> dict[str, bytes]:
    """What ``nnUNetv2_predict`` copies into the folder of its label maps, as far as nnU-Net's commands read it there.

    Args:
        described: The manifest of an artifact, or of a member of an ensemble.

    Returns:
        The content of dataset.json and plans.json by their names. Empty if nnU-Net didn't train the network.
    """
    given, training = described["preprocessing"], described.get("training", {})
    if "image_reader_writer" not in given or training.get("framework") != "nnU-Net":
        return {}
    inference = described["inference"]
    labels: dict[str, Any] = {}
    for entry in described["labels"]:
        several = len(entry["labels"]) > 1 or entry.get("listed")
        labels[entry["name"]] = entry["labels"] if several else entry["labels"][0]
    dataset: dict[str, Any] = {
        "channel_names": {str(index): channel["name"] for index, channel in enumerate(given["channels"])},
        "labels": {"background": 0, **labels} if inference["regions"] else labels,
        "file_ending": given["file_ending"],
    }
    if inference["regions"]:
        dataset["regions_class_order"] = [entry["value"] for entry in described["labels"]]
    if inference["ignore_label"] is not None:
        dataset["labels"]["ignore"] = inference["ignore_label"]
    plans = {
        "dataset_name": training["dataset"],
        "plans_name": training["plans"],
        "image_reader_writer": given["image_reader_writer"],
        "transpose_forward": given["transpose_forward"],
        "transpose_backward": given["transpose_backward"],
        "label_manager": "LabelManager",
        "configurations": {},
    }
    return {
        name: (json.dumps(content, indent=4) + "\n").encode() for name, content in ((DATASET, dataset), (PLANS, plans))
    }
