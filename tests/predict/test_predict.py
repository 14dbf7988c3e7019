from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import pytest
import SimpleITK

from segonnx.errors import InputError
from segonnx.predict import config, files, pipeline
from segonnx.predict.predictor import Artifact
from segonnx.predict.resampling import AnyArray
from tests import handmade, nnunet_folders
from tests.conftest import ROOT, SMALL, message, run
from tests.predict.conftest import SHAPE, SPACING, save, volume

pytestmark = pytest.mark.usefixtures("steps_here")


def test_an_image_becomes_a_label_map_on_its_grid(
    hand: Path, loaded: Artifact, tmp_path: Path, without_torch: dict[str, str]
) -> None:
    image = save(volume(), tmp_path / "ct.nii.gz")
    out = tmp_path / "deep" / "labels.nii.gz"
    done = run("predict", hand, tmp_path / "ct.nii.gz", out, "--json", tmp_path / "r.json", env=without_torch)
    assert done.returncode == 0, done.stderr
    labels = SimpleITK.ReadImage(str(out))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, what)() == pytest.approx(getattr(image, what)())
    found = SimpleITK.GetArrayFromImage(labels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, loaded.predict(volume(), SPACING))
    assert len(np.unique(found)) > 1
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["shape"] == list(SHAPE)
    assert row["seconds"].keys() >= {"read", "prepare", "resample", "network", "resample back", "decide", "write"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["labels.nii.gz"]


def test_every_case_of_a_folder_is_predicted(hand: Path, loaded: Artifact, tmp_path: Path) -> None:
    for case in (0, 1):
        save(volume(case), tmp_path / "in" / f"case_{case}_0000.nii.gz")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "._case_0_0000.nii.gz").write_bytes(bytes(100))  # macOS leaves such files behind
    save(volume(), tmp_path / "in" / "without_a_channel.nii.gz")
    done = run("predict", hand, tmp_path / "in", tmp_path / "out", "--tta", "--step", 1)
    assert done.returncode == 0, done.stderr
    shown = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert shown == ["case_0.nii.gz", "case_1.nii.gz"]
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / "case_1.nii.gz")))
    np.testing.assert_array_equal(found, loaded.predict(volume(1), SPACING, mirror=True, step=1))


def test_what_cannot_be_predicted_is_refused_in_one_line(hand: Path, exports: Path, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    save(np.full(SHAPE, np.nan, np.float32), tmp_path / "nan.mha")
    (tmp_path / "text.nii.gz").write_text("no image")
    (tmp_path / "empty").mkdir()
    for number in (1, 3):
        save(volume(), tmp_path / "gap" / f"case_000{number}.nii.gz")
    (tmp_path / "there.nii.gz").write_text("mine")
    out = tmp_path / "out.nii.gz"
    for arguments, text in (
        ((exports / SMALL, tmp_path / "ct.nii.gz", out), "no label for each place"),
        ((hand, tmp_path / "ct.nii.gz", out, "--previous", hand), "no second stage"),
        ((tmp_path / "none", tmp_path / "ct.nii.gz", out), "is not a folder"),
        ((hand, tmp_path / "none.nii.gz", out), "neither a file nor a folder"),
        ((hand, tmp_path / "text.nii.gz", out), "can't be read as an image"),
        ((hand, tmp_path / "nan.mha", out), "aren't finite"),
        ((hand, tmp_path / "empty", tmp_path / "labels"), "holds no CASE_0000.nii.gz"),
        ((hand, tmp_path / "ct.nii.gz", tmp_path / "there.nii.gz"), "--overwrite"),
        ((hand, tmp_path / "ct.nii.gz", tmp_path / "out.txt"), "aren't written to such files"),
        ((hand, tmp_path / "ct.nii.gz", tmp_path / "out.jpg"), "aren't written to such files"),
        ((hand, tmp_path / "ct.nii.gz", tmp_path / "empty"), "is a folder"),
        ((hand, tmp_path / "gap", tmp_path / "labels"), "lacks case_0000"),
        ((hand, tmp_path / "gap", tmp_path / "there.nii.gz"), "is a file"),
    ):
        done = run("predict", *arguments)
        assert done.returncode == 2, done.stderr
        assert text in message(done) and "\n" not in message(done)
    assert not out.exists()
    assert (tmp_path / "there.nii.gz").read_text() == "mine"


def test_a_picture_of_colours_gives_its_channels(tmp_path: Path) -> None:
    from segonnx.predict import images

    colours = np.random.default_rng(0).integers(0, 255, (6, 7, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.png"))
    assert images.cases(tmp_path / "a.png", 3, ".png", natural=True) == {"a": [tmp_path / "a.png"]}
    image = images.read([tmp_path / "a.png"])
    np.testing.assert_array_equal(image.array, colours.transpose(2, 0, 1)[:, None])
    assert image.spacing == (999.0, 1.0, 1.0)
    images.write(np.ones((1, 6, 7), np.uint8), image, tmp_path / "labels.png")
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "labels.png"))).shape == (6, 7)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a network for pictures, in the catalogue's way."""
    out = tmp_path_factory.mktemp("pictures")
    done = run("export", "smp:unet:tu-resnet10t", "--shape", "64,96", "--out", out)
    assert done.returncode == 0, done.stderr
    (artifact,) = out.iterdir()
    return artifact


def test_pictures_are_predicted_as_their_encoder_was_trained(pictures: Path, tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "in" / "some name.png"))
    done = run("predict", pictures, tmp_path / "in", tmp_path / "out", "--tta")
    assert done.returncode == 0, done.stderr
    assert "--tta changes nothing" in done.stderr
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / "some name.png")))
    session = onnxruntime.InferenceSession(pictures / "model.onnx", providers=["CPUExecutionProvider"])
    x = (colours / np.float32(255) - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    (logits,) = session.run(None, {"input": x.transpose(2, 0, 1)[None].astype(np.float32)})
    assert np.mean(found == logits[0].argmax(axis=0)) > 0.999
    # A larger one takes several windows.
    labels = Artifact(pictures).predict(np.zeros((3, 1, 100, 100)), (999, 1, 1))
    assert labels.shape == (1, 100, 100)


def test_probabilities_are_those_of_the_labels(hand: Path, loaded: Artifact, tmp_path: Path) -> None:
    save(volume(), tmp_path / "ct.nii.gz")
    done = run("predict", hand, tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", "--probabilities")
    assert done.returncode == 0, done.stderr
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "labels.nii.gz")))
    found = np.load(tmp_path / "labels.npz")["probabilities"]
    assert found.shape == (3, *SHAPE) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert np.mean(found.argmax(axis=0) == labels) > 0.9999
    made = ["ct.nii.gz", "labels.nii.gz", "labels.npz", "labels.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    again = run("predict", hand, tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", "--probabilities")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    # What is cropped away is background.
    image = np.zeros(SHAPE)
    image[5:, 3:20, 10:] = volume()[5:, 3:20, 10:]
    array = np.full((3, *SHAPE), np.nan, np.float32)
    predicted = loaded.predict(image, SPACING, probabilities=array)
    assert array[0, :5].min() == 1 and array[1:, :5].max() == 0
    assert np.mean(array.argmax(axis=0) == predicted) > 0.9999


def test_a_second_stage_takes_the_first_ones_labels(hand: Path, tmp_path: Path) -> None:
    first, second = handmade.plans(), handmade.plans()
    chosen = second["configurations"].pop("3d_fullres") | {"previous_stage": "3d_lowres"}
    second["configurations"]["3d_cascade_fullres"] = chosen
    second["configurations"]["3d_lowres"] = first["configurations"]["3d_fullres"]
    folder = handmade.write(tmp_path / "results", second, handmade.dataset(), configuration="3d_cascade_fullres")
    done = run("export", "--nnunet", folder, "--out", tmp_path / "artifacts")
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "artifacts").iterdir()
    save(volume(), tmp_path / "ct.nii.gz")
    out = tmp_path / "labels.nii.gz"
    alone = run("predict", artifact, tmp_path / "ct.nii.gz", out)
    assert alone.returncode == 2 and "--previous" in alone.stderr
    done = run("predict", artifact, tmp_path / "ct.nii.gz", out, "--previous", hand)
    assert done.returncode == 0, done.stderr
    coarse, fine = Artifact(hand, threads=1), Artifact(artifact, threads=1)
    labels = coarse.predict(volume(), SPACING)
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out)))
    np.testing.assert_array_equal(found, fine.predict(volume(), SPACING, previous=labels))
    assert np.any(found != fine.predict(volume(), SPACING, previous=np.zeros_like(labels)))
    with pytest.raises(InputError, match="needs the label map"):
        fine.predict(volume(), SPACING)
    with pytest.raises(InputError, match="must be whole numbers"):
        fine.predict(volume(), SPACING, previous=labels[1:])


def test_axes_are_turned_for_a_network_that_was_trained_so(tmp_path: Path) -> None:
    from segonnx.predict import images

    image = save(volume(), tmp_path / "ct.nii.gz")
    read = images.read([tmp_path / "ct.nii.gz"], reorient=True)
    assert read.reader == "NibabelIOWithReorient"
    turned = nibabel.as_closest_canonical(nibabel.load(tmp_path / "ct.nii.gz"))
    np.testing.assert_array_equal(read.array[0], turned.get_fdata().transpose(2, 1, 0))
    assert read.spacing == pytest.approx(turned.header.get_zooms()[::-1])
    images.write(abs(read.array[0]) % 100, read, tmp_path / "again.nii.gz")
    again = SimpleITK.ReadImage(str(tmp_path / "again.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(again), abs(SimpleITK.GetArrayFromImage(image)) % 100)
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(again, what)() == pytest.approx(getattr(image, what)())


def test_the_package_gives_the_class() -> None:
    import segonnx

    assert segonnx.Artifact is Artifact
    with pytest.raises(AttributeError, match="Artefact"):
        segonnx.Artefact  # noqa: B018


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".jpg", ".bmp", ".png", ".tif", ".mha"])
def test_a_file_that_ends_early_is_refused(ending: str, tmp_path: Path) -> None:
    from segonnx.predict import images

    path = tmp_path / f"image{ending}"
    flat = ending in (".jpg", ".bmp", ".png", ".tif")
    save(np.random.default_rng(0).integers(0, 255, (60, 60) if flat else SHAPE).astype(np.uint8), path)
    assert images.read([path]).array.shape[1:] == ((1, 60, 60) if flat else SHAPE)
    data = path.read_bytes()
    for share in (0.5, 0.95):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError):
            images.read([path])


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (("a_0000.gipl", "a_0001.gipl"), 2, {"a": [0, 1]}),
        (("a_0000.gipl", "a_0002.gipl", "b_0000.gipl", "b_0002.gipl"), 2, {"a": [0, 2], "b": [0, 2]}),
        (("a_0001.gipl",), 1, {"a": [1]}),
        (("a_0001.gipl", "b_0000.gipl"), 1, "the case a lacks a_0000"),
        (("a_0000.gipl", "a_0001.gipl", "b_0000.gipl", "b_0002.gipl"), 2, "the case b lacks b_0001"),
        (("a_0000.gipl", "a_0001.gipl"), 1, "the case a has 2 channels"),
        (("a_0000.gipl",), 2, "the case a lacks a_0001"),
        (("a_0000.gipl", "._a_0001.gipl", ".b_0000.gipl", "a.gipl", "c_000.gipl", "notes.txt"), 1, {"a": [0]}),
        (("._a_0000.gipl",), 1, "holds no CASE_0000.gipl"),
    ],
)
def test_cases_are_found_by_nnunets_names(
    names: tuple[str, ...], channels: int, expected: dict[str, list[int]] | str, tmp_path: Path
) -> None:
    from segonnx.predict import images

    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder_0000.gipl").mkdir()
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            images.cases(tmp_path, channels, ".gipl")
        return
    found = images.cases(tmp_path, channels, ".gipl")
    assert {case: [int(file.stem[-4:]) for file in paths] for case, paths in found.items()} == expected


@pytest.mark.parametrize(
    ("reader", "ending", "made"),
    [
        ("SimpleITKIO", ".gipl", ["case.gipl"]),
        ("SimpleITKIO", ".mhd", ["case.mhd", "case.zraw"]),
        ("SimpleITKIO", ".gipl.gz", ["case.gipl.gz"]),
        ("Tiff3DIO", ".tif", ["case.json", "case.tif"]),
    ],
)
def test_label_maps_are_of_the_images_kind(
    reader: str, ending: str, made: list[str], hand: Path, loaded: Artifact, tmp_path: Path
) -> None:
    artifact = Artifact(hand, threads=1)
    artifact.config = replace(loaded.config, reader=reader, file_ending=ending)
    save(volume(), tmp_path / "in" / f"case_0000{ending}")
    (tmp_path / "in" / "case.json").write_text(json.dumps({"spacing": SPACING}))
    source, out = tmp_path / "in", tmp_path / "out"
    (done,) = files.predict(artifact, source, out, files.FileOptions())
    assert sorted(path.name for path in out.iterdir()) == made
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(done.path)))
    np.testing.assert_array_equal(found, loaded.predict(volume(), SPACING))
    for name in made:
        for other in made:
            (out / other).unlink(missing_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(InputError, match="--overwrite"):
            list(files.predict(artifact, source, out, files.FileOptions()))
        assert (out / name).read_text() == "mine"
    list(files.predict(artifact, source, out, files.FileOptions(overwrite=True)))
    assert sorted(path.name for path in out.iterdir()) == made


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_what_is_not_finite_is_refused_or_taken_as_zero(
    ending: str, hand: Path, loaded: Artifact, tmp_path: Path
) -> None:
    zeros = volume().astype(np.float32)
    zeros[3, 4, 5:9] = 0
    holes = zeros.copy()
    holes[3, 4, 5:9] = np.nan, np.inf, -np.inf, np.nan
    image, out = tmp_path / f"ct{ending}", tmp_path / "labels.nii.gz"
    save(holes, image)
    done = run("predict", hand, image, out)
    assert done.returncode == 2 and "aren't finite" in message(done) and "\n" not in message(done)
    assert not out.exists()
    done = run("predict", hand, image, out, "--nan-as-zero")
    assert done.returncode == 0, done.stderr
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out)))
    np.testing.assert_array_equal(found, loaded.predict(zeros, SPACING))


def test_channels_of_other_grids_are_refused(tmp_path: Path) -> None:
    from segonnx.predict import images

    for index, shape in enumerate(((4, 5, 6), (4, 5, 7))):
        save(volume(shape=shape), tmp_path / f"case_{index:04}.nii.gz")
    (paths,) = images.cases(tmp_path, 2, ".nii.gz").values()
    with pytest.raises(InputError, match="differ in shape or spacing"):
        images.read(paths)
    with pytest.raises(InputError, match="lacks case_0002"):
        images.cases(tmp_path, 3, ".nii.gz")


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (np.zeros((2, *SHAPE)), SPACING, "a channel for each"),
        (np.zeros(SHAPE[:2]), SPACING, "the network takes"),
        (np.zeros((0, 5, 5)), SPACING, "is empty"),
        (np.zeros(SHAPE), (1, 0, 1), "three positive numbers"),
        (np.zeros(SHAPE), (1, 1), "three positive numbers"),
        (np.full(SHAPE, np.inf), SPACING, "finite"),
        (np.full(SHAPE, "a"), SPACING, "finite"),
        (np.full(SHAPE, 1e300), SPACING, "finite"),
        (np.zeros(SHAPE), (1e-9, 1, 1), "less than a voxel"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(
    image: AnyArray, spacing: tuple[float, ...], message: str, loaded: Artifact
) -> None:
    with pytest.raises(InputError, match=message):
        loaded.predict(image, spacing)


def test_many_threads_may_ask_at_the_same_time(hand: Path, loaded: Artifact) -> None:
    expected = [loaded.predict(volume(seed), SPACING, step=1) for seed in range(3)]
    shared = Artifact(hand, threads=1, concurrent=2)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: shared.predict(volume(seed % 3), SPACING, step=1), range(12)))
    for index, labels in enumerate(found):
        np.testing.assert_array_equal(labels, expected[index % 3])


def test_an_image_of_one_value_is_predicted(loaded: Artifact) -> None:
    assert loaded.predict(np.zeros(SHAPE), SPACING).shape == SHAPE
    assert loaded.predict(np.ones((1, 1, 1)), (3, 3, 3)).shape == (1, 1, 1)


def test_regions_are_written_over_one_another(loaded: Artifact) -> None:
    chosen = replace(
        loaded.config, regions=True, label_values=(2, 1), transpose_forward=(0, 1, 2), transpose_backward=(0, 1, 2),
        window=(4, 4, 4), spacing=(1.0, 1.0, 1.0),
        channels=(config.ChannelNormalization("NoNormalization", use_mask=False, statistics={}),),
    )  # fmt: skip
    image = np.zeros((1, 6, 6, 6), np.float32)
    image[:, :, :, 2:] = 1
    image[:, :, :, 4:] = 2

    def forward(x: AnyArray) -> AnyArray:
        return np.concatenate([x - 0.5, x - 1.5], axis=1)

    labels = pipeline.predict(image, (1, 1, 1), chosen, forward, pipeline.PredictOptions())
    assert labels[0, 0].tolist() == [0, 0, 2, 2, 1, 1]


MEMORY = """
import json, sys
import numpy as np
from segonnx.core.subprocesses import peak_rss_bytes
from segonnx.predict import config, memory, pipeline
from segonnx.predict.heads import Head
from segonnx.predict.workers import Workers
shape, spacing, window, classes, features, threads = json.loads(sys.argv[1])
statistics = dict(percentile_00_5=-1000, percentile_99_5=1000, mean=0, std=1)
linear = config.SplineOrders(True, 1, 0, None)
inference = config.InferenceConfig(
    channels=(config.ChannelNormalization("CTNormalization", False, statistics),),
    spacing=(1.5, 1.5, 1.5), transpose_forward=(0, 1, 2), transpose_backward=(0, 1, 2), crop=True,
    previous_labels=(), image_resampling=config.SplineOrders(True, 3, 0, None), label_resampling=linear,
    logit_resampling=linear, window=tuple(window), step=1.0, sigma=1 / 8, mirror_axes=(), regions=False,
    label_values=tuple(range(classes)), file_ending=".nii.gz", reader="SimpleITKIO")
rng = np.random.default_rng(0)
head = None if features is None else Head(rng.standard_normal((classes, features), dtype=np.float32))
image = np.ones((1, *shape), np.int16)
workers = Workers(threads)
from segonnx.predict import products
from scipy import ndimage, sparse
products.product(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
before = peak_rss_bytes()
given = np.ones((1, features or classes, *window), np.float32)
given[:, -1] = 2
given[..., ::2] = rng.standard_normal(given[..., ::2].shape, dtype=np.float32)  # corners that don't agree
def forward(x):
    return given
options = pipeline.PredictOptions(workers=workers)
labels = pipeline.predict(image, spacing, inference, forward, options, head=head)
assert labels.shape == tuple(shape)
peak = peak_rss_bytes() - before
resampled = [round(size * mm / 1.5) for size, mm in zip(shape, spacing)]
print(json.dumps([peak, memory.predicting(shape, resampled, inference, features or classes, threads)]))
"""


@pytest.mark.parametrize(
    ("shape", "spacing", "window", "classes", "features", "threads"),
    [
        ((128, 256, 256), (1.5, 1.5, 1.5), (16, 64, 64), 60, None, 1),
        pytest.param((96, 256, 256), (3.0, 1.5, 1.5), (32, 64, 64), 90, 24, 2, marks=pytest.mark.slow),
        pytest.param((160, 320, 320), (1.0, 0.8, 0.8), (64, 64, 64), 90, 24, 2, marks=pytest.mark.slow),
        pytest.param((800, 512, 512), (1.0, 0.8, 0.8), (128, 128, 128), 117, 32, 2, marks=pytest.mark.slow),
        pytest.param((800, 512, 512), (1.5, 0.8, 0.8), (128, 128, 128), 117, None, 2, marks=pytest.mark.slow),
    ],
)
def test_memory_is_bounded_by_the_window_and_not_by_the_volume(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    window: tuple[int, ...],
    classes: int,
    features: int | None,
    threads: int,
) -> None:
    """The peak is a little below what ``memory`` says, which is the formula of docs/predict.md.

    All logits of the largest image would take 98 GB. Where they are averaged as features, 4 GB are enough for it.
    """
    command = [sys.executable, "-c", MEMORY, json.dumps([shape, spacing, window, classes, features, threads])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    peak, bound = json.loads(done.stdout)
    print(f"{peak / 1e9:.3f} GB of at most {bound / 1e9:.3f} GB")
    assert bound / 2 < peak < bound < 4 * classes * np.prod(shape, dtype=int) / 2
    if features is not None:
        assert peak < 2.5 * 10**9  # which leaves as much for the image, the libraries and the network


def test_a_killed_run_leaves_no_half_label_map(hand: Path, tmp_path: Path) -> None:
    for case in range(4):
        save(volume(case), tmp_path / "in" / f"case{case}_0000.nii.gz")
    command = [sys.executable, "-m", "segonnx", "predict", hand, tmp_path / "in", tmp_path / "out"]
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(0.05)
        os.kill(running.pid, signal.SIGKILL)
    for path in (tmp_path / "out").glob("*.nii.gz"):
        assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).shape == SHAPE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "regions", "flat", "residual", "cascade"])
def test_label_maps_are_those_of_nnunet(kind: str, tmp_path: Path) -> None:
    """Trains a small network, exports it, and holds `predict` against nnU-Net's own predictor."""
    nnunet_folders.run("make", kind, tmp_path, root=tmp_path)
    artifacts: list[Path] = []
    for number, folder in enumerate(nnunet_folders.folders(kind, tmp_path)):
        fold = nnunet_folders.KINDS[kind].runs[number][1]
        done = run("export", "--nnunet", folder, "--fold", fold, "--out", tmp_path / f"artifacts{number}")
        assert done.returncode == 0, done.stderr
        artifacts += (tmp_path / f"artifacts{number}").iterdir()
    *previous, artifact = artifacts
    command = [
        sys.executable, "-m", "benchmarks.against_nnunet", "agree", kind, folder, artifact, fold, *previous,
    ]  # fmt: skip
    env = {**os.environ, "nnUNet_compile": "f", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    for found in json.loads(done.stdout.splitlines()[-1]).values():
        assert found["labels"] > 1
        assert found["dice"] > 0.999
        assert found["agreement"] > 0.9995
