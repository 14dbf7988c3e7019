"""Ensembles: artifacts whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def misfit(entries: Sequence[Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why members don't go together; None if they do.

    Args:
        entries: the entry ``members`` of the ensemble's manifest.
        described: by a member's folder, its manifest, or the entries of it that say what inference needs.
    """
    if len(described) != len(entries):
        return "a member is named twice"
    if not any(entry["averaged"] for entry in entries):
        return "no member counts in the mean"
    first = entries[0]["folder"]
    earlier: set[str] = set()
    for entry in entries:
        name, own = entry["folder"], described[entry["folder"]]
        if "inference" not in own or "image_reader_writer" not in own["preprocessing"]:
            return f"the manifest of {name} doesn't say how images are predicted"
        stage = own["preprocessing"].get("previous_stage")
        if (stage is None) != (entry["previous"] is None):
            return f"{name} is {'no ' if stage is None else 'a '}second stage of a cascade"
        if entry["previous"] is not None and entry["previous"] not in earlier:
            return f"the first stage of {name} isn't a member that is run before it"
        for what, value in _shared(own).items():
            if value != _shared(described[first])[what]:
                return f"{name} and {first} differ in {what}"
        earlier.add(name)
    return None


def _shared(described: Mapping[str, Any]) -> dict[str, object]:
    """What the networks must have in common, so that they see the same image and give the same labels."""
    given = described["preprocessing"]
    return {
        "the reader of images": given["image_reader_writer"],
        "the ending of image files": given["file_ending"],
        "the image's channels": [channel["name"] for channel in given["channels"]],
        "their labels": [(label["value"], label["labels"]) for label in described["labels"]],
        "whether labels are regions": described["inference"]["regions"],
    }
