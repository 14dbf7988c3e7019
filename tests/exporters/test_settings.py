from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segonnx.core import hardware
from segonnx.errors import InputError, ResourceError
from segonnx.exporters import manifest_entries, resources, settings
from segonnx.exporters.settings import Settings
from segonnx.sources import catalog
from segonnx.sources.catalog import ModelSpec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": True, "tuning": Path("manifest.json")}, "give one"),
        ({"tune": True, "optimize": "none"}, "leaves nothing to choose"),
        ({"tuning": Path("manifest.json"), "optimize": "none"}, "leaves nothing to choose"),
        ({"max_weight_growth": 2.0, "optimize": "none"}, "leaves nothing to choose"),
        ({"tune": True, "dynamic": True}, "--tune times one shape"),
    ],
)
def test_settings_of_the_rewrites_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        settings.require_tunable(replace(Settings(Path()), **changes))  # type: ignore[arg-type]


def test_other_settings_are_taken() -> None:
    settings.require_tunable(Settings(Path()))
    settings.require_tunable(Settings(Path(), tune=True, max_weight_growth=2.0))
    settings.require_tunable(Settings(Path(), optimize="none", dynamic=True))


def test_an_artifact_of_smp_has_a_folder_of_its_own() -> None:
    assert settings.folder_name(catalog.find("smp:unet:resnet34")) == "smp-unet-resnet34"


def test_the_machine_must_have_the_memory(tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = resources.memory_needed(tiny, tiny.input_shape)
    monkeypatch.setattr(hardware, "available_memory", lambda: needed)
    resources.require_memory(tiny, tiny.input_shape)
    with pytest.raises(ResourceError, match=r"stunet-tiny needs about \d+\.\d GB of memory to export"):
        resources.require_memory(tiny, tiny.input_shape, times=2)
    with pytest.raises(ResourceError, match="a smaller --shape"):
        resources.require_memory(tiny, (2, *tiny.input_shape[1:]))


def test_arguments_that_were_not_asked_for_have_no_key(tiny: ModelSpec) -> None:
    """Manifests of earlier versions don't have them: their artifacts are kept."""
    plain = manifest_entries.arguments(tiny, Settings(Path()), tiny.input_shape, random_weights=True)
    assert plain == {
        "name": "stunet-tiny", "shape": [1, 1, 32, 64, 64], "dynamic": False, "optimize": "cpu", "seed": 0,
        "checkpoint_sha256": None,
    }  # fmt: skip
    asked = Settings(Path(), pretrained=True, tune=True, max_weight_growth=2.0, output="labels", trust=True)
    found = manifest_entries.arguments(tiny, asked, tiny.input_shape, {"lanes": 1}, random_weights=False)
    assert found.keys() - plain.keys() == {
        "pretrained", "tune", "tuning_sha256", "max_weight_growth", "output", "trusted",
    }  # fmt: skip
    assert found["seed"] is None


def test_a_checkpoint_that_is_not_there_is_bad_input(tiny: ModelSpec, tmp_path: Path) -> None:
    missing = Settings(tmp_path, checkpoints=(tmp_path / "nowhere.pth",))
    with pytest.raises(InputError, match="nowhere.pth can't be read"):
        manifest_entries.arguments(tiny, missing, tiny.input_shape, random_weights=False)
