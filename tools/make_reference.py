"""Counts every reference system's network and writes segonnx/sources/reference.json. Run it as `make reference`.

The counts of the commit in which a system was added are the reference that `segonnx list --check` and every export hold
the built network against; run this only when a system is added.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from segonnx.exporters.parameters import count
from segonnx.sources import catalog

PATH = Path(catalog.__file__).with_name("reference.json")


def main() -> None:
    counted = {spec.name: asdict(count(spec)) for spec in catalog._SYSTEMS}
    PATH.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
