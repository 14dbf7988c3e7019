"""``segonnx.export`` of networks that no rewrite was made for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torchvision.models import segmentation

import segonnx
from segonnx.artifacts.verify import verify

pytestmark = pytest.mark.usefixtures("steps_here")


class Windows(nn.Module):
    """Attention in shifted windows of 4x4x4, whose mask is made on the way, as MONAI's SwinUNETR makes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(1, 16, 3, padding=1)
        self.mixed = nn.Linear(16, 48)
        self.head = nn.Conv3d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        size = y.shape[2:]
        regions = torch.zeros(1, 1, *size)
        thirds = slice(0, -4), slice(-4, -2), slice(-2, None)
        for number, (slices, rows, columns) in enumerate(itertools.product(thirds, repeat=3)):
            regions[:, :, slices, rows, columns] = number
        inside = self._apart(regions)[..., 0]
        mask = (inside[:, None, :] - inside[:, :, None]).ne(0) * -100.0
        query, key, value = self.mixed(self._apart(torch.roll(y, (-2, -2, -2), (2, 3, 4)))).chunk(3, -1)
        given = torch.softmax(query @ key.transpose(1, 2) / 4 + mask, -1) @ value
        windows = given.reshape(1, *(length // 4 for length in size), 4, 4, 4, 16)
        volume = windows.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(1, 16, *size)
        answer: torch.Tensor = self.head(y + torch.roll(volume, (2, 2, 2), (2, 3, 4)))
        return answer

    def _apart(self, y: torch.Tensor) -> torch.Tensor:
        """The tokens of each window: (windows, 64, channels)."""
        _, channels, depth, height, width = y.shape
        windows = y.reshape(channels, depth // 4, 4, height // 4, 4, width // 4, 4)
        return windows.permute(1, 3, 5, 2, 4, 6, 0).reshape(-1, 64, channels)


def test_attention_whose_mask_is_made_on_the_way_is_exported(tmp_path: Path) -> None:
    """Each of its 27 regions is written over those before, so that the ways to the first one double each time.

    The mask of a smaller volume is computed before the graph is rewritten.
    """
    done = segonnx.export(Windows(), torch.zeros(1, 1, 32, 32, 32), tmp_path / "windows")
    assert done.manifest["parity"]["max_rel_error"] < 1e-4
    assert "ScatterND" in done.manifest["operators"]
    verify(done.folder)


class Out(nn.Module):
    """The logits alone of torchvision's networks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.network(x)["out"]
        return answer


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_networks_of_torchvision_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4)
    done = segonnx.export(Out(network), torch.zeros(1, 3, 256, 256), tmp_path / "theirs", output_kind="logits")
    verify(done.folder)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize(
    ("architecture", "encoder", "size"),
    [
        ("Unet", "tu-convnext_tiny", 256),
        ("Unet", "resnext50_32x4d", 256),
        ("Unet", "densenet121", 256),
        ("Unet", "vgg11_bn", 256),
        ("FPN", "se_resnet50", 256),
        ("UPerNet", "tu-swin_tiny_patch4_window7_224", 224),
        ("Unet", "mit_b1", 256),
        ("DeepLabV3", "tu-resnet18", 256),
        ("Unet", "tu-ghostnet_100", 256),
        ("FPN", "tu-mixnet_s", 256),
        ("Unet", "tu-res2net50_14w_8s", 256),
    ],
)
def test_networks_of_smp_that_nobody_tuned_for_are_exported(
    architecture: str, encoder: str, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = getattr(smp, architecture)(encoder, encoder_weights=None, classes=3)
    verify(segonnx.export(network, torch.zeros(1, 3, size, size), tmp_path / "theirs").folder)
