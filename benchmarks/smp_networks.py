"""Exports every architecture of smp on encoders of five families, and says in docs/smp.md which of the 60 pass.

    python -m benchmarks.smp_networks [ARCHITECTURE:ENCODER]...

Takes half an hour on two cores. Of networks that are named, the entries alone are made anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.docs import put_block
from segonnx._version import __version__
from segonnx.errors import CheckFailed, InputError, SegonnxError, first_line
from segonnx.exporters import pipeline
from segonnx.exporters.pipeline import Settings
from segonnx.sources import catalog
from segonnx.sources.smp import ARCHITECTURES

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "smp.md"
ENCODERS = {
    "resnet18": "residual",
    "efficientnet-b0": "inverted bottlenecks",
    "tu-convnext_atto": "ConvNeXt, by timm",
    "mit_b0": "mix transformer",
    "tu-swin_tiny_patch4_window7_224": "shifted windows of one size, by timm",
}
PASSES = "yes"
SIZES = {"PAN": (128, 128)}
"""Of architectures that pool more than 64 x 64 pixels allow."""


def size(architecture: str, encoder: str) -> tuple[int, int] | None:
    """The input's size; None takes the encoder's own."""
    return None if encoder.endswith("_224") else SIZES.get(architecture, (64, 64))


def outcome(architecture: str, encoder: str, out: Path) -> str:
    """``PASSES``, with a remark where smp gives another size than the input's, or why the export stopped."""
    spec = catalog.find(f"smp:{architecture.lower()}:{encoder}")
    try:
        done = pipeline.export(spec, Settings(out, shape=size(architecture, encoder)))
    except InputError as error:
        return f"smp refuses: {_reason(error).removesuffix(f', got {encoder}')}"
    except CheckFailed as error:
        return f"fails: {_reason(error)}"
    given, wanted = done.manifest["outputs"][0]["shape"][2:], done.manifest["inputs"][0]["shape"][2:]
    return PASSES if given == wanted else f"{PASSES}, {'x'.join(map(str, given))} of {'x'.join(map(str, wanted))}"


def _reason(error: SegonnxError) -> str:
    """What smp said, without what segonnx put before it."""
    text = first_line(error)
    for mark in ("smp can't build ", "takes no input of "):
        if mark in text:
            return text.partition(mark)[2].partition(": ")[2]
    return text


def table(found: dict[tuple[str, str], str]) -> str:
    """The outcomes as a table, with the reasons below it."""
    reasons = list(dict.fromkeys(one for one in found.values() if not one.startswith(PASSES)))
    lines = [f"| | {' | '.join(f'`{encoder}`' for encoder in ENCODERS)} |", "|---" * (len(ENCODERS) + 1) + "|"]
    for architecture in ARCHITECTURES:
        cells = [found[architecture, encoder] for encoder in ENCODERS]
        shown = [one if one.startswith(PASSES) else f"no ({reasons.index(one) + 1})" for one in cells]
        lines.append(f"| {architecture} | {' | '.join(shown)} |")
    passed = sum(one.startswith(PASSES) for one in found.values())
    lines += ["", f"{passed} of {len(found)} pass. The others:", ""]
    return "\n".join(lines + [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)])


def written() -> dict[tuple[str, str], str]:
    """The outcomes that the page holds."""
    text = PAGE.read_text("utf-8")
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = {
        row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in text.splitlines() if " | " in row
    }
    found = {}
    for architecture in ARCHITECTURES:
        for encoder, cell in zip(ENCODERS, rows[architecture], strict=True):
            number = re.fullmatch(r"no \((\d+)\)", cell)
            found[architecture, encoder] = cell if number is None else reasons[number[1]]
    return found


def main(named: Sequence[str]) -> None:
    every = [(architecture, encoder) for architecture in ARCHITECTURES for encoder in ENCODERS]
    wanted = [one for one in every if not named or ":".join(one) in named]
    found = written() if named else {}
    with tempfile.TemporaryDirectory() as out:
        for one in wanted:
            started = time.perf_counter()
            found[one] = outcome(*one, Path(out))
            print(f"{' on '.join(one)}: {found[one]} ({time.perf_counter() - started:.0f} s)", flush=True)
    import segmentation_models_pytorch
    import timm

    versions = f"smp {segmentation_models_pytorch.__version__}, timm {timm.__version__}, segonnx {__version__}"
    put_block(PAGE, "networks", f"{versions}:\n\n{table(found)}\n", "benchmarks.smp_networks")


if __name__ == "__main__":
    main(sys.argv[1:])
