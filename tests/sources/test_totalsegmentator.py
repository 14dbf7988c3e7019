"""The registry of TotalSegmentator's tasks, against the package that it was made from."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest

from segonnx.errors import InputError
from segonnx.sources import totalsegmentator
from tests import totalsegmentator_folders as folders
from tools import make_totalsegmentator


@pytest.mark.skipif(not folders.JUDGE.exists(), reason="TotalSegmentator isn't installed: make judges")
def test_the_registry_is_that_of_the_package() -> None:
    words = [str(folders.JUDGE), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    place = Path(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
    made = json.loads(make_totalsegmentator.text(make_totalsegmentator.registry(place)))
    kept = json.loads(make_totalsegmentator.TARGET.read_text("utf-8"))
    assert make_totalsegmentator.changes(kept, made) == []
    assert made == kept


def test_what_a_version_changed_is_told() -> None:
    old = json.loads(make_totalsegmentator.TARGET.read_text("utf-8"))
    new = copy.deepcopy(old)
    new["tasks"]["body"]["step"] = 0.25
    new["tasks"]["more"] = new["tasks"].pop("teeth")
    assert make_totalsegmentator.changes(old, new) == [
        "tasks: more is new", "tasks: teeth is gone", "tasks: body: step was 0.5, and is 0.25",
    ]  # fmt: skip


def test_every_task_needs_tasks_that_are_there() -> None:
    for task in totalsegmentator.tasks():
        if task.unsupported is not None:
            with pytest.raises(InputError, match="can't be exported"):
                totalsegmentator.find(task.name)
            continue
        assert task.networks
        for other in (task.crop, task.subset, task.entries["within"]):
            if other is not None:
                names = {label["name"] for label in totalsegmentator.find(other["task"]).labels}
                assert names.issuperset(other.get("labels", ()))


def test_weights_are_where_totalsegmentator_keeps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (totalsegmentator.WEIGHTS, totalsegmentator.HOME):
        monkeypatch.delenv(name, raising=False)
    assert totalsegmentator.weights_dir() == Path.home() / ".totalsegmentator" / "nnunet" / "results"
    monkeypatch.setenv(totalsegmentator.HOME, str(tmp_path))
    assert totalsegmentator.weights_dir() == tmp_path / "nnunet" / "results"
    monkeypatch.setenv(totalsegmentator.WEIGHTS, str(tmp_path / "weights"))
    assert totalsegmentator.weights_dir() == tmp_path / "weights"
