"""A trained network on a real image: the brain in a T1 image of the head, by deepbet, as ONNX artifacts.

    pip install 'segonnx[export,predict]'
    pip install --no-deps -c constraints.txt deepbet nilearn
    python examples/brain_extraction.py
    python examples/brain_extraction.py --image t1.nii.gz

deepbet finds the brain with two networks of one architecture: the first looks at the image at 128 x 128 x 128 and gives
a box around the brain; the second looks into the box at 256 x 256 x 256 and gives the mask. Here both are written as an
nn.Module, filled with deepbet's weights, held against deepbet's own TorchScript on the image, exported by
``segonnx.export`` and run by ONNX Runtime. The rest is NumPy and SciPy, so that a receiver needs no torch.

Only files of the two packages are read; neither is imported, so that their dependencies aren't needed:

- deepbet 1.0.2 (MIT licence; Fisch et al., Computers in Biology and Medicine, 2024): both networks, as TorchScript;
- nilearn (BSD-3-Clause licence): the ICBM 152 nonlinear T1 template of 2009, an average of 152 heads at 1 mm. nilearn
  names no licence of it. Its authors' notice: Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre,
  Montreal Neurological Institute, McGill University; it may be used, copied, changed and passed on for any purpose and
  without fee, with that notice.

nilearn's copy of the template has lost its skull already. It shows that the artifacts give the mask that PyTorch gives;
how good deepbet is at heads with a skull, it doesn't show. For that give an image of your own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import scipy.ndimage
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import segonnx
from segonnx.core import hardware
from segonnx.errors import SegonnxError
from segonnx.predict import images

BOX = ("data/models/bbox_model.pt", "deepbet-box", 128)
MASK = ("data/models/model.pt", "deepbet-mask", 256)
"""Of each network: its file in deepbet's wheel, its artifact's name, and the size of its input."""
TEMPLATE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
BRAIN = 0.2
"""nilearn's brain mask is where its template is above this part of its largest value."""
MARGIN = 0.1
"""The second network's box is larger than the first one's brain by this part of it at each side."""
FILLED = 0.02
"""A slice that has less brain than this part of it isn't in the box."""

Array = NDArray[Any]
Box = tuple[slice, ...]
Network = Callable[[Array], Array]
"""From a volume (x, y, z), normalised, to its labels: uint8, 1 where there is brain."""


class Missing(Exception):
    """A package whose files the example reads isn't installed."""


class Block(nn.Module):
    """Two convolutions and a way around them. The norms have no weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
            nn.InstanceNorm3d(outputs),
            nn.ReLU(),
            nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(outputs),
        )
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.InstanceNorm3d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.double_conv(x) + self.downsample(x))


class Down(nn.Module):
    """Two blocks of one level; the first halves the sizes where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block1 = Block(inputs, outputs, stride)
        self.block2 = Block(outputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block2(self.block1(x))
        return result


class Up(nn.Module):
    """A transposed convolution at a quarter of the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = inputs // 4
        self.conv1 = nn.Sequential(nn.Conv3d(inputs, inner, 1, bias=False), nn.InstanceNorm3d(inner), nn.ReLU())
        self.tp_conv = nn.Sequential(
            nn.ConvTranspose3d(inner, inner, 3, stride, 1, stride - 1, bias=False), nn.InstanceNorm3d(inner), nn.ReLU()
        )
        self.conv2 = nn.Sequential(nn.Conv3d(inner, outputs, 1, bias=False), nn.InstanceNorm3d(outputs), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv2(self.tp_conv(self.conv1(x)))
        return result


class LinkNet3d(nn.Module):
    """deepbet's network, with its names: (N, 1, x, y, z) to the logits (N, 2, x, y, z) of background and brain.

    deepbet's ends in a softmax. The label is the same without it: the larger of the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.init = nn.Sequential(
            nn.Conv3d(1, 16, 7, 2, 3, bias=False), nn.InstanceNorm3d(16), nn.ReLU(), nn.MaxPool3d(3, 2, 1)
        )
        self.down0 = Down(16, 16, 1)
        self.down1 = Down(16, 32, 2)
        self.down2 = Down(32, 64, 2)
        self.down3 = Down(64, 128, 2)
        self.up0 = Up(128, 64, 2)
        self.up1 = Up(64, 32, 2)
        self.up2 = Up(32, 16, 2)
        self.up3 = Up(16, 16, 1)
        self.tp_conv1 = nn.Sequential(nn.ConvTranspose3d(16, 8, 3, 2, 1, 1), nn.InstanceNorm3d(8), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv3d(8, 8, 3, 1, 1), nn.InstanceNorm3d(8), nn.ReLU())
        self.tp_conv2 = nn.ConvTranspose3d(8, 2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        init = self.init(x)
        down0 = self.down0(init)
        down1 = self.down1(down0)
        down2 = self.down2(down1)
        x = self.up0(self.down3(down2)) + down2
        x = self.up1(x) + down1
        x = self.up2(x) + down0
        x = self.up3(x) + init
        result: torch.Tensor = self.tp_conv2(self.conv(self.tp_conv1(x)))
        return result


def packaged(package: str, name: str) -> Path:
    """A file of an installed package, which isn't imported.

    Raises:
        Missing: the package isn't installed, or has no such file.
    """
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise Missing(f"{package}'s {name} isn't here: pip install --no-deps -c constraints.txt deepbet nilearn")
    return path


def load(name: str) -> tuple[LinkNet3d, torch.jit.ScriptModule]:
    """One of deepbet's networks: ours with its weights, and deepbet's own.

    Raises:
        RuntimeError: a name or a shape differs.
    """
    path = packaged("deepbet", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have TorchScript files replaced
        scripted = torch.jit.load(str(path), map_location="cpu").eval()
    module = LinkNet3d().eval()
    module.load_state_dict(scripted.state_dict(), strict=True)
    return module, scripted


def nearest(sizes: Sequence[int], wanted: Sequence[int]) -> tuple[Array, ...]:
    """The nearest voxel of each wanted one, along each axis: torch's ``nearest-exact``, rounded to float32 as there."""
    found = []
    for old, new in zip(sizes, wanted, strict=True):
        centers = (np.arange(new) + 0.5) * np.float64(np.float32(old) / np.float32(new))
        found.append(np.minimum(centers.astype(np.float32).astype(np.int64), old - 1))
    return tuple(found)


def resize(volume: Array, shape: Sequence[int]) -> Array:
    """The volume with another number of voxels."""
    return volume[np.ix_(*nearest(volume.shape, shape))]


def normalise(volume: Array, low: float, high: float) -> Array:
    """Intensities as deepbet's networks have learned them."""
    clipped = np.clip((volume - low) / (high - low), 0, 1)
    return (0.226 * (clipped - clipped.mean(dtype=np.float64)) / clipped.std(ddof=1, dtype=np.float64) + 0.449).astype(
        np.float32
    )


def largest(mask: Array) -> Array:
    """The largest part of a mask whose voxels touch, at corners too."""
    parts, count = scipy.ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return mask
    result: Array = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return result


def around(small: Array, shape: Sequence[int]) -> Box:
    """The box around the brain in a volume of ``shape``, from the small mask.

    Raises:
        ValueError: there is no brain.
    """
    box = []
    for axis, full in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        (filled,) = np.nonzero(small.mean(others) > FILLED)
        if not len(filled):
            raise ValueError("the first network sees no brain in this image")
        scale = full / small.shape[axis]
        center = round(scale * (filled[-1] + 1 + filled[0]) / 2)
        size = round((1 + 2 * MARGIN) * scale * (filled[-1] + 1 - filled[0]))
        box.append(slice(max(0, int(center - size / 2)), min(full, int(center + size / 2))))
    return tuple(box)


class Extraction:
    """What deepbet does with a volume (x, y, z), whose axes run to the right, to the front and up.

    Attributes:
        small: the first network's input.
        low: the intensity below which all is alike; 1 in 200 voxels are.
        high: the same above.

    Raises:
        ValueError: all of the image is alike.
    """

    def __init__(self, volume: Array) -> None:
        self.volume = np.nan_to_num(volume.astype(np.float32))
        small = resize(self.volume, 3 * (BOX[2],))
        self.low, self.high = np.quantile(small, (0.005, 0.995))
        if self.low >= self.high:
            raise ValueError("this image has no contrast")
        self.small = normalise(small, self.low, self.high)

    def box(self, labels: Array) -> Box:
        """Where the brain is, by the first network's labels."""
        return around(largest(labels), self.volume.shape)

    def inside(self, box: Box) -> Array:
        """The second network's input."""
        return normalise(resize(self.volume[box], 3 * (MASK[2],)), self.low, self.high)

    def mask(self, box: Box, labels: Array) -> Array:
        """The brain, as uint8, by the second network's labels: one part, without holes."""
        mask = np.zeros(self.volume.shape, np.uint8)
        mask[box] = scipy.ndimage.binary_fill_holes(largest(resize(labels, mask[box].shape)))
        return mask


def eager(module: nn.Module) -> Network:
    """PyTorch's labels."""

    def run(volume: Array) -> Array:
        with torch.inference_mode():
            return labels_of(module(torch.from_numpy(volume)[None, None]))

    return run


def labels_of(logits: torch.Tensor) -> Array:
    """The labels (x, y, z) of logits (1, 2, x, y, z): of two classes this is faster than torch's argmax."""
    background, brain = logits[0]
    labels: Array = (brain > background).to(torch.uint8).numpy()
    return labels


def receiver(artifact: Path) -> Network:
    """The artifact's labels, by ONNX Runtime alone."""
    graphs = [artifact / "model.cpu.onnx", artifact / "model.onnx"]  # the first one is for ONNX Runtime on a CPU
    graph = next(path for path in graphs if path.exists())
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(volume: Array) -> Array:
        (labels,) = session.run(["labels"], {"input": volume[None, None]})
        result: Array = labels[0]
        return result

    return run


class Prepared(NamedTuple):
    """One of deepbet's networks.

    Attributes:
        torch: the network in PyTorch.
        onnx: its artifact in ONNX Runtime.
        expected: the labels that PyTorch gives for the volume that it was prepared with.
    """

    torch: Network
    onnx: Network
    expected: Array


def prepare(which: tuple[str, str, int], volume: Array, artifacts: Path) -> Prepared:
    """Load one of deepbet's networks, hold it against deepbet's own, and export it.

    Args:
        which: ``BOX`` or ``MASK``.
        volume: its input.
        artifacts: the folder in which the artifact is made.
    """
    file, name, size = which
    module, scripted = load(file)
    x = torch.from_numpy(volume)[None, None]
    with torch.inference_mode():
        logits = module(x)
        difference = (logits.softmax(1) - scripted(x)).abs().max().item()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    print(f"{name}: {parameters:,} parameters, every name and shape as in deepbet's {Path(file).name}")
    print(f"  PyTorch against deepbet's TorchScript on this image: probabilities differ by {difference:.1e} at most")
    exported = segonnx.export(
        module,
        x,
        artifacts / name,
        labels=("background", "brain"),
        result="labels",
        licence="MIT",
        overwrite=True,
    )
    print(f"  exported to {exported.folder}, {size} x {size} x {size}, {exported.seconds:.0f} s")
    return Prepared(eager(module), receiver(exported.folder), labels_of(logits))


def agreement(ours: Array, theirs: Array) -> str:
    """How many voxels have the same label."""
    same = int(np.count_nonzero(ours == theirs))
    return f"{100 * same / ours.size:.4f} % of {ours.size:,} voxels the same, {ours.size - same} differ"


def dice(ours: Array, theirs: Array) -> float:
    """Twice what two masks share, of what they have."""
    return float(2 * np.count_nonzero(ours & theirs) / (np.count_nonzero(ours) + np.count_nonzero(theirs)))


def medians(networks: Sequence[Network], volume: Array, rounds: int) -> list[float]:
    """Seconds a pass of each takes, in turns; both have run before."""
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(rounds):
        for network, taken in zip(networks, seconds, strict=True):
            start = time.perf_counter()
            network(volume)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def draw(volume: Array, mask: Array, spacing: Sequence[float], path: Path) -> None:
    """Three planes through the middle of the brain, side by side: the mask in colour over the image.

    Args:
        volume: (x, y, z), its axes to the right, to the front and up.
        mask: the same shape.
        spacing: (x, y, z) in mm.
        path: of the picture.
    """
    bright = np.clip(volume / max(float(np.quantile(volume, 0.999)), 1e-6), 0, 1)
    middle = [round(where) for where in scipy.ndimage.center_of_mass(mask)]
    tiles = []
    for axis in (0, 1, 2):
        gray = bright.take(middle[axis], axis)
        inside = mask.take(middle[axis], axis).astype(bool)
        edge = inside & ~scipy.ndimage.binary_erosion(inside)
        colours = np.stack([gray] * 3, -1)
        colours[inside] = 0.75 * colours[inside] + 0.25 * np.array([0.9, 0.35, 0.1])
        colours[edge] = (1.0, 0.55, 0.1)
        tile = Image.fromarray((255 * colours.swapaxes(0, 1)[::-1]).astype(np.uint8))
        sizes = [2 * count * size for count, size in zip(inside.shape, np.delete(spacing, axis), strict=True)]
        tiles.append(tile.resize((round(sizes[0]), round(sizes[1])), Image.Resampling.NEAREST))
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles), max(tile.height for tile in tiles)))
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, (sheet.height - tile.height) // 2))
        left += tile.width
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def extract(image: Path, artifacts: Path, results: Path, rounds: int) -> None:
    """Make both artifacts, run them on the image, and write the mask and the picture."""
    read = images.read([image], "NibabelIOWithReorient")
    volume = read.array[0].transpose(2, 1, 0)
    print(f"{image.name}: {' x '.join(map(str, volume.shape))} voxels")
    print("deepbet: MIT licence. nilearn: BSD-3-Clause; its template: (C) McGill University, free for any use")
    extraction = Extraction(volume)
    first = prepare(BOX, extraction.small, artifacts)
    coarse = first.onnx(extraction.small)
    box = extraction.box(coarse)
    inside = extraction.inside(box)
    second = prepare(MASK, inside, artifacts)
    fine = second.onnx(inside)
    mask = extraction.mask(box, fine)
    print("ONNX Runtime against PyTorch, labels:")
    expected_box = extraction.box(first.expected)
    expected_fine = second.expected if expected_box == box else second.torch(extraction.inside(expected_box))
    print(f"  {BOX[1]}: {agreement(coarse, first.expected)}")
    print(f"  {MASK[1]}: {agreement(fine, expected_fine)}")
    print(f"  the brain mask: {agreement(mask, extraction.mask(expected_box, expected_fine))}")
    if rounds:
        machine = hardware.describe()
        print(f"A pass, the median of {rounds}, in turns, {machine['usable_cores']} cores of {machine['cpu']}:")
        for name, one, given in ((BOX[1], first, extraction.small), (MASK[1], second, inside)):
            seconds = medians((one.torch, one.onnx), given, rounds)
            print(f"  {name}: PyTorch {seconds[0]:.2f} s, ONNX Runtime {seconds[1]:.2f} s")
    print(f"The brain: {np.count_nonzero(mask) * np.prod(read.spacing) / 1000:.0f} ml")
    if image.name == Path(TEMPLATE).name:
        print(f"Dice against nilearn's brain mask, a threshold: {dice(mask, volume > BRAIN * volume.max()):.4f}")
    images.write(mask.transpose(2, 1, 0), read, results / "brain_mask.nii.gz")
    draw(volume, mask, read.spacing[::-1], results / "brain_mask.png")
    print(f"Written: {results / 'brain_mask.nii.gz'}, {results / 'brain_mask.png'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; what can't be done is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="The brain in a T1 image, by deepbet's networks as ONNX artifacts.")
    parser.add_argument("--image", type=Path, help="a T1 image of a head; nilearn's template if not given")
    parser.add_argument(
        "--artifacts", type=Path, default=Path("artifacts/brain-extraction"), help="the folder of both artifacts"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the mask and the picture go")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each; 0 times none")
    options = parser.parse_args(arguments)
    try:
        for file, _, _ in (BOX, MASK):
            packaged("deepbet", file)
        extract(options.image or packaged("nilearn", TEMPLATE), options.artifacts, options.results, options.rounds)
    except (Missing, SegonnxError, ValueError) as error:
        print(f"brain_extraction: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
