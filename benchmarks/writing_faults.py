"""The part of ``make faults`` that writes: damaged archives, processes that write at once, kills while replacing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from segonnx.artifacts import layout, packing
from segonnx.artifacts.verify import verify
from segonnx.core import files, subprocesses
from segonnx.errors import SegonnxError

ROOT = Path(__file__).parents[1]
ARCHIVES, STAGINGS, PROCESSES, REPLACEMENTS = 3000, 3200, 4, 60
ARCHIVE_SECONDS = 20.0
"""The longest that unpacking a damaged archive may take."""
ARCHIVE_BYTES = 2 * 10**9
"""The most memory that unpacking damaged archives may take, libraries included."""
Mutation = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Row:
    """A row of the page's table.

    Attributes:
        what: was done.
        tried: how often.
        wrong: what went wrong, each in a line.
    """

    what: str
    tried: int
    wrong: list[str]


# Archives. Each function damages a zip file or an image layout.


def bits(packed: Path, rng: random.Random) -> None:
    """Other bits in some bytes."""
    path = _any(packed, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        # Most of a zip file is weights; its lists stand at its end.
        near_the_end = rng.random() < 0.5
        place = rng.randrange(max(len(data) - 2000, 0), len(data)) if near_the_end else rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(packed: Path, rng: random.Random) -> None:
    """An end that is missing."""
    path = _any(packed, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def spliced(packed: Path, rng: random.Random) -> None:
    """A piece of the file in another place of it."""
    path = _any(packed, rng)
    data = bytearray(path.read_bytes())
    length = rng.randint(1, min(4096, len(data)))
    source, target = rng.randrange(len(data) - length + 1), rng.randrange(len(data) - length + 1)
    if rng.random() < 0.5:
        data[target : target + length] = data[source : source + length]
    else:
        data[target:target] = data[source : source + length]
    path.write_bytes(data)


def noise(packed: Path, rng: random.Random) -> None:
    """Nothing but noise, or nothing."""
    _any(packed, rng).write_bytes(rng.randbytes(rng.choice([0, 1, 1000])))


def renamed(packed: Path, rng: random.Random) -> None:
    """A file under a name that leads elsewhere, is very long, or isn't one."""
    names = ("../x", "/x", "a/../../x", "C:x", "a\\x", "", ".", "..", "x" * 60_000, "a/" * 5000 + "x", "\x1b[2J", "NUL")
    name = rng.choice(names)

    def change(entries: dict[str, bytes]) -> dict[str, bytes]:
        old = rng.choice(sorted(entries))
        return {name if one == old else one: data for one, data in entries.items()}

    _rewrite(packed, change, rng)


def added(packed: Path, rng: random.Random) -> None:
    """Files that don't belong, a few or very many."""
    count = rng.choice([1, 1, 1, 20_000])
    _rewrite(packed, lambda entries: entries | {f"x{index}": b"" for index in range(count)}, rng)


def resealed(packed: Path, rng: random.Random) -> None:
    """A manifest that says something else of a file, with a digest that fits."""
    from segonnx.artifacts import manifest

    def change(entries: dict[str, bytes]) -> dict[str, bytes]:
        content = json.loads(entries[layout.MANIFEST])
        name = rng.choice(sorted(content["files"]))
        entry = content["files"][name]
        kind = rng.choice(["bytes", "sha256", "name", "gone"])
        if kind == "bytes":
            entry["bytes"] = rng.choice([0, 1, entry["bytes"] - 1, entry["bytes"] + 1, 2**62])
        elif kind == "sha256":
            entry["sha256"] = hashlib.sha256(rng.randbytes(4)).hexdigest()
        elif kind == "name":
            content["files"][rng.choice(["../x", "/x", "x", layout.MANIFEST, layout.SIGNATURE])] = entry
        else:
            del content["files"][name]
        return entries | {layout.MANIFEST: manifest.seal(content)}

    _rewrite(packed, change, rng)


def bomb(packed: Path, rng: random.Random) -> None:
    """A file of zeros that unpacks to far more than it takes."""
    _rewrite(
        packed, lambda entries: entries | {rng.choice(sorted(entries)): bytes(2**26)}, rng, kind=zipfile.ZIP_DEFLATED
    )


def special(packed: Path, rng: random.Random) -> None:
    """A pipe, a device or a link in place of a file."""
    path = packed if packed.is_file() else _any(packed, rng)
    path.unlink()
    kind = rng.choice(["pipe", "device", "link", "loop"])
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "link": "/etc/passwd", "loop": path.name}[kind])


DAMAGE: tuple[Mutation, ...] = (bits, cut, spliced, noise, renamed, added, resealed, bomb, special)


def _any(packed: Path, rng: random.Random) -> Path:
    every = [packed] if packed.is_file() else sorted(path for path in packed.rglob("*") if path.is_file())
    return rng.choice([path for path in every if path.stat().st_size] or every)


def _rewrite(
    packed: Path,
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    rng: random.Random,
    kind: int | None = None,
) -> None:
    """Write a packed artifact anew, with other files in it."""
    if packed.is_file():
        with zipfile.ZipFile(packed) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(packed, "w", kind if kind is not None else rng.choice([0, 0, 8])) as archive:
            for name, data in change(entries).items():
                archive.writestr(zipfile.ZipInfo(name[:65_000]), data, archive.compression)
        return
    index = json.loads((packed / "index.json").read_bytes())
    blobs = packed / "blobs" / "sha256"
    (described,) = index["manifests"]
    image = json.loads((blobs / described["digest"][7:]).read_bytes())
    title = "org.opencontainers.image.title"
    entries = {one["annotations"][title]: (blobs / one["digest"][7:]).read_bytes() for one in image["layers"]}

    def put(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    image["layers"] = [{**put(data), "annotations": {title: name}} for name, data in change(entries).items()]
    described.update(put(json.dumps(image).encode()))
    (packed / "index.json").write_text(json.dumps(index))


def unpack_damaged(packed: Sequence[Path], seed: int) -> str | None:
    """Damage a copy of a packed artifact and unpack it; what is wrong with how that ended, if anything."""
    rng = random.Random(seed)
    kind, source = DAMAGE[seed % len(DAMAGE)], packed[seed // len(DAMAGE) % len(packed)]
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as name:
        folder = Path(name)
        copy = folder / "packed"
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copyfile(source, copy)
        kind(copy, rng)
        (folder / "around").mkdir()
        began = time.monotonic()
        ended = _unpacked(copy, folder / "around" / "out", source)
        if ended is None and time.monotonic() - began > ARCHIVE_SECONDS:
            ended = "it takes too long"
        left = {path.name for place in (folder, folder / "around") for path in place.iterdir()}
        if ended is None and left - {"packed", "around", "out"}:
            ended = "it left files"
    return None if ended is None else f"{kind.__name__} of {source.name} (seed {seed}): {ended}"


def _unpacked(copy: Path, out: Path, source: Path) -> str | None:
    """Unpack, and say what is wrong with the end."""
    try:
        packing.unpack(copy, out)
    except SegonnxError as error:
        said = str(error)
        if error.exit_code not in (1, 2) or len(said.splitlines()) != 1 or len(said) > 2000 or not said.isprintable():
            return f"exit code {error.exit_code}: {said[:200]!r}"
        return "a refused archive left its target" if out.exists() else None
    except BaseException as error:  # noqa: BLE001 (whatever it is, the page must tell)
        return f"{type(error).__name__}: {str(error)[:200]}"
    again = packing.unpack(source, out.with_name("again"))
    same = _content(out) == _content(again)
    shutil.rmtree(again)
    return None if same else "another artifact came out than went in"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _archives(packed: tuple[Path, ...], number: int, progress: subprocesses.Progress) -> list[str]:
    def here(function: Callable[..., Any], *args: Any, **_: Any) -> subprocesses.Outcome[Any]:
        """Checks of graphs share this process: none is made anew for each."""
        try:
            return subprocesses.Outcome(function(*args, subprocesses.silent), 0, 0)
        except Exception as error:
            raise subprocesses.translate(error) from error

    with mock.patch.object(subprocesses, "call", here), mock.patch.object(subprocesses, "cap_memory", create=True):
        found = []
        for seed in range(number):
            progress(f"archive {seed} of {number}")
            found.append(unpack_damaged(packed, seed))
    return [wrong for wrong in found if wrong is not None]


def archives(packed: tuple[Path, ...], number: int = ARCHIVES) -> Row:
    """Damaged archives, and what unpacking them makes of them."""
    outcome = subprocesses.call(_archives, packed, number)
    wrong = list(outcome.value)
    if outcome.peak_rss_bytes > ARCHIVE_BYTES:
        wrong.append(f"unpacking took {outcome.peak_rss_bytes / 1e9:.1f} GB of memory")
    return Row("damaged archives (zip files, image layouts) were unpacked", number, wrong)


# Races.


def _race(folder: str, mine: int, number: int, answers: Any) -> None:
    wrong = []
    for index in range(number):
        shared = index % 2 == 1
        target = Path(folder) / ("shared" if shared else f"own-{mine}-{index}")
        text = f"{mine} {index}"
        try:
            with files.staging(target) as work:
                (work / "made").mkdir()
                for name in ("a", "b"):
                    (work / "made" / name).write_text(text)
                files.publish(work / "made", target, replace=shared)
            if not shared and {path.read_text() for path in target.iterdir()} != {text}:
                wrong.append(f"{target.name} holds something else")
        except (SegonnxError, OSError) as error:
            wrong.append(f"{type(error).__name__}: {error}")
    answers.put(wrong)


def races(number: int = STAGINGS, processes: int = PROCESSES) -> Row:
    """Scratch folders of several processes in one folder, half of them for one target."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as folder:
        running = [
            context.Process(target=_race, args=(folder, mine, number // processes, answers))
            for mine in range(processes)
        ]
        for process in running:
            process.start()
        wrong = [one for _ in running for one in answers.get()]
        for process in running:
            process.join()
        names = [path.name for path in Path(folder).iterdir()]
        whole = {path.read_text() for path in (Path(folder) / "shared").iterdir()}
        wrong += [f"{name} was left" for name in names if name.startswith(".")]
        wrong += ["the shared target is of two processes"] if len(whole) != 1 else []
        wanted = 1 + processes * ((number // processes + 1) // 2)
        wrong += [f"{len(names)} targets stand, not {wanted}"] if len(names) != wanted else []
    return Row(f"scratch folders of {processes} processes were made and published in one folder", number, wrong)


# Kills while something is replaced.


def replacements(artifact: Path, packed: Path, number: int = REPLACEMENTS) -> Row:
    """Commands with --overwrite, killed at a random moment: the target must be the old or the new one, and whole."""
    rng = random.Random(0)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="segonnx-faults-") as name:
        out = Path(name) / "out"
        made = {"unpack": out / "artifact", "pack": out / "packed.zip"}
        commands = {
            "unpack": ["unpack", packed, "--out", made["unpack"], "--overwrite"],
            "pack": ["pack", artifact, "--format", "zip", "--out", made["pack"], "--overwrite"],
        }
        seconds = {}
        for which, command in commands.items():
            began = time.monotonic()
            subprocess.run(_command(command), cwd=ROOT, check=True, capture_output=True)
            seconds[which] = time.monotonic() - began
        for index in range(number):
            which = sorted(commands)[index % len(commands)]
            share = rng.uniform(0.5, 1.1)
            with subprocess.Popen(
                _command(commands[which]), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as running:
                time.sleep(share * seconds[which])
                with contextlib.suppress(ProcessLookupError):
                    running.send_signal(signal.SIGKILL)
            said = f"{which} killed at {100 * share:.0f} %"
            if not made[which].exists():
                wrong.append(f"{said}: its target is gone")
                continue
            try:
                if which == "unpack":
                    verify(made[which], replay=False)
                else:
                    packing.unpack(made[which], Path(name) / "again", overwrite=True)
            except SegonnxError as error:
                wrong.append(f"{said}: {error}")
        with files.staging(out / "last"):
            pass
        wrong += [f"{left.name} was left" for left in out.iterdir() if left not in made.values()]
    return Row("kills of pack and unpack while they replace what is there", number, wrong)


def _command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "segonnx", *map(str, arguments)]


def campaign(artifact: Path, tiny: Path, work: Path) -> list[Row]:
    """All of it.

    Args:
        artifact: a small artifact, which takes some time to write.
        tiny: one that takes little, to be packed, damaged and unpacked thousands of times.
        work: a folder for their packed forms.
    """
    zipped = packing.pack(artifact, "zip", work / "whole.zip")
    forms = packing.pack(tiny, "zip", work / "tiny.zip"), packing.pack(tiny, "oci", work / "tiny.oci")
    return [archives(forms), races(), replacements(artifact, zipped)]


def page(rows: Sequence[Row]) -> str:
    """The part of docs/reliability.md."""
    table = "\n".join(f"| {row.what} | {row.tried:,} | {len(row.wrong)} |" for row in rows)
    return f"""
## Writing

An end is wrong that isn't success with the artifact that was packed, or one line with exit code 1 or 2; that takes
more than {ARCHIVE_SECONDS:.0f} s, or more than {ARCHIVE_BYTES / 1e9:.0f} GB of memory; or that writes or leaves
anything but its target, or loses that.

| what was done | how often | wrong ends |
|---|---|---|
{table}
"""
