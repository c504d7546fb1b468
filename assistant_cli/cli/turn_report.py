"""One turn with all that is kept of it, for people, pipes and programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from . import output
from .history import describe_message, print_messages
from .turns import describe_turn

if TYPE_CHECKING:
    from ..store.turns import Step, TurnReport


def print_document(report: TurnReport) -> None:
    """Print one JSON document; the contents of steps are in it digit for digit."""
    turn = json.dumps(describe_turn(report.turn))
    messages = json.dumps([describe_message(message) for message in report.messages])
    steps = ", ".join(map(_describe_step, report.steps))
    output.print_json_text(
        f'{{"schema": 1, "turn": {turn}, "messages": {messages}, "steps": [{steps}]}}'
    )


def _describe_step(step: Step) -> str:
    facts = {"position": step.position, "kind": step.kind, "at": output.iso(step.at)}
    return f'{json.dumps(facts)[:-1]}, "content": {step.content}}}'


def print_lines(report: TurnReport) -> None:
    """Print a line a fact, a message and a step."""
    output.print_rows(describe_turn(report.turn).items())
    output.print_rows(
        ("message", m.created_at, m.conversation, m.role, m.state, m.content)
        for m in report.messages
    )
    for step in report.steps:
        # Not as a cell of print_rows, whose escapes are not those of JSON.
        facts = f"step\t{step.position}\t{step.kind}\t{output.iso(step.at)}"
        sys.stdout.write(f"{facts}\t{step.content}\n")


def print_readable(report: TurnReport) -> None:
    """Print it for people."""
    facts = describe_turn(report.turn)
    output.print_rows((name, value) for name, value in facts.items() if value is not None)
    if report.messages:
        sys.stdout.write("\n")
        print_messages(report.messages)
    for step in report.steps:
        sys.stdout.write(f"\n{output.local_time(step.at)}  {step.position} {step.kind}\n")
        output.print_json_text(step.content)
