"""The tables of docs/nnunet.md hold all that nnU-Net has: its classes, its functions and its options."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import nnunetv2.imageio
import nnunetv2.preprocessing
import pytest
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

from tests.conftest import ROOT
from tests.nnunet_commands import nnunet

ROWS = [line for line in (ROOT / "docs" / "nnunet.md").read_text("utf-8").splitlines() if line.startswith("|")]


def stand_in_tables() -> set[str]:
    """What stands in code in a row of a table."""
    return {name for row in ROWS for name in re.findall(r"`([^`]+)`", row)}


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(info.name)


def test_every_reader_stands_in_the_table() -> None:
    found = {
        name
        for module in modules(nnunetv2.imageio)
        for name, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, BaseReaderWriter) and one is not BaseReaderWriter
    }
    assert len(found) >= 6
    assert found <= stand_in_tables()


def test_every_resampler_normalization_and_preprocessor_stands_in_the_table() -> None:
    found = set()
    for module in modules(nnunetv2.preprocessing):
        for name, one in inspect.getmembers(module):
            if getattr(one, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(one):
                is_known = issubclass(one, ImageNormalization) and one is not ImageNormalization
                found |= {name} if is_known or name.endswith("Preprocessor") else set()
            elif inspect.isfunction(one) and module.__name__.startswith("nnunetv2.preprocessing.resampling"):
                found |= {name} if "resampl" in name and not name.startswith("recursive") else set()
    assert {"DefaultPreprocessor", "CTNormalization", "resample_data_or_seg", "no_resampling_hack"} <= found
    assert found <= stand_in_tables()


def test_every_option_of_nnunets_prediction_stands_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nnunet("nnUNetv2_predict", "-h")
    usage = capsys.readouterr().out
    found = set(re.findall(r"^  (--?\w+)", usage, re.MULTILINE)) | set(re.findall(r"\[(--?\w+)", usage))
    assert len(found) > 20
    assert {option for option in found if option not in stand_in_tables()} == set()
