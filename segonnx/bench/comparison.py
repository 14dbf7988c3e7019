"""One result held against an older one, machine by machine and row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segonnx.bench import machines, stats
from segonnx.bench.machines import Machines
from segonnx.bench.result import OK, Result, Row
from segonnx.errors import InputError

FAILED = "failed"


@dataclass(frozen=True)
class Change:
    """What became of one model in one runtime.

    Attributes:
        model, backend, input_shape, threads: which row.
        old_s: median seconds before; None where it had failed.
        new_s: median seconds now; None where it failed.
        speedup: old over new: above 1 the new one is faster.
        ci95: its 95 % interval; None where there are too few rounds.
        verdict: ``faster``, ``slower``, ``no difference``, ``failed`` (it was ok before), or None without an interval.
        regression: whether it failed, or is slower by more than is allowed.
    """

    model: str
    backend: str
    input_shape: tuple[int, ...]
    threads: int
    old_s: float | None
    new_s: float | None
    speedup: float | None
    ci95: tuple[float, float] | None
    verdict: str | None
    regression: bool


@dataclass(frozen=True)
class Comparison:
    """Two results, compared.

    Attributes:
        changes: one for every row that both have.
        only_old, only_new: what one alone has.
        versions: packages whose versions differ, with both.
        fail_above: the slowdown that is allowed, as a fraction.
        ignored: reasons against comparing them that were overruled.
    """

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    versions: dict[str, tuple[str | None, str | None]]
    fail_above: float
    ignored: list[str]

    @property
    def regressions(self) -> list[Change]:
        """The rows that failed or are slower by more than is allowed."""
        return [change for change in self.changes if change.regression]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self) | {"regressions": len(self.regressions)}


@dataclass(frozen=True)
class Comparisons:
    """Two results, compared machine by machine.

    Attributes:
        machines: the comparison of each machine that both have, by its title.
        only_old, only_new: titles of the machines that one alone has.
    """

    machines: dict[str, Comparison]
    only_old: list[str]
    only_new: list[str]

    @property
    def several(self) -> bool:
        """Whether either result has more than one machine."""
        return len(self.machines) + max(len(self.only_old), len(self.only_new)) > 1

    @property
    def changes(self) -> list[tuple[str, Change]]:
        """What became of each row, with the title of its machine."""
        return [(title, change) for title, own in self.machines.items() for change in own.changes]

    @property
    def regressions(self) -> list[tuple[str, Change]]:
        """The rows that failed or are slower by more than is allowed, each with the title of its machine."""
        return [(title, change) for title, change in self.changes if change.regression]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file: of one machine as that of a ``Comparison``."""
        own = {title: comparison.as_dict() for title, comparison in self.machines.items()}
        if not self.several:
            return next(iter(own.values()))
        return {
            "machines": own,
            "only_old": self.only_old,
            "only_new": self.only_new,
            "regressions": len(self.regressions),
        }


def compare_machines(old: Machines, new: Machines, fail_above: float = 0.05, *, force: bool = False) -> Comparisons:
    """Compare every row that both results have of one machine. No row is held against another machine's.

    Args:
        old: the baseline.
        new: what is held against it.
        fail_above: the slowdown that is allowed: 0.05 is 5 %.
        force: compare what was measured under different conditions, too; and where each result has one machine left
            that the other doesn't have, these two.

    Raises:
        InputError: the results can't be compared; the message gives every reason.
    """
    pairs = _pairs(old.results, new.results)
    left = [one for one in old.results if not any(one is first for first, _ in pairs)]
    others = [one for one in new.results if not any(one is second for _, second in pairs)]
    alone = len(old.results) == len(new.results) == 1  # its refusal says what differs
    if len(left) == len(others) == 1 and (force or alone):
        pairs, left, others = [*pairs, (left[0], others[0])], [], []
    if not pairs:
        raise InputError(
            f"the results have no machine in common: the old one has {'; '.join(old.titles)}, the new one "
            f"{'; '.join(new.titles)}"
        )
    names = {id(one): title for found in (old, new) for one, title in zip(found.results, found.titles, strict=True)}
    compared = {}
    for first, second in pairs:
        title = names[id(second)]
        try:
            compared[title] = compare(first, second, fail_above, force=force)
        except InputError as error:
            raise error if alone else InputError(f"{title}: {error}") from error
    return Comparisons(compared, [names[id(one)] for one in left], [names[id(one)] for one in others])


def _pairs(old: Sequence[Result], new: Sequence[Result]) -> list[tuple[Result, Result]]:
    """The results of one kind of machine; then those of one hardware, where no third one is of that.

    Versions of libraries may be what is compared, and may be all that tells two kinds apart.
    """
    pairs = [(one, other) for one in old for other in new if not machines.unlike(one.machine, other.machine)]
    left = [one for one in old if not any(one is first for first, _ in pairs)]
    others = [one for one in new if not any(one is second for _, second in pairs)]
    alike = [
        (one, other) for one in left for other in others if not machines.other_hardware(one.machine, other.machine)
    ]
    return pairs + [
        (first, second) for first, second in alike if sum(first is one or second is other for one, other in alike) == 1
    ]


def compare(old: Result, new: Result, fail_above: float = 0.05, *, force: bool = False) -> Comparison:
    """Compare every row that two results of one machine have.

    A row is a regression if its time grew by more than ``fail_above`` and the interval of the ratio excludes 1, or if
    it was ok and failed.

    Args:
        old: the baseline.
        new: what is held against it.
        fail_above: the slowdown that is allowed: 0.05 is 5 %.
        force: compare what was measured under different conditions, too.

    Raises:
        InputError: the results can't be compared; the message gives every reason.
    """
    before, after = _by_key(old), _by_key(new)
    common = [key for key in before if key in after]
    if not common:
        raise InputError("the results have no row in common (model, input shape, threads and runtime)")
    reasons = _reasons(old, new)
    for key in common:
        reasons += _row_reasons(before[key], after[key])
    if reasons and not force:
        shown = "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
        raise InputError(f"these results can't be compared: {shown} (--force compares them nevertheless)")
    ours, theirs = old.machine["versions"], new.machine["versions"]
    return Comparison(
        changes=[_change(before[key], after[key], fail_above) for key in common],
        only_old=[_name(before[key]) for key in before if key not in after],
        only_new=[_name(after[key]) for key in after if key not in before],
        versions={
            name: (ours.get(name), theirs.get(name))
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        },
        fail_above=fail_above,
        ignored=reasons,
    )


def _by_key(result: Result) -> dict[Any, Row]:
    return {(row.case, row.backend): row for row in result.rows}


def _name(row: Row) -> str:
    return f"{row.model} {'x'.join(map(str, row.input_shape))} {row.threads} threads {row.backend}"


def _reasons(old: Result, new: Result) -> list[str]:
    """What differs between the machines and the ways of measuring."""
    reasons = machines.other_hardware(old.machine, new.machine)
    if old.autocast != new.autocast:
        reasons.append(f"autocast was {old.settings.get('autocast')}, is {new.settings.get('autocast')}")
    return reasons


def _row_reasons(old: Row, new: Row) -> list[str]:
    if OK not in (old.status, new.status):
        return []
    reasons = []
    if old.input_sha256 != new.input_sha256:
        reasons.append(f"{_name(new)} had another input")
    if OK == old.status == new.status:
        reasons += [
            f"{_name(new)}: {key} was {old.settings.get(key)}, is {new.settings.get(key)}"
            for key in sorted(
                (old.settings.keys() | new.settings.keys()) - {"version"}
            )  # versions are what is compared
            if old.settings.get(key) != new.settings.get(key)
        ]
    return reasons


def _change(old: Row, new: Row, fail_above: float) -> Change:
    fine = new.status == OK and bool(new.rounds)
    was_fine = old.status == OK and bool(old.rounds)
    speedup = interval = None
    verdict: str | None = None
    regression = False
    if fine and was_fine:
        speedup, interval = stats.ratio_of_runs(old.rounds, new.rounds, old.rounds_per_process, new.rounds_per_process)
        verdict = stats.verdict(interval)
        regression = verdict == "slower" and 1 / speedup - 1 > fail_above
    elif was_fine:
        verdict, regression = FAILED, True
    return Change(
        model=new.model,
        backend=new.backend,
        input_shape=new.input_shape,
        threads=new.threads,
        old_s=old.median_s if was_fine else None,
        new_s=new.median_s if fine else None,
        speedup=speedup,
        ci95=interval,
        verdict=verdict,
        regression=regression,
    )
