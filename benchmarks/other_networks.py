"""Times networks that no rewrite was made for: their artifacts, the stock graph, and OpenVINO on that, by turns.

    python -m benchmarks.other_networks make ROOT [NAME...]     build and export them
    python -m benchmarks.other_networks time ROOT [NAME...]     time what was exported, and keep the results in ROOT
    python -m benchmarks.other_networks table ROOT              put what was measured into docs/performance.md

What is there isn't made or timed again. MONAI's networks need MONAI (`pip install --no-deps monai einops`). All weights
but deepbet's are drawn.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import docs
from benchmarks.speedups import BASELINE, OURS, ratio
from segonnx.bench import result

if TYPE_CHECKING:
    from torch import nn

BLOCK_VERSION = 1
"""Raised when what this program writes, or measures, changes."""
PAGE = docs.ROOT / "docs" / "performance.md"
PEER = "openvino-stock"
ROUNDS = 7
HEAD = (
    "| network | input | ms | the stock graph | OpenVINO, stock graph |",
    "|---|---|---|---|---|",
)
"""The titles of ``cells``."""
Built = tuple["nn.Module", tuple[int, ...]]
"""A network, and the shape of its input (N, C, spatial...)."""


def _deepbet() -> Built:
    example = importlib.import_module("examples.brain_extraction")
    return example.load(example.BOX[0])[0], (1, 1, 128, 128, 128)


def _nnunet(
    kind: str, shape: tuple[int, ...], kernels: list[list[int]], strides: list[list[int]], **more: Any
) -> Built:
    from dynamic_network_architectures.architectures import unet
    from torch import nn

    modules = {"plain": unet.PlainConvUNet, "residual": unet.ResidualEncoderUNet}
    stages, axes = len(kernels), len(shape) - 2
    most, conv, norm = (512, nn.Conv2d, nn.InstanceNorm2d) if axes == 2 else (320, nn.Conv3d, nn.InstanceNorm3d)
    network = modules[kind](
        input_channels=1, n_stages=stages, features_per_stage=[min(32 * 2**i, most) for i in range(stages)],
        conv_op=conv, kernel_sizes=kernels, strides=strides, n_conv_per_stage_decoder=more.pop("decoder"),
        num_classes=3, conv_bias=True, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False, **more,
    )  # fmt: skip
    network.decoder.seg_layers = network.decoder.seg_layers[-1:]  # the others are for training
    return network, shape


def _plain_2d() -> Built:
    """nnU-Net's plans for images, those of slices of 320x256 pixels."""
    more = {"n_conv_per_stage": [2] * 7, "decoder": [2] * 6}
    return _nnunet("plain", (1, 1, 320, 256), [[3, 3]] * 7, [[1, 1], *[[2, 2]] * 6], **more)


def _anisotropic() -> Built:
    """nnU-Net's plans for slices of 3 mm: the first stages don't look along the depth."""
    kernels = [[1, 3, 3], [1, 3, 3], *[[3, 3, 3]] * 4]
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], *[[2, 2, 2]] * 2, [1, 2, 2]]
    more = {"n_conv_per_stage": [2] * 6, "decoder": [2] * 5}
    return _nnunet("plain", (1, 1, 16, 160, 160), kernels, strides, **more)


def _resenc_l() -> Built:
    """nnU-Net's residual encoder preset L, on a smaller patch."""
    strides = [[1] * 3, *[[2] * 3] * 5]
    more = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "decoder": [1] * 5}
    return _nnunet("residual", (1, 1, 64, 96, 96), [[3] * 3] * 6, strides, **more)


def _mednext() -> Built:
    from benchmarks.mednext import MedNeXt

    return MedNeXt(), (1, 1, 64, 96, 96)


def _monai(name: str, shape: tuple[int, ...], **arguments: Any) -> Callable[[], Built]:
    def build() -> Built:
        nets = importlib.import_module("monai.networks.nets")
        return getattr(nets, name)(in_channels=shape[1], out_channels=3, **arguments), shape

    return build


def _smp(name: str, encoder: str) -> Callable[[], Built]:
    def build() -> Built:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder, encoder_weights=None, classes=3), (1, 3, 256, 256)

    return build


NETWORKS: dict[str, Callable[[], Built]] = {
    "deepbet": _deepbet,
    "nnunet-2d": _plain_2d,
    "nnunet-anisotropic": _anisotropic,
    "nnunet-resenc-l": _resenc_l,
    "mednext-s": _mednext,
    "segresnet": _monai("SegResNet", (1, 1, 64, 96, 96), init_filters=16),
    "unetr": _monai("UNETR", (1, 1, 96, 96, 96), img_size=(96, 96, 96)),
    "swin-unetr": _monai("SwinUNETR", (1, 1, 64, 64, 64), feature_size=24),
    "unet-resnet34": _smp("Unet", "resnet34"),
    "unet-efficientnet-b0": _smp("Unet", "efficientnet-b0"),
    "unet-mobilenet-v2": _smp("Unet", "mobilenet_v2"),
    "unetplusplus-resnet34": _smp("UnetPlusPlus", "resnet34"),
    "fpn-resnet34": _smp("FPN", "resnet34"),
    "linknet-resnet34": _smp("Linknet", "resnet34"),
    "pspnet-resnet34": _smp("PSPNet", "resnet34"),
    "deeplabv3plus-resnet50": _smp("DeepLabV3Plus", "resnet50"),
    "manet-resnet34": _smp("MAnet", "resnet34"),
    "pan-resnet34": _smp("PAN", "resnet34"),
    "segformer-mit-b0": _smp("Segformer", "mit_b0"),
    "upernet-resnet34": _smp("UPerNet", "resnet34"),
}
"""The networks, by the names of their artifacts."""


def make(root: Path, names: list[str]) -> None:
    """Export networks whose artifacts aren't there; the others are tried where one fails.

    Raises:
        SystemExit: one failed.
    """
    import torch

    import segonnx

    failed = []
    for name in names:
        if (root / name).exists():
            continue
        torch.manual_seed(0)
        module, shape = NETWORKS[name]()
        unused = {r"encoder\..*": "the decoder takes none of it"}
        try:
            segonnx.export(module.eval(), torch.randn(shape), root / name, name=name, unused=unused)
        except segonnx.SegonnxError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise SystemExit(f"not exported: {', '.join(failed)}")


def time(root: Path, names: list[str]) -> None:
    """Bench each artifact that has no result yet; the result in ROOT."""
    for name in names:
        kept, artifact = root / f"{name}.json", root / name
        if artifact.exists() and not (kept.exists() and kept.stat().st_mtime > artifact.stat().st_mtime):
            bench(artifact, kept)


def bench(artifact: Path, kept: Path, environment: Mapping[str, str] | None = None) -> None:
    """Bench an artifact, the stock graph and OpenVINO on that, by turns.

    Args:
        artifact: its folder.
        kept: the result's file. One whose logits differ has a row, too.
        environment: of the bench's process; None is this one's.

    Raises:
        SystemExit: there is no result.
    """
    backends = [part for name in (OURS, BASELINE, PEER) for part in ("--backend", name)]
    command = [
        sys.executable, "-m", "segonnx", "bench", "--artifact", artifact, *backends, "--processes", "1",
        "--rounds", ROUNDS, "--no-roofline", "-q", "--json", kept,
    ]  # fmt: skip
    before = kept.stat().st_mtime if kept.exists() else None
    subprocess.run([*map(str, command)], check=False, env=environment, cwd=docs.ROOT)
    if not kept.exists() or kept.stat().st_mtime == before:
        raise SystemExit(f"{artifact} wasn't benched")


def cells(name: str, found: result.Result) -> list[str]:
    """Name, input, milliseconds, and how many times as fast as the stock graph and as OpenVINO on it."""
    row = next(row for row in found.rows if row.backend == OURS)
    made = [name, "x".join(map(str, row.input_shape)), f"{1e3 * (row.median_s or 0):.1f}"]
    for other in (BASELINE, PEER):
        known = ratio(found, row, other)
        peer = next(each for each in found.rows if each.backend == other)
        interval = "" if known is None or known[1] is None else f" ({known[1][0]:.2f}-{known[1][1]:.2f})"
        wrong = "" if peer.status == result.OK else " †"
        made.append("-" if known is None else f"{known[0]:.2f}x{interval}{wrong}")
    return made


def table(root: Path) -> str:
    """What was measured, as markdown."""
    known = [(name, root / f"{name}.json") for name in NETWORKS]
    lines = [f"| {' | '.join(cells(name, result.read(path)))} |" for name, path in known if path.exists()]
    return "\n".join([f"{docs.machine()}:", "", *HEAD, *lines, ""])


def main(command: str, folder: str, *names: str) -> None:
    """Run one of the commands."""
    root, chosen = Path(folder).resolve(), list(names or NETWORKS)
    if command == "table":
        docs.put_block(PAGE, "other-networks", table(root), __spec__.name)
    else:
        root.mkdir(parents=True, exist_ok=True)
        {"make": make, "time": time}[command](root, chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
