"""Times `segonnx predict` and nnU-Net's own predictor by turns, on the folders of ``tests.nnunet_folders``.

    python -m benchmarks.race_nnunet race KIND FOLDER ARTIFACT FOLD
                                                    print the seconds of both from file to file
    python -m benchmarks.race_nnunet table ROOT     train, export and race, into docs/predict.md; idle machine

Runs in processes of its own, like that.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import against_nnunet, docs
from benchmarks.against_nnunet import predictor
from segonnx.predict import files
from segonnx.predict.predictor import Artifact
from tests import nnunet_folders

ROUNDS = 5
BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
RACED = ("plain", "regions", "residual")


def race(kind: str, folder: Path, artifact: Path, fold: str) -> dict[str, Any]:
    """Seconds of both from the files of an image to the file of its label map, by turns, in one process.

    The image is three times as wide and high as the trained ones, on a grid that must be resampled.

    Returns:
        By ``mirrored`` and ``plain``: medians of the seconds, and of their quotients in each round; of both the part
        in windows and network, of ours each step.
    """
    import SimpleITK

    image, _ = nnunet_folders.image(kind, nnunet_folders.CASES)
    image = np.tile(image, (1, 1, 3, 3))
    spacing = [0.8 * size for size in nnunet_folders.KINDS[kind].spacing]
    result: dict[str, Any] = {"shape": image.shape}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        for index, channel in enumerate(image):
            picture = SimpleITK.GetImageFromArray(channel)
            picture.SetSpacing(spacing[::-1])
            SimpleITK.WriteImage(picture, str(work / "in" / f"case_{index:04}.nii.gz"))
        paths = sorted(map(str, (work / "in").iterdir()))
        ours = Artifact(artifact)
        for word, mirror in (("mirrored", True), ("plain", False)):
            result[word] = _raced(
                predictor(folder, [fold], mirror=mirror, wide=False), ours, work, paths, mirror=mirror
            )
    return result


def _raced(own: Any, ours: Artifact, work: Path, paths: list[str], *, mirror: bool) -> dict[str, Any]:
    rows: list[dict[str, float]] = []
    steps: list[dict[str, float]] = []
    network: list[float] = []
    inner = own.predict_logits_from_preprocessed_data

    def timed(data: Any) -> Any:
        began = time.perf_counter()
        result = inner(data)
        network.append(time.perf_counter() - began)
        return result

    own.predict_logits_from_preprocessed_data = timed
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            own.predict_from_files_sequential([paths], [str(work / "theirs")])
        middle = time.perf_counter()
        (done,) = files.predict(ours, work / "in", work / "ours", files.FileOptions(mirror, overwrite=True))
        rows.append({"theirs": middle - began, "ours": time.perf_counter() - middle})
        steps.append(done.seconds)
    rows, steps, network = rows[1:], steps[1:], network[1:]  # the first round warms up

    def median(values: list[float]) -> float:
        return float(statistics.median(values))

    return {
        "theirs": median([one["theirs"] for one in rows]),
        "theirs_network": median(network),
        "ours": median([one["ours"] for one in rows]),
        "ratio": median([one["theirs"] / one["ours"] for one in rows]),
        "ratios": sorted(one["theirs"] / one["ours"] for one in rows),
        "steps": {name: median([one[name] for one in steps]) for name in steps[0]},
    }


def _race_row(kind: str, shape: str, word: str, row: dict[str, Any]) -> str:
    steps = row["steps"]
    back = steps["resample back"] + steps["decide"]
    network = steps["network"] + steps["blend"]  # the windows, as of nnU-Net
    told = " | ".join(f"{seconds:.2f} s" for seconds in (steps["read"], steps["prepare"], steps["resample"], back))
    return (
        f"| {nnunet_folders.name(kind)} | {shape} | {'yes' if word == 'mirrored' else 'no'} "
        f"| {row['theirs']:.2f} s ({row['theirs_network']:.2f} s) | {row['ours']:.2f} s ({network:.2f} s) "
        f"| {row['ratio']:.2f}x ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}) | {told} | {steps['write']:.2f} s |"
    )


def table(root: Path) -> str:
    """Train and export the kinds of ``RACED`` below ``root``, where that isn't done, and write times as markdown."""
    where = (
        f"Medians of {ROUNDS} rounds on {docs.machine()}. In brackets: "
        "windows and network alone; the least and the most of the quotients."
    )
    rows = [
        where,
        "",
        "| data set | image | mirrored | nnU-Net | segonnx | faster | read | prepare | resample | back | write |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in RACED:
        folder, fold, (artifact,) = against_nnunet.exported(kind, root)
        found = json.loads(against_nnunet.run(__spec__.name, "race", kind, folder, artifact, fold))
        shape = "x".join(map(str, found.pop("shape")))
        rows += [_race_row(kind, shape, word, row) for word, row in found.items()]
    return "\n".join([*rows, ""])


def main(command: str, *rest: str) -> None:
    """Run one of the commands."""
    if command == "table":
        docs.put_block(against_nnunet.PAGE, "race", table(Path(rest[0])), "benchmarks.race_nnunet")
        return
    kind, folder, artifact, fold = rest
    print(json.dumps(race(kind, Path(folder), Path(artifact), fold)))


if __name__ == "__main__":
    main(*sys.argv[1:])
