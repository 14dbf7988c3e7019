from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segonnx.core import files
from segonnx.errors import InputError, ResourceError
from tests.conftest import ROOT


def test_staging_is_cleared_and_files_appear_completely(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.staging(tmp_path / "a" / "b") as work:
        (work / "half").write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "a") == []
    with files.staging(tmp_path / "a" / "b") as work:
        (work / "new").mkdir()
        (work / "new" / "file").write_text("2")
        files.publish(work / "new", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").read_text() == "2"
    assert os.listdir(tmp_path / "a") == ["b"]
    files.write(tmp_path / "file", "content")
    with pytest.raises(ResourceError, match="can't write"):
        files.write(tmp_path / "nowhere" / "file", "content")


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "new" / "file")
    assert os.listdir(tmp_path / "new") == []
    with pytest.raises(ResourceError, match="it is a folder"):
        files.require_writable(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't write"):
        files.require_writable(tmp_path / "file" / "below")


def test_too_little_disk_is_said_before_the_work(tmp_path: Path) -> None:
    files.require_space(1, tmp_path, "it", "free some")
    with pytest.raises(ResourceError, match=r"it needs about 1000000000.00 GB of disk, .* GB free: free some"):
        files.require_space(10**18, tmp_path, "it", "free some")


STAGE = """
import sys
from pathlib import Path

from segonnx.core import files

with files.staging(Path(sys.argv[1])) as work:
    print(work, flush=True)
    sys.stdin.read()
"""


def test_a_staging_folder_goes_with_its_process(tmp_path: Path) -> None:
    """One that is in use stays; one whose process was killed is cleared by whoever comes next."""
    with subprocess.Popen(
        [sys.executable, "-c", STAGE, tmp_path / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        with files.staging(tmp_path / "b"):
            assert folder.is_dir()
        owner.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with files.staging(tmp_path / "b"):
        assert not folder.exists()


def _marked(folder: Path) -> Path:
    """A scratch folder whose owner is dead."""
    folder.mkdir()
    (folder / files.MARK).write_bytes(files._MARK_TEXT)
    return folder


def test_without_locks_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _marked(tmp_path / ".a.x.partial")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "fcntl", None)
        with files.staging(tmp_path / "b") as work:
            (work / "made").mkdir()
            files.publish(work / "made", tmp_path / "b")
        assert sorted(os.listdir(tmp_path)) == [".a.x.partial", "b"]
    with files.staging(tmp_path / "b"):
        pass
    assert os.listdir(tmp_path) == ["b"]


def test_scratch_folders_of_others_stay(tmp_path: Path) -> None:
    """A folder is ours by the mark in it, whatever its name and whatever else is in it."""
    (tmp_path / "elsewhere").mkdir()

    def marked_by(content: str) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            folder.mkdir()
            (folder / files.MARK).write_text(content)

        return make

    def locked(folder: Path) -> None:
        folder.mkdir()
        (folder / ".lock").write_text("locked")

    def piped(folder: Path) -> None:
        folder.mkdir()
        os.mkfifo(folder / files.MARK)

    def linked(folder: Path) -> None:
        folder.mkdir()
        (folder / files.MARK).symlink_to(tmp_path / ".whole.partial" / files.MARK)

    kinds: dict[str, Callable[[Path], object]] = {
        "empty": lambda folder: folder.mkdir(),
        "another lock": locked,
        "another mark": marked_by("mine"),
        "a longer mark": lambda folder: (
            _marked(folder), (folder / files.MARK).write_bytes(files._MARK_TEXT + b"x")
        ),
        "a pipe": piped,
        "a linked mark": linked,
        "a link": lambda folder: folder.symlink_to(_marked(tmp_path / "scratch of somebody")),
        "a file": lambda folder: folder.write_text("mine"),
    }  # fmt: skip
    for name, make in kinds.items():
        make(tmp_path / f".{name}.partial")
    (tmp_path / ".x.segonnx-new").mkdir()
    (tmp_path / ".x.segonnx-new" / "thesis.txt").touch()
    os.utime(tmp_path / ".x.segonnx-new", times=(0, 0))
    _marked(tmp_path / ".whole.partial")
    before = set(os.listdir(tmp_path)) - {".whole.partial"}
    with files.staging(tmp_path / "b"):
        pass
    assert set(os.listdir(tmp_path)) == before
    assert (tmp_path / "scratch of somebody" / files.MARK).exists()


@pytest.mark.parametrize("when", ["open", "_lock", "write", "rename"])
def test_a_process_killed_before_the_mark_leaves_nothing_for_ever(when: str, tmp_path: Path) -> None:
    """A folder that is as young as a living process's stays."""
    module, name = ("files", when) if when == "_lock" else ("Path", when) if when == "rename" else ("os", when)
    program = f"""
import os, signal
from pathlib import Path
from segonnx.core import files
with_the_mark = {module}.{name}
def die(*arguments, **named):
    if {when != "open"} or str(arguments[0]).endswith(files.MARK):
        os.kill(os.getpid(), signal.SIGKILL)
    return with_the_mark(*arguments, **named)
{module}.{name} = die
with files.staging(Path({str(tmp_path / "a")!r})):
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with files.staging(tmp_path / "b"):
        pass
    assert left.exists()
    os.utime(left, times=(0, 0))
    with files.staging(tmp_path / "b"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_scratch_folder_that_was_cleared_half_is_cleared_whole(tmp_path: Path) -> None:
    """The mark goes last, so that a process that is killed while it clears leaves a folder that is marked."""
    folder = _marked(tmp_path / ".a.x.partial")
    (folder / "big").mkdir()
    (folder / "big" / "file").write_text("x")
    removed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **_: removed.append(path.name))
        files._remove(folder, None)
    assert removed == ["big", folder.name] and (folder / files.MARK).exists()
    with files.staging(tmp_path / "b"):
        pass
    assert os.listdir(tmp_path) == []


def test_publishing_replaces_what_is_there(tmp_path: Path) -> None:
    for content in ("1", "2"):
        with files.staging(tmp_path / "a") as work:
            (work / "made").mkdir()
            (work / "made" / "file").write_text(content)
            files.publish(work / "made", tmp_path / "a")
    assert (tmp_path / "a" / "file").read_text() == "2"
    assert os.listdir(tmp_path) == ["a"]


@pytest.fixture(params=["at once", "one after another"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems that let two names change places in one step, and others."""
    if request.param != "at once":
        monkeypatch.setattr(files, "_rename_at_once", lambda *_: False)
    return str(request.param)


def _made(work: Path, kind: str, text: str) -> Path:
    made = work / "made"
    if kind == "folder":
        made.mkdir()
        (made / "file").write_text(text)
    else:
        made.write_text(text)
    return made


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("other", ["file", "folder"])
def test_either_kind_replaces_either_kind(kind: str, other: str, ways: str, tmp_path: Path) -> None:
    target = tmp_path / "a"
    for each in (other, kind):
        with files.staging(target) as work:
            files.publish(_made(work, each, each), target)
    assert (target / "file" if kind == "folder" else target).read_text() == kind
    assert os.listdir(tmp_path) == ["a"]


def test_what_must_stay_stays(ways: str, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("mine")

    def refuse(_: Path) -> None:
        raise InputError("it stays")

    with files.staging(target) as work:
        made = _made(work, "folder", "new")
        with pytest.raises(InputError, match="--overwrite"):
            files.publish(made, target, replace=False)
        with pytest.raises(InputError, match="it stays"):
            files.publish(made, target, check=refuse)
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path) == ["a"]


def test_what_came_after_the_check_stays(tmp_path: Path) -> None:
    """The check looks at what was replaced, and not only at what was there before."""
    target = tmp_path / "a"
    target.write_text("old")

    def check(path: Path) -> None:
        if path == target:  # somebody else replaces it now
            (tmp_path / "new").write_text("somebody's")
            (tmp_path / "new").rename(target)
        elif path.read_text() == "somebody's":
            raise InputError("it stays")

    with files.staging(target) as work, pytest.raises(InputError, match="it stays"):
        files.publish(_made(work, "file", "ours"), target, check=check)
    assert target.read_text() == "somebody's"


def test_what_a_killed_process_took_away_is_put_back(tmp_path: Path) -> None:
    scratch = _marked(tmp_path / ".a.x.partial")
    (scratch / "previous").mkdir()
    (scratch / "previous" / "a").write_text("old")
    with files.staging(tmp_path / "b"):
        pass
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_link_is_replaced_and_not_what_it_leads_to(ways: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    target = tmp_path / "a"
    target.symlink_to(tmp_path / "kept")
    with files.staging(target) as work:
        files.publish(_made(work, "file", "new"), target)
    assert (tmp_path / "kept").read_text() == "kept"
    assert not target.is_symlink() and target.read_text() == "new"


PUBLISH = """
import sys
from pathlib import Path

from segonnx.core import files
from segonnx.errors import InputError

target, mine, replace = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "replace"
done = 0
for _ in range(25):
    with files.staging(target) as work:
        (work / "made").mkdir()
        for name in "ab":
            (work / "made" / name).write_text(mine)
        try:
            files.publish(work / "made", target, replace=replace)
            done += 1
        except InputError:
            pass
print(done)
"""


@pytest.mark.parametrize("replace", ["replace", "keep"])
def test_processes_that_write_one_target_leave_one_whole(replace: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISH, str(tmp_path / "a")]
    running = [
        subprocess.Popen([*command, str(mine), replace], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for mine in range(3)
    ]
    done = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert done == [25, 25, 25] if replace == "replace" else sum(done) == 1
    assert os.listdir(tmp_path) == ["a"]
    assert len({(tmp_path / "a" / name).read_text() for name in "ab"}) == 1


REPLACE = """
import sys
from pathlib import Path

from segonnx.core import files

target = Path(sys.argv[1])
with files.staging(target) as work:
    (work / "made").mkdir()
    (work / "made" / "file").write_text("new")
    print("ready", flush=True)
    files.publish(work / "made", target)
"""


def test_a_kill_while_replacing_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "p" / "target"
    for number in range(6):
        target.mkdir(parents=True, exist_ok=True)
        for index in range(300):
            (target / str(index)).write_text("old")
        with subprocess.Popen(
            [sys.executable, "-c", REPLACE, target], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            time.sleep(0.004 * number)
            owner.kill()
        names = os.listdir(target)
        assert names == ["file"] or len(set(names) - {"file"}) == 300
        with files.staging(tmp_path / "p" / "other"):
            pass
        assert os.listdir(tmp_path / "p") == ["target"]


def test_a_lock_that_somebody_holds_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(files, "LOCK_PATIENCE_S", 0.05)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with files.staging(tmp_path / "a") as work, pytest.raises(ResourceError, match="holds the lock"):
        files.publish(_made(work, "file", "x"), tmp_path / "a")
    os.close(holder)
    assert os.listdir(tmp_path) == []


def test_only_plain_files_are_opened_and_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "socket", 0o600 | stat.S_IFSOCK)
    assert files.read(tmp_path / "file", 5) == b"12345"
    assert files.read(tmp_path / "link", 5) == b"12345"
    for name, follow, said in (
        ("link", False, "it is a link"), ("zeros", True, "isn't a plain file"), ("zeros", False, "it is a link"),
        ("pipe", True, "isn't a plain file"), ("socket", True, "isn't a plain file"), (".", True, "isn't a plain file"),
        ("loop", True, "symbolic links"), ("none", True, "No such file"),
    ):  # fmt: skip
        with pytest.raises(OSError, match=said):
            files.opened(tmp_path / name, follow=follow)
    with pytest.raises(OSError, match="larger than 4 bytes"):
        files.read(tmp_path / "file", 4)
    with pytest.raises(OSError, match="isn't a plain file"):
        files.sha256(tmp_path / "pipe")


def test_a_file_that_became_another_between_look_and_open_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    plain = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: plain)
    with pytest.raises(OSError, match="isn't a plain file"):
        files.opened(tmp_path / "pipe")


def test_no_device_or_pipe_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        for act in (lambda path: files.write(path, "x"), files.require_writable):
            with pytest.raises(ResourceError, match="isn't a plain file"):
                act(tmp_path / name)
    assert (tmp_path / "null").is_symlink() and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_is_made_takes_nothing_of_what_is_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    (tmp_path / "alias").symlink_to(source)
    os.link(source / "file", tmp_path / "twin")
    files.require_apart(tmp_path / "source2", source, source / "file")
    for made, used in (
        (source, source), (source / "new", source), (tmp_path / "alias" / "new", source), (tmp_path, source),
        (source, source / "file"), (tmp_path / "twin", source / "file"), (tmp_path / "x" / ".." / "source", source),
    ):  # fmt: skip
        with pytest.raises(InputError, match="which is read"):
            files.require_apart(made, used)
    files.require_outside(tmp_path, source)
    with pytest.raises(InputError, match="lies in"):
        files.require_outside(source / "new", source)


def test_a_name_that_is_as_long_as_may_be_is_written(tmp_path: Path) -> None:
    for name in ("a" * 255, "\U0001f600" * 63):
        files.write(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/b", "file/b", ".", "..", "/"])
def test_a_path_that_nothing_can_stand_at_is_said_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="can't write"), files.staging(Path(name)):
        pytest.fail("the work began")
    assert os.listdir(tmp_path) == ["file"]
