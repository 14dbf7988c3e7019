"""A folder that nnU-Net trained: which model folder it holds, and which checkpoints.

nnU-Net leaves ``DATASET/TRAINER__PLANS__CONFIGURATION/`` with ``plans.json``, ``dataset.json`` and, for each fold,
``fold_X/checkpoint_final.pth``. ``model_spec`` says what these files tell of the network; ``exporters.nnunet`` reads
the checkpoints.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from segonnx.errors import InputError
from segonnx.sources.nnunet.plans import DATASET, PLANS

Which = Literal["final", "best"]
"""Which of a fold's checkpoints."""


def locate(folder: Path, configuration: str | None = None) -> Path:
    """The folder of one trainer and configuration: ``folder``, or the only one in it that fits.

    Raises:
        InputError: there is none, or there are several.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give the folder that holds {PLANS} and fold_0, or nnU-Net's zip of it")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if _is_model(folder):
        return folder
    if re.fullmatch(r"fold_(\d+|all)", folder.name):
        raise InputError(f"{folder} is one fold: give {folder.resolve().parent} with --fold {folder.name[5:]}")
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    models = [child for child in children if _is_model(child)]
    chosen = [m for m in models if configuration is None or m.name.rpartition("__")[2] == configuration]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(child.name for child in models)
    if len(chosen) > 1:
        hint = "" if configuration is not None else ", or the configuration with --configuration"
        raise InputError(f"{folder} holds {len(chosen)} trained folders; name one{hint}: {names}")
    if models:
        raise InputError(f"{folder} holds no trained folder of {configuration!r}; it has {names}")
    sets = [child.name for child in children if any(_is_model(inner) for inner in child.iterdir() if inner.is_dir())]
    if sets:
        raise InputError(f"{folder} holds the results of {len(sets)} data sets; name one: {', '.join(sets)}")
    raise InputError(
        f"{folder} is no folder that nnU-Net trained: neither it nor a folder in it holds {PLANS} and fold_0, fold_1, "
        "... (nnU-Net writes them to nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION)"
    )


def trained_in(folder: Path) -> list[Path]:
    """The folders of one trainer and configuration in that of a data set; none where it is such a one itself."""
    if _is_model(folder):
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and _is_model(child))


def _is_model(folder: Path) -> bool:
    return (folder / PLANS).is_file() or any(folder.glob("fold_*/"))


def find_checkpoints(model: Path, fold: str | None, which: Which) -> dict[str, Path]:
    """The checkpoints to take, by fold, in order.

    Raises:
        InputError: there are none, or too few for an ensemble; the message says which there are.
    """
    for name in (PLANS, DATASET):
        if not (model / name).is_file():
            raise InputError(f"{model} lacks {name}, which nnU-Net writes beside its folds")
    names = sorted(
        (
            path.name.removeprefix("fold_")
            for path in model.glob("fold_*/")
            if re.fullmatch(r"fold_(\d+|all)", path.name)
        ),
        key=lambda name: (name == "all", int(name) if name.isdecimal() else 0),
    )
    file = f"checkpoint_{which}.pth"
    found = {name: model / f"fold_{name}" / file for name in names if (model / f"fold_{name}" / file).is_file()}
    if fold == "ensemble":
        numbered = {name: path for name, path in found.items() if name != "all"}
        if len(numbered) < 2:
            have = ", ".join(f"fold_{name}" for name in numbered) or "none"
            raise InputError(f"--fold ensemble needs {file} in at least two numbered folds of {model}; found {have}")
        return numbered
    if fold is not None and "," in fold:
        chosen = [str(int(one)) for one in fold.split(",")]
        if missing := [name for name in chosen if name not in found]:
            have = ", ".join(f"fold_{name}" for name in found) or "none"
            raise InputError(f"--fold {fold}: fold_{missing[0]} of {model} lacks {file}; found it in {have}")
        return {name: found[name] for name in chosen}
    if fold is not None:
        name = str(int(fold)) if fold.isdecimal() else fold
        if name in found:
            return {name: found[name]}
        if name not in names:
            raise InputError(
                f"{model} has no fold_{name}; it has {', '.join(f'fold_{n}' for n in names) or 'no folds'}"
            )
        names = [name]
    elif found:
        return found
    if not names:
        raise InputError(f"{model} has no folds: it holds no fold_0, fold_1, ... or fold_all")
    there = sorted({path.name for name in names for path in (model / f"fold_{name}").glob("checkpoint_*.pth")})
    where = f"{model}/fold_{names[0]}" if len(names) == 1 else f"{model}/fold_*"
    other = "best" if which == "final" else "final"
    hint = ": the training has not ended" if there else ""
    if f"checkpoint_{other}.pth" in there:
        hint = f"; --checkpoint {other} takes the other"
    raise InputError(f"{where} lacks {file}; it has {', '.join(there) or 'no checkpoint'}{hint}")


def every_fold(model: Path, which: Which) -> str:
    """The mean of the numbered folds that are there, as ``--fold`` takes it; the only one, or all, where there is one.

    Raises:
        InputError: there are none.
    """
    there = list(find_checkpoints(model, None, which))
    numbered = [name for name in there if name != "all"]
    return ",".join(numbered) or there[0]
