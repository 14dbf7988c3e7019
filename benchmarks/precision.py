"""What float32, weights in 16 bits, int8 and NNCF's int8 take, and what they do to labels: into docs/precision.md.

    python -m benchmarks.precision make ROOT [NETWORK...]   make the artifacts below ROOT
    python -m benchmarks.precision time ROOT [NETWORK...]   time those that are there; nothing else may run meanwhile
    python -m benchmarks.precision table ROOT               put what was measured into the page

What is there already is not made or timed again: remove it for that. Networks are those of ``NETWORKS``, all where none
is named. With NNCF_PYTHON in the environment, a Python that has nncf and openvino, NNCF quantizes the networks with
trained weights beside segonnx; it is no dependency of the package.

A network's float32 artifact, its 16 bits and its int8 are made by `segonnx export` and `segonnx quantize`. Times are
medians of passes in turns, on the recorded test input; each peak of memory is that of a process which loads the graph
and runs it once. Networks with trained weights are calibrated and judged on images; the others on noise, which tells
time and size alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.docs import put_block
from segonnx.artifacts import layout, manifest, testdata
from segonnx.core import file_runs, hardware, subprocesses
from segonnx.core.ort_session import SessionSettings, model_bytes, open_session
from segonnx.core.tolerances import labels_of
from segonnx.errors import InputError, SegonnxError
from segonnx.quantization import cases, verdict

ROOT = Path(__file__).resolve().parents[1]
BLOCK_VERSION = 2
"""Raised when what this program writes, or measures, changes."""
PASSES = 9
SLOW_S, FEWER = 3.0, 3
"""A network whose pass takes longer is timed in fewer passes."""
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
FLOAT32, FLOAT16, INT8, NNCF = PRECISIONS = ("float32", "float16", "int8", "nncf")
STORED: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
"""What ``segonnx export`` stores the weights in."""
TITLES = {FLOAT16: "float16 storage", NNCF: "int8 by NNCF"}
COPIES = 9
"""Copies of the one real image of the brain; segonnx holds one in four out, the image itself among them."""
NOISE = 4
BUDGET = 4
"""How many layers may stay float32 so that labels keep a Dice of 0.99."""
TRAINED = ("plain", "residual", "batchnorm")
"""Of ``tests.nnunet_folders.KINDS``."""


def made(folder: Path) -> Path | None:
    """The artifact in a folder, or the model of NNCF; None where there is none."""
    if (ir := folder / "model.xml").is_file():
        return ir
    return next((path.parent for path in sorted(folder.glob(f"*/{layout.MANIFEST}"))), None)


def segonnx(*words: object) -> None:
    """Run the command line.

    Raises:
        InputError: it fails.
    """
    print("segonnx", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "segonnx", *map(str, words)], check=False)
    if done.returncode:
        raise InputError(f"segonnx {words[0]} ended with exit code {done.returncode}")


def export(folder: Path, *what: object) -> None:
    """Make a network's artifacts in float32 and with weights in float16."""
    for dtype in STORED:
        if made(folder / dtype) is None:
            segonnx("export", *what, "--weights-dtype", dtype, "--out", folder / dtype)


def random(name: str, folder: Path) -> None:
    """A network of the catalogue with random weights, and noise."""
    export(folder, name)
    images = folder / "images"
    if not images.is_dir():
        artifact = made(folder / FLOAT32)
        assert artifact is not None
        shape = manifest.read(artifact)["inputs"][0]["shape"]
        rng = np.random.default_rng(0)
        _write(images, [rng.standard_normal(shape).astype(np.float32) for _ in range(NOISE)])


def trained(kind: str, folder: Path) -> None:
    """A folder that nnU-Net itself trained for the tests, and images of its kind that it wasn't trained on."""
    import SimpleITK

    from tests import nnunet_folders

    own = nnunet_folders.KINDS[kind]
    source = nnunet_folders.folders(kind, folder / "nnunet")[0]
    if not any(source.glob("fold_*/checkpoint_final.pth")):
        shutil.rmtree(folder / "nnunet", ignore_errors=True)
        nnunet_folders.run("make", kind, folder / "nnunet", root=folder / "nnunet")
    export(folder, "--nnunet", source, "--fold", own.runs[0][1])
    images = folder / "images"
    if images.is_dir():
        return
    images.with_suffix(".part").mkdir(exist_ok=True)
    for case in range(nnunet_folders.CASES, nnunet_folders.CASES + COPIES):
        for index, channel in enumerate(nnunet_folders.image(kind, case)[0]):
            picture = SimpleITK.GetImageFromArray(channel)
            picture.SetSpacing(own.spacing[::-1])
            SimpleITK.WriteImage(picture, str(images.with_suffix(".part") / f"case{case:02}_{index:04}.nii.gz"))
    images.with_suffix(".part").rename(images)


def brain(which: str, folder: Path) -> None:
    """One of deepbet's two networks (``examples/brain_extraction.py``), and its inputs of the real image and copies."""
    import torch

    import segonnx as package
    from segonnx.predict import images

    example = importlib.import_module("examples.brain_extraction")

    read = images.read([example.packaged("nilearn", example.TEMPLATE)], "NibabelIOWithReorient")
    volume = read.array[0].transpose(2, 1, 0)
    inputs = folder / "images"
    if not inputs.is_dir():
        network = example.eager(example.load(example.BOX[0])[0])
        found = []
        for number in range(COPIES):
            extraction = example.Extraction(_copy(volume, number))
            small = extraction.small
            found.append(small if which == "box" else extraction.inside(extraction.box(network(small))))
        _write(inputs, [one[None, None] for one in found])
    file, called = {"box": example.BOX, "mask": example.MASK}[which][:2]
    for dtype in STORED:
        if made(folder / dtype) is None:
            x = torch.from_numpy(np.load(inputs / "0.npy"))
            package.export(
                example.load(file)[0], x, folder / dtype / called, labels=("background", "brain"), result="labels",
                licence="MIT", weights_dtype=dtype,
            )  # fmt: skip


def _copy(volume: np.ndarray, number: int) -> np.ndarray:
    """The image turned, scaled and brightened; the copy of number 0 is the image itself."""
    import scipy.ndimage

    if not number:
        return volume
    rng = np.random.default_rng(number)
    turned = volume
    for axes in ((0, 1), (1, 2)):
        turned = scipy.ndimage.rotate(turned, rng.uniform(-12, 12), axes, reshape=False, order=1)
    turned = scipy.ndimage.zoom(turned, rng.uniform(0.9, 1.1), order=1)
    turned = np.maximum(turned, 0)
    return turned.max() * (turned / turned.max()) ** rng.uniform(0.85, 1.15)


def _write(folder: Path, inputs: Sequence[np.ndarray]) -> None:
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(inputs):
        np.save(part / f"{i}.npy", np.ascontiguousarray(x))
    part.rename(folder)


NETWORKS: dict[str, Callable[[Path], None]] = {
    "deepbet-box": functools.partial(brain, "box"),
    "deepbet-mask": functools.partial(brain, "mask"),
    **{f"nnunet-{kind}": functools.partial(trained, kind) for kind in TRAINED},
    **{name: functools.partial(random, name) for name in ("unet-resnet18", "stunet-s", "totalsegmentator", "stunet-b")},
}
"""What makes each network's artifacts in float32 and 16 bits, and its images."""


def make(folder: Path, name: str) -> None:
    """Make what isn't there of a network's artifacts."""
    folder.mkdir(parents=True, exist_ok=True)
    NETWORKS[name](folder)
    artifact = made(folder / FLOAT32)
    assert artifact is not None
    if made(folder / INT8) is None:
        asked = ("quantize", artifact, "--calibration", folder / "images", "--out", folder / INT8)
        try:
            if not _is_trained(artifact):
                raise InputError("random weights have no labels to keep")
            segonnx(*asked, "--budget", BUDGET)
        except InputError:  # what int8 does to labels is measured here, and no reason to have no row
            segonnx(*asked, "--min-dice", 0)
    python = os.environ.get("NNCF_PYTHON")
    if python and made(folder / NNCF) is None and _is_trained(artifact):
        nncf(folder, artifact, python)


def nncf(folder: Path, artifact: Path, python: str) -> None:
    """Let NNCF quantize the stock graph on the same windows, and judge its labels on the same held-out images."""
    content = manifest.read(artifact)
    calibration, held = cases.split(cases.find(artifact, content, folder / "images"), folder / "images")
    work = folder / f"{NNCF}.part"
    shutil.rmtree(work, ignore_errors=True)
    for part, those in (("calibration", calibration), ("held", held)):
        (work / part).mkdir(parents=True)
        windows = [window for case in those for window in cases.windows(artifact, content, case)]
        for i, window in enumerate(windows):
            np.save(work / part / f"{i}.npy", window)
    program = [python, ROOT / "benchmarks" / "precision_nncf.py", artifact / layout.MODEL, work]
    subprocess.run(list(map(str, program)), check=True)
    runs = {"expected": artifact / layout.MODEL, "found": work / "model.xml"}
    count = len(list((work / "held").glob("*.npy")))
    for place, path in runs.items():
        run = file_runs.opened("openvino", path, hardware.usable_cores())
        (work / place).mkdir()
        for i in range(count):
            x = np.load(work / "held" / f"{i}.npy")
            given = run({content["inputs"][0]["name"]: x})[0]
            rule = manifest.given_rule(content)
            np.save(work / place / f"{i}.npy", given if manifest.gives_labels(content) else labels_of(given, rule))
    windows_held = [cases.Case(str(i), (work / "held" / f"{i}.npy",)) for i in range(count)]
    judged = verdict.judge(work / "expected", work / "found", windows_held, cases.evaluated(content, prepared=True))
    (work / "verdict.json").write_text(json.dumps(judged.entry))
    for part in ("calibration", "held", "expected", "found"):
        shutil.rmtree(work / part)
    work.rename(folder / NNCF)


def _is_trained(artifact: Path) -> bool:
    return manifest.read(artifact)["weights"]["seed"] is None


def runtimes() -> list[str]:
    """The runtimes that are installed."""
    return [name for name in file_runs.NAMES if importlib.util.find_spec(file_runs.LIBRARIES[name].module)]


def graph(model: Path, runtime: str) -> Path:
    """The graph that a runtime is at its best with."""
    if model.is_file():
        return model
    return model / (manifest.cpu_model(manifest.read(model)) if runtime == "ort" else layout.MODEL)


def timed_run(runtime: str, path: Path, threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    """A graph as it is timed: ONNX Runtime keeps freed memory, and its threads stop waiting when a run ends."""
    if runtime != "ort":
        return file_runs.opened(runtime, path, threads)
    session = open_session(path, SessionSettings(threads=threads, spinning="while-running"))
    return functools.partial(session.run, None)


def peak(path: Path, x: np.ndarray, name: str, runtime: str, progress: subprocesses.Progress) -> None:
    """Load a graph and run it once."""
    del progress
    file_runs.opened(runtime, path, hardware.usable_cores())({name: x})


def in_turns(runs: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float], int]:
    """Median seconds of each, and how many passes they are of."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    longest = 0.0
    for run in runs.values():
        run()
        began = time.perf_counter()
        run()
        longest = max(longest, time.perf_counter() - began)
    passes = FEWER if longest > SLOW_S else PASSES
    for _ in range(passes):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}, passes


def kept(model: Path, *, known: bool) -> tuple[float | None, float | None]:
    """The part of labels that stays, and the least Dice; of random weights neither says anything of trained ones."""
    if not known:
        return None, None
    if model.is_file():
        judged = json.loads((model.parent / "verdict.json").read_text())
        return judged["label_agreement"], min(judged["dice"].values())
    content = manifest.read(model)
    if "quantization" in content:
        judged = content["quantization"]["verdict"]
        return judged["label_agreement"], min(judged["dice"].values())
    return content["weights"].get("storage", {}).get("effect", {}).get("label_agreement", 1.0), None


def stayed(model: Path) -> list[str]:
    """The layers that stayed float32 because the verdict asked for it."""
    entry = {} if model.is_file() else manifest.read(model).get("quantization", {})
    return [layer for layer in entry.get("float32", ()) if layer in entry.get("sensitivity", {})]


def measure(folder: Path) -> dict[str, Any]:
    """The rows of one network."""
    models = {name: model for name in PRECISIONS if (model := made(folder / name)) is not None}
    plain = models[FLOAT32]
    content, threads = manifest.read(plain), hardware.usable_cores()
    x = testdata.read(plain / layout.INPUT)
    name = content["inputs"][0]["name"]
    seconds: dict[str, dict[str, float]] = {}
    passes: dict[str, int] = {}
    for runtime in runtimes():
        mine = {key: model for key, model in models.items() if runtime == "openvino" or model.is_dir()}
        opened = {key: timed_run(runtime, graph(model, runtime), threads) for key, model in mine.items()}
        seconds[runtime], passes[runtime] = in_turns(
            {key: functools.partial(run, {name: x}) for key, run in opened.items()}
        )
        del opened
    rows = []
    for key, model in models.items():
        runtime = "openvino" if model.is_file() else "ort"
        memory = subprocesses.call(peak, graph(model, runtime), x, name, runtime).peak_rss_bytes
        same, dice = kept(model, known=_is_trained(plain))
        size = model_bytes(model / layout.MODEL) if model.is_dir() else _ir_bytes(model)
        rows.append(
            {
                "precision": TITLES.get(key, key), "bytes": size, "peak_rss_bytes": memory, "labels_equal": same,
                "least_dice": dice, "float32_layers": stayed(model),
                "seconds": {one: found.get(key) for one, found in seconds.items()},
            }
        )  # fmt: skip
    return {
        "network": folder.name, "trained": _is_trained(plain), "rows": rows, "passes": passes,
        "machine": f"{hardware.describe()['cpu']}, {threads} threads, flags {' '.join(hardware.cpu_flags())}",
    }  # fmt: skip


def _ir_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in (model, model.with_suffix(".bin")))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as the page shows it."""
    machines = dict.fromkeys(one["machine"] for one in found)
    warned = "" if VNNI & set(" ".join(machines).replace(",", "").split()) else "; **without VNNI int8 isn't faster**"
    passes = sorted({count for one in found for count in one["passes"].values()})
    lines = [
        f"{'; '.join(machines)}{warned}; medians of {' or '.join(map(str, passes))} passes in turns.",
        "",
        "| network | precision | MB | ms, ONNX Runtime | ms, OpenVINO | peak GB | labels equal | least Dice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in found:
        for row in network["rows"]:
            times = [row["seconds"].get(name) for name in file_runs.NAMES]
            same = "random" if not network["trained"] else f"{100 * row['labels_equal']:.3f} %"
            cells = [
                network["network"], row["precision"], f"{row['bytes'] / 1e6:,.1f}",
                *("" if seconds is None else f"{1e3 * seconds:,.{0 if seconds > 0.01 else 1}f}" for seconds in times),
                f"{row['peak_rss_bytes'] / 1e9:.2f}", same,
                "" if row["least_dice"] is None else f"{row['least_dice']:.4f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    notes = [
        f"{network['network']} with all layers in int8 keeps a Dice below 0.99: in float32 stay "
        f"{', '.join(row['float32_layers'])}."
        for network in found
        for row in network["rows"]
        if row["float32_layers"]
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def main(words: Sequence[str]) -> None:
    """Make, measure, or write the table."""
    if len(words) < 2 or words[0] not in ("make", "time", "table") or not set(words[2:]) <= set(NETWORKS):
        raise SystemExit(f"{__doc__}\nNETWORK is one of {', '.join(NETWORKS)}")
    what, root = words[0], Path(words[1])
    names = words[2:] or list(NETWORKS)
    results = root / "results"
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names if what != "table" else ():
        result = results / f"{name}.json"
        try:
            if what == "make":
                make(root / name, name)
            elif not result.exists() and made(root / name / FLOAT32) is not None:
                print(f"timing {name}", flush=True)
                text = json.dumps(measure(root / name), indent=1)
                result.with_suffix(".part").write_text(text)
                result.with_suffix(".part").rename(result)
        except (SegonnxError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
    found = [json.loads(path.read_text()) for name in NETWORKS if (path := results / f"{name}.json").exists()]
    if found and what != "make":
        print(table(found))
    if what == "table":
        put_block(ROOT / "docs" / "precision.md", "precision", table(found), "benchmarks.precision")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    from benchmarks import precision  # noqa: PLW0406 (other processes find its functions by this name)

    precision.main(sys.argv[1:])
