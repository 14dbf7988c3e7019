"""Write sources/nnunet/totalsegmentator.json: tasks, classes and licences of TotalSegmentator's trained folders.

Usage: ``python tools/make_totalsegmentator.py FOLDER``, where FOLDER holds the unpacked ``totalsegmentator`` package.
Its tables alone are run, not the package. Run it where a new release adds folders.
"""

from __future__ import annotations

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

TARGET = Path(__file__).resolve().parents[1] / "segonnx" / "sources" / "nnunet" / "totalsegmentator.json"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(package: Path) -> None:
    maps = _load(package / "map_to_binary.py")
    config = _load(package / "map_tasks_config.py")
    parts = {
        dataset: classes[part]
        for table, classes in (
            (maps.map_taskid_to_partname_ct, maps.class_map_5_parts),
            (maps.map_taskid_to_partname_ct_v3, maps.class_map_5_parts_total_v3),
            (maps.map_taskid_to_partname_mr, maps.class_map_parts_mr),
            (maps.map_taskid_to_partname_headneck_muscles, maps.class_map_parts_headneck_muscles),
        )
        for dataset, part in table.items()
    }
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
                licence = LICENSED if settings.get("commercial") else "unknown" if task in UNKNOWN else OPEN
                found[folder] = {
                    "name": task,
                    "trainer": mode["trainer"],
                    "licence": licence,
                    "classes": [classes[value] for value in sorted(classes)],
                }
                assert sorted(classes) == list(range(1, len(classes) + 1)), folder
    lines = [f" {json.dumps(folder)}: {json.dumps(found[folder])}" for folder in sorted(found)]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{TARGET}: {len(found)} folders")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
