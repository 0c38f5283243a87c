"""The result of a check, and the table of results that people read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger(__name__)

Status = Literal["ok", "warning", "failed"]

_WIDTH = 9
_NAME_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    :param name: what was checked, in a few words; unique on a host.
    :param status: ``warning``: the job runs, but something needs attention; ``failed``: it cannot run.
    :param found: what was found.
    :param fix: what to do, in one sentence; empty for ``ok``.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    """The result of a check that found nothing wrong."""
    return Check(name, "ok", found)


def has_failed(checks: Iterable[Check]) -> bool:
    """Whether a check failed. Warnings do not count."""
    return any(check.status == "failed" for check in checks)


def checked(name: str, check: Callable[[], Check]) -> Check:
    """Run a check. An error that it does not expect is a failed check, so that the others still run."""
    try:
        return check()
    except Exception as error:
        log.warning("the check %s ended with an error", name, exc_info=True)
        return Check(
            name,
            "failed",
            f"{type(error).__name__}: {error}",
            "no check expects this error: the log has its traceback",
        )


def table(title: str, results: Mapping[str, Sequence[Check]]) -> Iterator[str]:
    """The lines of a table.

    :param results: checks by the executor that made them. A check that came out alike everywhere takes one
        line; otherwise each line names its executors.
    """
    yield title
    for name in dict.fromkeys(check.name for checks in results.values() for check in checks):
        variants: dict[Check, list[str]] = {}
        for who, checks in results.items():
            for check in checks:
                if check.name == name:
                    variants.setdefault(check, []).append(who)
        for check, who_said in variants.items():
            place = f"{', '.join(who_said)}: " if len(variants) > 1 else ""
            yield f"  {check.status:<{_WIDTH}}{check.name:<{_NAME_WIDTH}} {place}{check.found}"
            if check.fix:
                yield f"  {'':<{_WIDTH}}{'':<{_NAME_WIDTH}} fix: {check.fix}"


def summary(checks: Iterable[Check]) -> str:
    """One line: how many checks failed and how many gave warnings."""
    found = [check.status for check in checks]
    failed, warnings = found.count("failed"), found.count("warning")
    return f"{len(found)} checks: {failed} failed, {warnings} with a warning"
