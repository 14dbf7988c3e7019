"""Puts measured figures into the documents: python -m benchmarks.docs DEMO_OUTPUT ARTIFACTS.

DEMO_OUTPUT is what `make demo` printed; it goes into README.md. ARTIFACTS is the folder that it made; the parity of
each artifact goes into docs/checks.md. Each stands between two marks.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    printed = Path(sys.argv[1]).read_text("utf-8").strip()
    replace(ROOT / "README.md", "demo", f"```\n{printed}\n```")
    replace(ROOT / "docs" / "checks.md", "parity", _parity(Path(sys.argv[2])))


def _parity(artifacts: Path) -> str:
    manifests = [json.loads(path.read_text("utf-8")) for path in artifacts.glob("*/manifest.json")]
    lines = ["| artifact | input | largest error | RMS error | same label |", "|---|---|---|---|---|"]
    for manifest in sorted(manifests, key=lambda manifest: manifest["parameters"]["count"]):
        for one in manifest["parity"]["inputs"]:
            shape = "x".join(map(str, one["shape"]))
            lines.append(
                f"| {manifest['name']} | {one['kind']} {shape} | {one['max_rel_error']:.1e} | "
                f"{one['rms_rel_error']:.1e} | {100 * one['label_agreement']:.4f} % |"
            )
    return "\n".join(lines)


def replace(path: Path, mark: str, content: str) -> None:
    """Put a text between a document's two marks of a name."""
    text = path.read_text("utf-8")
    pattern = rf"(<!-- {mark}:[^>]*-->\n).*?(<!-- /{mark} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"{path} has no mark {mark}"
    path.write_text(replaced, "utf-8")


if __name__ == "__main__":
    main()
