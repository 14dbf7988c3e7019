"""What a trained folder says of its network, from its files and a checkpoint's notes alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from segonnx.errors import CheckpointError, InputError
from segonnx.sources.nnunet import plans
from segonnx.sources.nnunet.model_spec import CheckpointMeta, edits, model_spec, own_plan, require_belongs
from segonnx.sources.nnunet.plans import Plan
from tests import handmade
from tests.conftest import ROOT

MODEL = Path("Dataset999_Hand/nnUNetTrainer__nnUNetPlans__3d_fullres")
META = CheckpointMeta(MODEL / "fold_0" / "checkpoint_final.pth", "3d_fullres", "nnUNetTrainer", (0, 1, 2), None, None)


@pytest.fixture
def plan() -> Plan:
    return plans.plan(handmade.plans(), handmade.dataset(), "3d_fullres", MODEL)


def test_the_network_is_that_of_the_plan(plan: Plan) -> None:
    spec = model_spec(plan, META, ["0"], "final")
    assert spec.name == "Dataset999_Hand-nnUNetTrainer__nnUNetPlans__3d_fullres-fold_0"
    assert (spec.input_shape, spec.num_classes, spec.divisors) == ((1, 1, 8, 16, 24), 3, (2, 4, 4))
    assert (spec.modality, spec.licence, spec.options["folds"]) == ("CT", "unknown", 1)
    assert json.loads(json.dumps(spec.described)) == spec.described
    assert spec.described["inference"]["mirror_axes"] == [0, 1, 2]


def test_an_ensemble_and_the_best_checkpoint_have_names_of_their_own(plan: Plan) -> None:
    ensemble = model_spec(plan, META, ["0", "1"], "best")
    assert ensemble.name.endswith("3d_fullres-ensemble-best")
    assert ensemble.options["folds"] == 2
    assert ensemble.source.endswith("the mean of folds 0, 1")
    assert ensemble.described["training"]["folds"] == ["0", "1"]


def test_names_that_a_folder_cannot_have_stay_apart(plan: Plan) -> None:
    names = {model_spec(replace(plan, dataset=name), META, ["0"], "final").name for name in ("a/b", "a:b", "a-b")}
    assert len(names) == 3
    assert not any(letter in name for name in names for letter in "/:")


def test_a_checkpoint_belongs_to_the_files_beside_it(plan: Plan) -> None:
    require_belongs(META, plan, MODEL)
    with pytest.raises(InputError, match="lies in a folder of 2d"):
        require_belongs(META, plan, MODEL.with_name("nnUNetTrainer__nnUNetPlans__2d"))
    with pytest.raises(CheckpointError, match="mirrors axis 2 of a 2D network"):
        require_belongs(META, replace(plan, patch_size=(16, 24)), MODEL)


def test_what_was_changed_after_the_training_is_told(plan: Plan) -> None:
    own = own_plan(replace(META, plans=handmade.plans(), dataset=handmade.dataset()), MODEL)
    assert own == plan
    assert edits(own, plan) == edits(None, plan) == []
    changed = replace(plan, spacing=(1.0, 1.0, 1.0), outputs=plan.outputs[::-1])
    assert [str(edit) for edit in edits(own, changed)] == [
        "spacing (trained with (3.0, 1.5, 1.5), now (1.0, 1.0, 1.0))", "outputs",
    ]  # fmt: skip
    assert own_plan(replace(META, plans={"an": "older layout"}, dataset=handmade.dataset()), MODEL) is None
    assert own_plan(META, MODEL) is None
    spec = model_spec(changed, META, ["0"], "final", ["spacing", "outputs"])
    assert spec.described["training"]["edited"] == ["spacing", "outputs"]
    assert "edited" not in model_spec(plan, META, ["0"], "final").described["training"]


def test_it_takes_no_torch() -> None:
    code = (
        "import sys\nimport segonnx.sources.nnunet.model_spec, segonnx.sources.smp, segonnx.sources.catalog\n"
        "assert not {'torch', 'timm', 'onnx'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
