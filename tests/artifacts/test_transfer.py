"""Artifacts that go to another machine and come back: here the other machine is another cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segonnx.artifacts import manifest, packing, transfer
from segonnx.artifacts.transfer import Parcel
from segonnx.artifacts.verify import verify
from segonnx.core import files
from segonnx.errors import InputError, SegonnxError, VerifyError
from tests.conftest import ROOT, SMALL

pytestmark = pytest.mark.usefixtures("steps_here")


class Machine:
    """The other machine: what it was asked, in order, and what it may change on the way."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.change: Callable[[str, Any], Any] = lambda _, value: value

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.asked.append(function.__name__)
        arguments = tuple(self.change(function.__name__, argument) for argument in arguments)
        return self.change(f"{function.__name__} gave", function(*arguments))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "BLOCK", 2**14)
    return Machine()


@pytest.fixture
def artifact(hand: Path, tmp_path: Path) -> Path:
    return shutil.copytree(hand, tmp_path / "hand")


@pytest.fixture
def digest(hand: Path) -> str:
    found: str = manifest.read(hand)["digest"]
    return found


def test_an_artifact_is_brought_once(there: Machine, hand: Path, digest: str) -> None:
    with Parcel(hand, digest) as parcel:
        parcel.bring(there.ask)
        assert there.asked.count("append") > 5
        assert verify(transfer.kept(digest), replay=False).manifest == manifest.read(hand)
        there.asked.clear()
        parcel.bring(there.ask)
    with Parcel(hand, digest) as another:
        another.bring(there.ask)
    assert there.asked == ["holds", "holds"]
    assert [path.name for path in (transfer.cache() / "files").iterdir()] == []  # the zip file went


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_one_that_was_damaged_there_is_brought_again(damage: str, there: Machine, hand: Path, digest: str) -> None:
    with Parcel(hand, digest) as parcel:
        parcel.bring(there.ask)
        model = transfer.kept(digest) / "model.onnx"
        if damage == "gone":
            model.unlink()
        else:
            model.write_bytes(model.read_bytes()[:-1] + (b"" if damage == "cut" else b"\x00"))
        parcel.bring(there.ask)
    assert verify(transfer.kept(digest), replay=False)


@pytest.mark.parametrize("at", [0, 3])
def test_bytes_that_change_on_the_way_are_refused(at: int, there: Machine, hand: Path, digest: str) -> None:
    blocks = 0

    def change(where: str, value: Any) -> Any:
        nonlocal blocks
        if where == "append" and isinstance(value, bytes):
            blocks += 1
            return bytes([value[0] ^ 1]) + value[1:] if blocks == at + 1 else value
        return value

    there.change = change
    with Parcel(hand, digest) as parcel, pytest.raises(VerifyError, match="other bytes than were sent"):
        parcel.bring(there.ask)
    assert not transfer.kept(digest).exists()
    assert list((transfer.cache() / "files").iterdir()) == []


def test_another_artifact_than_was_asked_for_is_refused(
    there: Machine, artifact: Path, exports: Path, digest: str
) -> None:
    with Parcel(exports / SMALL, digest) as parcel, pytest.raises(VerifyError, match="was changed since it was found"):
        parcel.bring(there.ask)
    zipped = transfer.send(there.ask, transfer.pack(artifact, None)[0])
    with pytest.raises(VerifyError, match=r"another artifact came than was asked for: .*, not 0000"):
        transfer.accept(zipped, "0" * 64, None)
    assert not zipped.exists() and not transfer.kept("0" * 64).exists()


def test_machines_on_one_storage_do_not_take_it_from_each_other(there: Machine, hand: Path, digest: str) -> None:
    other = Machine()

    def interleaved(function: Callable[..., Any], *arguments: Any) -> Any:
        if function is transfer.accept:
            with Parcel(hand, digest) as second:  # another machine is quicker, from the first step to the last
                second.bring(other.ask)
        return there.ask(function, *arguments)

    with Parcel(hand, digest) as parcel:
        parcel.bring(interleaved)
    assert "accept" in there.asked and "accept" in other.asked
    assert verify(transfer.kept(digest), replay=False)
    assert list((transfer.cache() / "files").iterdir()) == []


def test_files_are_sent_once_and_checked(there: Machine, tmp_path: Path) -> None:
    path = tmp_path / "input.npy"
    path.write_bytes(os.urandom(3 * 2**14 + 5))
    sent = transfer.share(there.ask, path)
    assert sent.read_bytes() == path.read_bytes() and sent.name == files.sha256(path)
    assert there.asked.count("append") == 4
    there.asked.clear()
    assert transfer.share(there.ask, path) == sent
    assert there.asked == ["find"]
    sent.write_bytes(b"damaged")
    assert transfer.share(there.ask, path).read_bytes() == path.read_bytes()
    path.write_bytes(b"")
    assert transfer.share(there.ask, path).read_bytes() == b""
    first, second = transfer.send(there.ask, path), transfer.send(there.ask, path)
    assert first != second


def test_what_nobody_finished_goes(there: Machine) -> None:
    old, new = transfer.begin(), transfer.begin()
    os.utime(old, (0, time.time() - transfer.ABANDONED_S - 10))
    transfer.begin()
    assert not old.exists() and new.exists()


def test_several_threads_pack_once(there: Machine, hand: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    pack = packing.pack

    def counted(*arguments: Any, **more: Any) -> Path:
        packed.append(arguments)
        return pack(*arguments, **more)

    monkeypatch.setattr(packing, "pack", counted)
    with Parcel(hand, digest) as parcel:
        threads = [threading.Thread(target=parcel._packing) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(packed) == 1


def test_an_artifact_comes_back_whole(there: Machine, artifact: Path, ensemble: Path, tmp_path: Path) -> None:
    for number, folder in enumerate((artifact, shutil.copytree(ensemble, tmp_path / "ensemble"))):
        out = tmp_path / f"back {number}"
        transfer.fetch(there.ask, folder, out)
        assert verify(out, replay=False).manifest == manifest.read(folder)
        with pytest.raises(InputError, match="--overwrite replaces it"):
            transfer.fetch(there.ask, folder, out)
        transfer.fetch(there.ask, folder, out, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        transfer.fetch(there.ask, artifact, tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "another file", "no size"])
def test_what_comes_back_damaged_is_refused(damage: str, there: Machine, artifact: Path, tmp_path: Path) -> None:
    def change(where: str, value: Any) -> Any:
        if where == "pack gave" and damage == "no size":
            return value[0], 2**62
        if where != "read gave":
            return value
        return {
            "changed": value[:100] + bytes([value[100] ^ 1]) + value[101:],
            "cut": value[:-1],
            "longer": value + b"more",
            "another file": b"PK" + os.urandom(len(value)),
        }.get(damage, value)

    there.change = change
    with pytest.raises(SegonnxError) as refused:
        transfer.fetch(there.ask, artifact, tmp_path / "back")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "back").exists()


HOLDER = """
import sys
from segonnx.artifacts import transfer

with transfer.in_use(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def old(path: Path, hours: float) -> Path:
    os.utime(path, (0, time.time() - hours * 3600))
    return path


def pretended(name: str, hours: float) -> Path:
    folder = transfer.kept(name)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(1000))
    return old(folder, hours)


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_in_use(
    there: Machine, hand: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, oldest, older, recent = (pretended(name, age) for name, age in (("u", 9), ("a", 8), ("b", 7), ("c", 0.5)))
    kept = transfer._files() / "file"
    kept.write_bytes(bytes(1000))
    old(kept, 6)
    begun = old(transfer.begin(), 6)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, "u"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        old(used, 9)  # it was touched
        monkeypatch.setattr(transfer, "MOST_BYTES", 4000)
        transfer.tidy()
        assert used.exists() and not oldest.exists() and older.exists() and recent.exists() and kept.exists()
        monkeypatch.setattr(transfer, "MOST_BYTES", 0)
        with Parcel(hand, digest) as parcel:
            parcel.bring(there.ask)  # what comes now makes room for itself
        assert used.exists() and recent.exists() and not older.exists() and not kept.exists()
        assert begun.exists() and verify(transfer.kept(digest), replay=False)
        holder.kill()
    transfer.tidy()
    assert not used.exists() and recent.exists() and transfer.kept(digest).exists()
    assert not [path.name for path in used.parent.iterdir() if path.name.startswith(".")]
