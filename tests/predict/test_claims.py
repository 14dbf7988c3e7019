"""Claims of real processes: that live, that were killed, that stand still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from segonnx.errors import ResourceError
from segonnx.predict import claims
from segonnx.predict.claims import Claims, State
from tests.conftest import ROOT

OTHER = """
import sys, time
from pathlib import Path
from segonnx.predict.claims import Claims

with Claims(Path(sys.argv[1]), carried=sys.argv[2] == "carried") as own:
    print([own.take(case).state.name for case in sys.argv[3:]], flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another(folder: Path, *cases: str, carried: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed cases."""
    command = [sys.executable, "-c", OTHER, folder, "carried" if carried else "sent", *cases]
    with subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline().strip() == str(["TAKEN" for _ in cases])
        yield process
        if process.poll() is None:
            process.stdin.write("\n")
            process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_until_zombie(process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_case_is_one_processs(tmp_path: Path) -> None:
    with another(tmp_path, "a"), Claims(tmp_path) as own:
        assert own.take("a").state is State.ELSEWHERE
        assert own.take("b") == claims.Answer(State.TAKEN)
        assert own.take("b").state is State.TAKEN
        assert own.held("a") is None and own.held("b") == tmp_path / "b.1"
        own.release("b")
        assert files(tmp_path) == ["a.1"]


def test_of_many_that_ask_at_once_one_gets_it(tmp_path: Path) -> None:
    names = [f"case {number}" for number in range(200)]
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom segonnx.predict.claims import Claims, State\n"
        "with Claims(Path(sys.argv[1])) as own:\n    sys.stdin.readline()\n"
        "    print(json.dumps([c for c in sys.argv[2:] if own.take(c).state is State.TAKEN]), flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *names]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(3)
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        taken: list[str] = []
        for process in running:
            assert process.stdout is not None
            taken += json.loads(process.stdout.readline())
        for process in running:
            process.kill()
    assert sorted(taken) == sorted(names)


def test_a_killed_processs_case_is_taken_over_once(tmp_path: Path) -> None:
    with another(tmp_path, "a") as first, Claims(tmp_path) as own:
        first.send_signal(signal.SIGKILL)
        wait_until_zombie(first)  # whoever started it hasn't asked how it ended, and may never ask
        assert own.take("a").state is State.SUSPECT
        assert own.take("a", suspect=True) == claims.Answer(State.TAKEN, begun=True)
        assert files(tmp_path) == ["a.1", "a.2"]
        own.release("a")
        assert files(tmp_path) == []
        assert own.take("a") == claims.Answer(State.TAKEN)


def take_alone_and_die(folder: Path) -> None:
    alone = OTHER.replace("own.take(case)", "own.take(case, suspect=True)")
    with subprocess.Popen(
        [sys.executable, "-c", alone, str(folder), "carried", "a"], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "['TAKEN']"
        kill(process)


def test_a_case_that_two_processes_died_with_alone_is_left(tmp_path: Path) -> None:
    with another(tmp_path, "a", "b") as first:
        kill(first)
    take_alone_and_die(tmp_path)
    with Claims(tmp_path) as own:
        assert own.take("a").state is State.SUSPECT  # a kill that has nothing to do with it hit it once
    take_alone_and_die(tmp_path)
    with Claims(tmp_path) as own:
        assert own.take("a").state is State.LEFT
        assert own.take("a", suspect=True).state is State.LEFT
        (tmp_path / "a.3").unlink()
        assert own.take("a").state is State.SUSPECT


def test_those_that_died_with_others_in_hand_leave_no_case(tmp_path: Path) -> None:
    with Claims(tmp_path, carried=False) as own:
        for _ in range(5):
            assert own.take("a", suspect=True).state is State.TAKEN
            own.died("a", alone=False)
        assert own.take("a").state is State.SUSPECT


def test_a_process_that_stands_still_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with another(tmp_path, "a") as stopped, Claims(tmp_path) as own:
        stopped.send_signal(signal.SIGSTOP)
        assert own.take("a").state is State.ELSEWHERE
        (run,) = [path for path in (tmp_path / "runs").iterdir() if str(stopped.pid) in path.read_text()]
        os.utime(run, (0, time.time() - claims.EXPIRED_S - 5))
        assert own.take("a").state is State.SUSPECT
        stopped.send_signal(signal.SIGCONT)


def test_what_was_given_up_in_order_is_no_sign(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), Claims(tmp_path) as own:
            assert own.take("a").state is State.TAKEN
            raise KeyboardInterrupt
    with Claims(tmp_path) as own:
        assert own.take("a") == claims.Answer(State.TAKEN, begun=True)


def test_a_killed_client_of_a_cluster_is_no_sign(tmp_path: Path) -> None:
    for _ in range(3):
        with another(tmp_path, "a", carried=False) as client:
            kill(client)
    with Claims(tmp_path, carried=False) as own:
        assert own.take("a") == claims.Answer(State.TAKEN, begun=True)
        own.died("a", alone=True)
        assert own.take("a").state is State.SUSPECT
        assert own.take("a", suspect=True).state is State.TAKEN
        own.died("a", alone=True)
        assert own.take("a", suspect=True).state is State.LEFT


def test_where_a_process_cannot_be_looked_for_its_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another(tmp_path, "a") as first, Claims(tmp_path) as own:
        monkeypatch.setattr(claims, "_where", lambda: "another machine")
        kill(first)
        assert own.take("a").state is State.ELSEWHERE
        (run,) = [
            path for path in (tmp_path / "runs").iterdir() if json.loads(path.read_text())["process"] == first.pid
        ]
        assert not own.moves("a") and not own.moves("a")
        os.utime(run, (run.stat().st_mtime, run.stat().st_mtime + 5))
        assert own.moves("a")
        os.utime(run, (0, time.time() - claims.EXPIRED_S - 5))
        assert own.take("a").state is State.SUSPECT


def test_a_process_that_stood_still_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(tmp_path) as own:
        own.take("a")
        held = own.held("a")
        assert held is not None
        claims.require_held(held)
        monkeypatch.setattr(claims, "EXPIRED_S", -1.0)
        monkeypatch.setattr(claims, "_where", lambda: "another machine")
        with Claims(tmp_path) as other:
            assert other.take("a", suspect=True).state is State.TAKEN
            with pytest.raises(claims.LostError, match="another process took a over"):
                claims.require_held(held)
            other.release("a")
        with pytest.raises(claims.LostError):
            claims.require_held(held)


def test_a_run_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    with Claims(tmp_path):
        (run,) = (tmp_path / "runs").iterdir()
        before = run.stat().st_mtime_ns
        until = time.monotonic() + 30
        while run.stat().st_mtime_ns == before:
            assert time.monotonic() < until
        run.unlink()  # somebody takes it for dead, and it isn't
        while not run.exists():
            assert time.monotonic() < until
    assert not run.exists()


def test_another_process_with_the_number_of_a_dead_one_is_not_it(tmp_path: Path) -> None:
    process = psutil.Process()
    assert claims._runs_here(process.pid, process.create_time())
    assert not claims._runs_here(process.pid, process.create_time() - 100)
    assert not claims._runs_here("1", 1.0) and not claims._runs_here(1, None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"run": 1, "death": "alone"}', '{"run": "../../a", "death": "alone"}']
)
def test_a_claim_that_is_cut_or_strange_is_a_dead_ones_when_it_is_old(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.1").write_text(text)
    with Claims(tmp_path) as own:
        os.utime(tmp_path / "a.1", (0, time.time() - claims.EXPIRED_S - 5))
        assert own.take("a").state is State.SUSPECT


KILLED = """
import os, signal, sys
from pathlib import Path
from segonnx.predict.claims import Claims

def hook(event, args):
    if ready and event == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

ready = False
sys.addaudithook(hook)
with Claims(Path(sys.argv[1])) as own:
    ready = True
    own.take(sys.argv[2])
"""


@pytest.mark.parametrize("event", ["os.link", "os.remove"])
def test_a_run_that_is_killed_while_it_claims_a_case_keeps_nobody_waiting(event: str, tmp_path: Path) -> None:
    """A cut claim names no run, and would be taken for a live one's until it is old."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "a", event], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Claims(tmp_path) as own:
        assert own.take("a").state is (State.TAKEN if event == "os.link" else State.SUSPECT)
        assert len(list((tmp_path / claims.RUNS).iterdir())) == 1  # ours; what the killed one began is gone
    assert json.loads((tmp_path / "a.1").read_text())["death"] in ("none", "among others")


def test_storage_without_hard_links_has_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("a").state is State.TAKEN
        assert other.take("a").state is State.ELSEWHERE
        one.release("a")
        assert other.take("a").state is State.TAKEN


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="can't write to"), Claims(tmp_path / "file"):
        pass
