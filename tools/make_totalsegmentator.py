"""Write sources/totalsegmentator.json: the tasks of TotalSegmentator, their networks, classes, codes and licences.

    python tools/make_totalsegmentator.py FOLDER             write it
    python tools/make_totalsegmentator.py FOLDER --changes   print what FOLDER's version changed, and write nothing

FOLDER holds the unpacked ``totalsegmentator`` package and its ``.dist-info``. Its tables alone are run, not the
package. What its code does, and no table of it says, stands here, with the file that it was read in.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

OPEN = "apache-2.0"
LICENSED = "other (TotalSegmentator's licence: free for non-commercial use, on request)"
UNKNOWN = ("brain_aneurysm",)
"""Tasks that aren't in TotalSegmentator's list of what is open for any usage."""

TARGET = Path(__file__).resolve().parents[1] / "segonnx" / "sources" / "totalsegmentator.json"

WIDE_STEPS, WIDE, USUAL = ("total", "total_v3", "total_mr"), 0.8, 0.5
"""The tasks whose windows lie further apart, and how far; nnunet.py."""
ROUGH_MARGIN = [20.0, 20.0, 20.0]
"""The margin in mm around what a task without a crop model of its own is cropped to; python_api.py. The task's own
margin is not taken there."""
ROUGH = {"CT": "total_fastest", "MR": "total_mr_fast", "robust": "total_fast", "body": "body_fast"}
"""The rough task by which others crop; python_api.py."""
BODY = ("body_trunc", "body_extremities")
"""The classes for which a task crops by the body; python_api.py."""
STEPS: dict[str, list[dict[str, Any]]] = {
    "body": [
        {"step": "keep_largest", "labels": ["body_trunc"]},
        {"step": "remove_small", "labels": ["body_extremities"], "mm3": 50000.0},
    ],
    "vertebrae_pp": [{"step": "number_vertebrae", "mm3": 100.0, "mm": 3.0}],
    "vertebrae_pp_refined": [{"step": "number_vertebrae", "mm3": 100.0, "mm": 3.0}],
}
"""What nnunet.py does with a task's label map at the network's spacing; without labels it is done with all."""
WITHIN = {"vertebrae_pp_refined": {"task": "vertebrae_body", "labels": ["vertebrae_body"], "mm": 2.0}}
"""The task in whose classes labels must lie after they were grown by so many mm; python_api.py, nnunet.py."""
DERIVED = {
    "body": [
        {"name": "body", "kind": "union", "of": ["body_trunc", "body_extremities"]},
        {"name": "skin", "kind": "skin", "of": ["body"]},
    ],
}
"""Masks beside those of the classes, where each class has a file; nnunet.py."""
UNSUPPORTED = {
    "test": "its network is of nnU-Net v1",
    "total_highres_test": "its weights aren't published",
}
MR = ("brain_aneurysm",)
"""Tasks on MR images whose name doesn't say so; registry.py."""
CODES = {
    "category": "SegmentedPropertyCategoryCodeSequence",
    "type": "SegmentedPropertyTypeCodeSequence",
    "modifier": "SegmentedPropertyTypeModifierCodeSequence",
    "region": "AnatomicRegionSequence",
    "region_modifier": "AnatomicRegionModifierSequence",
}
"""Our keys for the columns of its table of SNOMED codes."""
PARTS = (
    ("map_taskid_to_partname_ct", "class_map_5_parts"),
    ("map_taskid_to_partname_ct_v3", "class_map_5_parts_total_v3"),
    ("map_taskid_to_partname_mr", "class_map_parts_mr"),
    ("map_taskid_to_partname_headneck_muscles", "class_map_parts_headneck_muscles"),
)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def registry(folder: Path) -> dict[str, Any]:
    """The content of totalsegmentator.json.

    Args:
        folder: holds the unpacked package.
    """
    package = folder / "totalsegmentator"
    maps = _load(package / "map_to_binary.py")
    config = _load(package / "map_tasks_config.py")
    parts = {
        dataset: getattr(maps, classes)[part]
        for table, classes in PARTS
        for dataset, part in getattr(maps, table).items()
        if part in getattr(maps, classes)
    }
    (info,) = folder.glob("[Tt]otal[Ss]egmentator-*.dist-info")
    return {
        "totalsegmentator": info.name.split("-")[1].removesuffix(".dist"),
        "folders": _folders(maps, config, parts),
        "tasks": _tasks(maps, config, parts),
        "codes": _codes(package / "resources" / "totalsegmentator_snomed_mapping.csv"),
    }


def _licence(task: str, settings: dict[str, Any]) -> str:
    return LICENSED if settings.get("commercial") else "unknown" if task in UNKNOWN else OPEN


def _folders(maps: ModuleType, config: ModuleType, parts: dict[int, dict[int, str]]) -> dict[str, Any]:
    """The trained folders that no other results are named like, with the classes of their networks."""
    found: dict[str, Any] = {}
    for task, settings in config.TASK_CONFIGS.items():
        for mode in (settings, *settings.get("sub_modes", {}).values()):
            numbers = mode.get("task_id", [])
            for number in numbers if isinstance(numbers, list) else [numbers]:
                folder = config.TASK_ID_WEIGHTS_CONFIGS.get(number, {}).get("foldername", "")
                if not folder.startswith("Dataset") or folder in found:
                    continue
                if mode["trainer"] == "nnUNetTrainer" and "subj" not in folder:
                    continue  # a name that other people's results have, too
                classes = parts.get(number, maps.class_map[task])
                found[folder] = {
                    "name": task,
                    "trainer": mode["trainer"],
                    "licence": _licence(task, settings),
                    "classes": [classes[value] for value in sorted(classes)],
                }
                assert sorted(classes) == list(range(1, len(classes) + 1)), folder
    return {folder: found[folder] for folder in sorted(found)}


def _tasks(maps: ModuleType, config: ModuleType, parts: dict[int, dict[int, str]]) -> dict[str, Any]:
    """The tasks: each mode of its own has a name of its own."""
    found: dict[str, Any] = {}
    for task, settings in config.TASK_CONFIGS.items():
        modes = settings.get("sub_modes", {"default": settings})
        for mode in ("default", "fast", "fastest"):
            if mode in modes:
                name = task if mode == "default" else f"{task}_{mode}"
                found[name] = _task(task, config.DEFAULT_CONFIG | modes[mode], settings, maps, config, parts)
    return found


def _task(
    task: str,
    mode: dict[str, Any],
    settings: dict[str, Any],
    maps: ModuleType,
    config: ModuleType,
    parts: dict[int, dict[int, str]],
) -> dict[str, Any]:
    classes = maps.class_map[task]
    spacing, several = mode["resample"], isinstance(mode["task_id"], list)
    spacings = spacing if isinstance(spacing, list) else [spacing] * 3
    values = {name: value for value, name in classes.items()}
    networks = [
        {
            "folder": config.TASK_ID_WEIGHTS_CONFIGS[number]["foldername"],
            "trained": f"{mode['trainer']}__{mode['plans'] or 'nnUNetPlans'}__{mode['model']}",
            "folds": mode["folds"],
            "labels": {str(value): values[name] for value, name in parts[number].items()} if several else None,
        }
        for number in (mode["task_id"] if several else [mode["task_id"]])
        if task not in UNSUPPORTED
    ]
    modality = "MR" if task.endswith("_mr") or task in MR else "CT"
    found: dict[str, Any] = {
        "task": task,
        "modality": modality,
        "licence": _licence(task, settings),
        "unsupported": "it is a cascade" if mode["cascade"] else UNSUPPORTED.get(task),
        "spacing": None if spacing is None else [float(size) for size in spacings],
        "step": WIDE if task in WIDE_STEPS else USUAL,
        "networks": networks,
        "labels": {str(value): name for value, name in classes.items()},
        "crop": _crop(task, mode, modality),
        "drop": sorted(maps.class_map.get(f"{task}_auxiliary", {})),
        "steps": [{"labels": list(classes.values())} | step for step in STEPS.get(task, [])],
        "within": WITHIN.get(task),
        "outside": None,
        "derived": DERIVED.get(task, []),
        "subset": None,
    }
    if mode["remove_outside"]:
        found["outside"] = {"labels": mode["remove_outside"], "mm": float(mode["remove_outside_dilation"])}
    if task.startswith("total") and found["unsupported"] is None:
        found["subset"] = {"task": ROUGH["MR" if task.endswith("_mr") else "CT"], "margin": ROUGH_MARGIN}
    return found


def _crop(task: str, mode: dict[str, Any], modality: str) -> dict[str, Any] | None:
    """By which classes of which task the image is cropped, and with which margin in mm."""
    labels = mode["crop"]
    if not isinstance(labels, list):
        return None
    if mode["crop_model"] is not None:
        return {"task": mode["crop_model"], "labels": labels, "margin": [float(size) for size in mode["crop_addon"]]}
    rough = ROUGH["MR"] if task.endswith("_mr") else ROUGH["robust" if mode["robust_crop"] else "CT"]
    if any(name in BODY for name in labels):
        rough = ROUGH["body"]
    assert mode["modality"] is None and (task.endswith("_mr") or modality == "CT"), task
    return {"task": rough, "labels": labels, "margin": ROUGH_MARGIN}


def _codes(path: Path) -> dict[str, Any]:
    """By class: the codes by their kind, each as (scheme, value, meaning), and the colour that it is shown in."""
    found: dict[str, Any] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            codes = {
                key: [row[f"{column}.{part}"] for part in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")]
                for key, column in CODES.items()
                if row[f"{column}.CodeValue"]
            }
            found[row["Structure"]] = {**codes, "colour": [int(one) for one in row["DicomRGBColor"].split(",")]}
    return found


def text(content: dict[str, Any]) -> str:
    """The file: an entry a line."""
    lines = [f' "totalsegmentator": {json.dumps(content["totalsegmentator"])}']
    for key in ("folders", "tasks", "codes"):
        entries = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in content[key].items())
        lines.append(f' "{key}": {{\n{entries}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What another version of TotalSegmentator changed, a line each."""
    lines = []
    for key in ("folders", "tasks", "codes"):
        before, after = old[key], new[key]
        lines += [f"{key}: {name} is new" for name in after if name not in before]
        lines += [f"{key}: {name} is gone" for name in before if name not in after]
        for name in (name for name in before if name in after):
            lines += [
                f"{key}: {name}: {what} was {before[name].get(what)!r}, and is {after[name].get(what)!r}"
                for what in {**before[name], **after[name]}
                if before[name].get(what) != after[name].get(what)
            ]
    return lines


def main(folder: Path, *options: str) -> None:
    content = registry(folder)
    if options == ("--changes",):
        old = json.loads(TARGET.read_text("utf-8"))
        print(f"TotalSegmentator {old['totalsegmentator']} -> {content['totalsegmentator']}")
        print("\n".join(changes(old, content)) or "nothing changed")
        return
    TARGET.write_text(text(content), encoding="utf-8")
    print(f"{TARGET}: {len(content['folders'])} folders, {len(content['tasks'])} tasks, {len(content['codes'])} codes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
