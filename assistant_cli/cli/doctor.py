"""`assistant doctor`: what is configured, reachable and set up, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from . import output
from .commands import Command
from .session import JsonOption, run_async, settings

if TYPE_CHECKING:
    from ..diagnosis import Finding


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check everything a run needs; start and change nothing.

    A line a check: ok or problem, the check, what was found, and what to do. Exits with the
    code of the first problem.
    """
    findings = run_async(_diagnose)
    if as_json:
        output.print_document({"schema": 1, "checks": [_describe(f) for f in findings]})
    else:
        output.print_rows(_row(finding) for finding in findings)
    problems = [finding.problem for finding in findings if finding.problem is not None]
    if problems:
        raise typer.Exit(problems[0].exit_code)


async def _diagnose() -> list[Finding]:
    from ..diagnosis import diagnose

    return [finding async for finding in diagnose(settings())]


def _row(finding: Finding) -> list[object]:
    state = "ok" if finding.problem is None else "problem"
    return [state, finding.check, finding.result, *filter(None, [finding.problem])]


def _describe(finding: Finding) -> dict[str, str | bool | None]:
    problem = finding.problem
    return {
        "check": finding.check,
        "ok": problem is None,
        "result": finding.result,
        "problem": None if problem is None else str(problem),
    }
