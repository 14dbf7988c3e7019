"""What building networks imports, once for many processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (
    "import sys, segonnx.models.preloaded; print('timm' in sys.modules, 'segmentation_models_pytorch' in sys.modules)"
)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("", "True True"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "False False"),
        pytest.param("import no_such_module", "False False", marks=pytest.mark.slow),  # another error alone
    ],
)
def test_a_library_that_cannot_be_imported_stops_nobody_who_does_not_need_it(
    broken: str, told: str, tmp_path: Path
) -> None:
    if broken:  # smp needs timm
        (tmp_path / "timm.py").write_text(broken)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, told, "")
