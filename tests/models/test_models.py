from __future__ import annotations

import pytest
import torch

from segonnx import models
from segonnx.core import synthetic_inputs
from segonnx.errors import InputError
from segonnx.models import counting, random_weights
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec

# Layouts of the published STU-Net checkpoints.
STUNET_NAMES = {
    "conv_blocks_context.0.0.conv1.weight": (16, 1, 3, 3, 3),
    "conv_blocks_context.5.0.conv3.bias": (256,),
    "conv_blocks_context.3.0.norm2.weight": (128,),
    "upsample_layers.4.conv.weight": (16, 32, 1, 1, 1),
    "conv_blocks_localization.0.0.conv1.weight": (256, 512, 3, 3, 3),
    "seg_outputs.4.weight": (117, 16, 1, 1, 1),
}


def test_stunet_has_the_names_of_the_published_checkpoints() -> None:
    state = models.build_meta(catalog.find("stunet-s")).module.state_dict()
    for name, shape in STUNET_NAMES.items():
        assert state[name].shape == shape
    assert {name.split(".")[0] for name in state} == {name.split(".")[0] for name in STUNET_NAMES}
    deep = models.build_meta(catalog.find("stunet-l")).module.state_dict()
    assert "conv_blocks_context.2.1.conv1.weight" in deep
    assert "conv_blocks_context.2.1.conv3.weight" not in deep  # only a stage's first block projects


def test_stunet_inference_uses_the_last_head(tiny: ModelSpec) -> None:
    network = models.build(tiny)
    x = torch.zeros(1, 1, 32, 64, 32)
    with torch.inference_mode():
        heads = network.module.eval().forward_all_heads(x)  # type: ignore[operator]
        assert torch.equal(network.module(x), heads[-1])
    assert [tuple(head.shape[2:]) for head in heads] == [(2, 4, 2), (4, 8, 4), (8, 16, 8), (16, 32, 16), (32, 64, 32)]


def test_reparameterised_mobileone_computes_the_same() -> None:
    spec = catalog.find("encoder-mobileone-s0")
    network = models.build_empty(spec)
    random_weights.randomize(network.module, 0)
    x = torch.from_numpy(synthetic_inputs.make("noise", (2, 3, 64, 64), "RGB"))
    random_weights.initialise(network.module, x)
    before = counting.parameters(network.module)
    with torch.inference_mode():
        expected = network.module(x)
        after = network.finalized().module
        assert (after(x) - expected).abs().max() < 1e-3 * expected.std()
    assert counting.parameters(after) < before


def test_macs_of_a_convolution_are_counted_right(tiny: ModelSpec) -> None:
    module = torch.nn.Conv2d(3, 8, 3, padding=1, device="meta")
    network = models.base.BuiltModel(module)
    assert counting.macs(network, (2, 3, 16, 16), all_heads=False) == 2 * 16 * 16 * 8 * 3 * 9


@pytest.mark.parametrize("name", ["smp:segformer:mit_b0", "smp:fpn:resnet18", "smp:unet:tu-mobilenetv3_small_100"])
def test_smp_networks_are_built(name: str) -> None:
    network = models.build_meta(catalog.find(name)).finalized()
    assert network.module(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 117, 64, 64)


def test_an_unknown_timm_encoder_of_smp_is_bad_input() -> None:
    with pytest.raises(InputError, match="smp can't build"):
        models.build(catalog.find("smp:unet:tu-nonexistent"))


@pytest.mark.parametrize("name", ["encoder-lcnet-100", "unet-mobilenetv3-small", "stunet-tiny"])
def test_networks_with_random_weights_have_outputs_of_unit_variance(name: str, tiny: ModelSpec) -> None:
    from segonnx.exporters.prepare import Weights, network_with_weights

    spec = tiny if name == tiny.name else catalog.find(name)
    module = network_with_weights(spec, Weights(), lambda _: None).module
    for kind in synthetic_inputs.NAMES:
        with torch.inference_mode():
            logits = module(torch.from_numpy(synthetic_inputs.make(kind, spec.input_shape, spec.modality)))
        assert 0.3 < logits.std() < 3, kind


def test_random_weights_depend_on_the_seed_alone(tiny: ModelSpec) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        module = models.build_empty(tiny).module
        random_weights.randomize(module, seed)
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    # No two channels are alike, so that swapping any two would be seen.
    assert all(tensor.unique().numel() == tensor.numel() for tensor in first.values() if tensor.numel() < 1000)
