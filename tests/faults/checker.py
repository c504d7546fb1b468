"""Decides whether what clients were told can be true of a correct system.

`check` returns violations, one line each; none means that the history and what was found in the
end agree with the promises.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from .final import MARKER, Final
from .history import Delivery, History, Operation
from .linearizability import is_linearizable

_KEY_CALLS = {"get", "set", "replace", "create", "increment", "delete"}


def check(history: History, final: Final) -> list[str]:
    """All violations."""
    return [
        *check_keys(history.operations, final),
        *check_watches(history, final),
        *check_leases(history.operations, final),
        *check_writes(final),
        *check_board(history.operations, final),
        *check_messages(history.operations, final),
        *check_turns(final),
        *check_firings(final),
    ]


# Keys


def check_keys(operations: Iterable[Operation], final: Final) -> Iterator[str]:
    """Each key must be linearizable, with strictly rising revisions."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.name in _KEY_CALLS:
            by_key[operation.arguments["key"]].append(operation)
    for key, calls in sorted(by_key.items()):
        end = max(max(call.called_at, call.answered_at or 0) for call in calls) + 1
        stored = final.keys.get(key)
        read = Operation("final", "get", {"key": key}, end, end + 1, "done", stored)
        explained = is_linearizable([*calls, read])
        if explained is None:
            yield f"key {key}: {len(calls)} calls are too many to decide about"
        elif not explained:
            yield f"key {key}: no order of its {len(calls)} calls explains the answers"


# Watches


def check_watches(history: History, final: Final) -> Iterator[str]:
    """Revisions rise, values are those written, and the last one delivered is the final one."""
    values = _values(history.operations, final)
    sessions: dict[tuple[str, int], list[Delivery]] = defaultdict(list)
    for delivery in history.deliveries:
        sessions[delivery.client, delivery.watch].append(delivery)
    for (client, watch), deliveries in sessions.items():
        name = f"watch {watch} of {client}"
        last: dict[str, Delivery] = {}
        for delivery in deliveries:
            yield from _check_delivery(name, delivery, last.get(delivery.key), values)
            last[delivery.key] = delivery
        if MARKER in last:
            yield from _check_end(name, last, final)
    finished = {d.client for d in history.deliveries if d.key == MARKER}
    for client in sorted(set(final.watchers) - finished):
        yield f"watcher {client} never came to the end"


def _check_delivery(
    name: str, delivery: Delivery, before: Delivery | None, values: dict[tuple[str, int], Any]
) -> Iterator[str]:
    what = f"{delivery.key} at revision {delivery.revision}"
    if delivery.value is None:
        if before is None or before.value is None or before.revision != delivery.revision:
            yield f"{name}: {what} was deleted, but was not what was shown before"
        return
    if before is not None and delivery.revision <= before.revision:
        yield f"{name}: {what} came after revision {before.revision}"
    known = values.setdefault((delivery.key, delivery.revision), delivery.value)
    if known != delivery.value:
        yield f"{name}: {what} is {delivery.value}, but was written as {known}"


def _check_end(name: str, last: dict[str, Delivery], final: Final) -> Iterator[str]:
    for key, delivery in last.items():
        if delivery.value is not None and key not in final.keys:
            yield f"{name}: the deletion of {key} was never delivered"
    for key, (value, revision) in final.keys.items():
        shown = last.get(key)
        if shown is None or (shown.value, shown.revision) != (value, revision):
            yield f"{name}: the last of {key} was never delivered, revision {revision}"


def _values(operations: Iterable[Operation], final: Final) -> dict[tuple[str, int], Any]:
    values = {(key, revision): value for key, (value, revision) in final.keys.items()}
    for call in operations:
        if call.outcome != "done" or call.name not in _KEY_CALLS or call.answer is None:
            continue
        key = call.arguments["key"]
        if call.name == "get":
            values[key, call.answer[1]] = call.answer[0]
        elif call.name in {"set", "create", "replace"}:
            values[key, call.answer] = call.arguments["value"]
    return values


# Leases and the board


def check_leases(operations: Iterable[Operation], final: Final) -> Iterator[str]:
    """Tokens rise with every holder, and nobody writes under one that was taken over."""
    calls = list(operations)
    acquired = [c for c in calls if c.name == "acquire" and c.outcome == "done"]
    tokens = [call.answer for call in acquired]
    if len(tokens) != len(set(tokens)):
        yield "a lease token was given twice"
    for agent in sorted({agent for call in acquired for agent in call.arguments["agents"]}):
        held = [call for call in acquired if agent in call.arguments["agents"]]
        yield from _check_rising(
            f"the token of {agent}", [(c.called_at, c.answered_at or 0, c.answer) for c in held]
        )
        if held and final.leases.get(agent, math.inf) < max(call.answer for call in held):
            yield f"the token of {agent} went back to {final.leases[agent]} in the end"
        yield from _check_fence(agent, held, calls)


def _check_fence(agent: str, held: list[Operation], calls: list[Operation]) -> Iterator[str]:
    for call in calls:
        if call.name not in {"update", "claim"} or call.outcome != "done":
            continue
        if call.arguments["agent"] != agent:
            continue
        token = call.arguments["token"]
        taken = [h for h in held if h.answer > token and (h.answered_at or 0) < call.called_at]
        if taken:
            yield f"{agent}: token {token} wrote after token {taken[0].answer} was given"


def _check_rising(name: str, given: Iterable[tuple[int, int, int]]) -> Iterator[str]:
    """What was given (called, answered, number) must rise where one call followed another."""
    made = sorted(given)
    answered = sorted(made, key=lambda call: call[1])
    largest, place = -1, 0
    for called_at, _, number in made:
        while answered[place][1] < called_at:
            largest = max(largest, answered[place][2])
            place += 1
        if number <= largest:
            yield f"{name} went from {largest} back to {number}"


def check_writes(final: Final) -> Iterator[str]:
    """What was accepted for an agent that is held was written by its holder, and by one only."""
    holders = {(agent, token): holder for token, agent, holder in final.holders}
    newest: dict[str, int] = defaultdict(int)
    for agent, token, writer in final.writes:
        holder = holders.get((agent, token))
        if writer != holder:
            yield f"{agent}: {writer} wrote while {holder} held it with token {token}"
        if token < newest[agent]:
            yield f"{agent}: a write with token {token} came after one with {newest[agent]}"
        newest[agent] = max(newest[agent], token)


def check_board(operations: Iterable[Operation], final: Final) -> Iterator[str]:
    """The timeline of an agent is one order of its updates that explains what was seen.

    The detail of each update says `<token> <client> <number>` and occurs once.
    """
    updates: dict[str, list[Operation]] = defaultdict(list)
    reads: dict[str, list[Operation]] = defaultdict(list)
    for call in operations:
        if call.name == "update":
            updates[call.arguments["agent"]].append(call)
        elif call.name == "read" and call.outcome == "done":
            reads[call.arguments["agent"]].append(call)
    for agent, calls in updates.items():
        details = [d for name, d in final.board_events if name == agent and d is not None]
        yield from _check_timeline(agent, calls, reads[agent], details)
        stored = (final.board.get(agent) or {}).get("detail")
        if stored != (details[-1] if details else None):
            yield f"board: {agent} says {stored!r} in the end, its timeline {details[-1:]}"


def _check_timeline(
    agent: str, updates: list[Operation], reads: list[Operation], details: list[str]
) -> Iterator[str]:
    places = {detail: place for place, detail in enumerate(details)}
    if len(places) < len(details):
        yield f"board: an update of {agent} was written twice"
    tokens = [int(detail.split()[0]) for detail in details]
    if tokens != sorted(tokens):
        yield f"board: a holder of {agent} wrote after the next one had begun"
    written = []
    for call in updates:
        place = places.get(call.arguments["detail"])
        if call.outcome == "done" and place is None:
            yield f"board: {agent} lost the acknowledged update {call.arguments['detail']!r}"
        if call.outcome == "refused" and place is not None:
            yield f"board: {agent} kept the refused update {call.arguments['detail']!r}"
        if call.outcome == "done" and place is not None:
            written.append((call.called_at, call.answered_at or 0, place))
    yield from _check_rising(f"board: the timeline of {agent}", written)
    yield from _check_reads(agent, reads, written, places)


def _check_reads(
    agent: str,
    reads: list[Operation],
    written: list[tuple[int, int, int]],
    places: dict[str, int],
) -> Iterator[str]:
    """A read shows nothing older than what was acknowledged or read before it was made."""
    seen = list(written)
    for call in reads:
        if call.answer is not None and call.answer not in places:
            yield f"board: {agent} was read as {call.answer!r}, which nobody wrote"
        elif call.answer is not None:
            seen.append((call.called_at, call.answered_at or 0, places[call.answer]))
    answered = sorted(seen, key=lambda call: call[1])
    newest, place = -1, 0
    for called_at, _, shown in sorted(seen):
        while answered[place][1] < called_at:
            newest = max(newest, answered[place][2])
            place += 1
        if shown < newest:
            yield f"board: {agent} was seen at its update {shown} after {newest}"


# Messages and turns


def check_messages(operations: Iterable[Operation], final: Final) -> Iterator[str]:
    """What was acknowledged is kept once and answered once, in order within a conversation.

    The texts of messages occur once, and the model repeats them in its reply, a line each.
    """
    calls = [call for call in operations if call.name == "send"]
    kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in final.messages:
        if row["role"] == "user":
            kept[row["content"]].append(row)
    for call in calls:
        rows = kept[call.arguments["content"]]
        if call.outcome == "done" and not rows:
            yield f"message {call.arguments['content']!r} was acknowledged and is lost"
        if len(rows) > 1:
            yield f"message {call.arguments['content']!r} is kept {len(rows)} times"
    yield from _check_answers(final)
    yield from _check_order(calls, final)
    yield from _check_seen_replies(operations, final)
    positions = {text: rows[0]["position"] for text, rows in kept.items() if rows}
    for conversation in {call.arguments["conversation"] for call in calls}:
        yield from _check_rising(
            f"the order of messages in {conversation}",
            [
                (call.called_at, call.answered_at, positions[call.arguments["content"]])
                for call in calls
                if call.arguments["conversation"] == conversation
                and call.answered_at is not None
                and call.arguments["content"] in positions
            ],
        )


def _check_answers(final: Final) -> Iterator[str]:
    replies = {row["id"]: row for row in final.messages if row["source"] == "conversation"}
    said: dict[str, int] = defaultdict(int)
    for reply in replies.values():
        for line in reply["content"].splitlines():
            said[line.removeprefix("re: ")] += 1
    for row in final.messages:
        if row["role"] != "user":
            continue
        name = f"message {row['content']!r}"
        found = replies.get(row["reply_id"] or "")
        if row["state"] != "answered" or found is None:
            yield f"{name} is {row['state']} and has no answer"
            continue
        if found["conversation"] != row["conversation"]:
            yield f"{name} was answered in another conversation"
        if said[row["content"]] != 1:
            yield f"{name} was answered {said[row['content']]} times"


def _check_order(calls: Iterable[Operation], final: Final) -> Iterator[str]:
    """What was sent after another message was acknowledged is not answered before it.

    Messages that were sent at the same time may be answered in any order, whatever their positions.
    Those that no call tells of came one after the other.
    """
    sent = {c.arguments["content"]: (c.called_at, c.answered_at or math.inf) for c in calls}
    places = {row["id"]: row["position"] for row in final.messages}
    talks: dict[str, list[tuple[float, float, int, str]]] = defaultdict(list)
    for row in final.messages:
        if row["role"] == "user" and row["reply_id"] in places and row["id"] not in final.retried:
            times = sent.get(row["content"], (row["position"], row["position"]))
            talk = talks[row["conversation"]]
            talk.append((*times, places[row["reply_id"]], row["content"]))
    for talk in talks.values():
        acknowledged = sorted(talk, key=lambda message: message[1])
        last, index = -1, 0
        for called_at, _, reply, content in sorted(talk):
            while acknowledged[index][1] < called_at:
                last = max(last, acknowledged[index][2])
                index += 1
            if reply < last:
                yield f"message {content!r} was answered before an earlier one"


def _check_seen_replies(operations: Iterable[Operation], final: Final) -> Iterator[str]:
    contents = {row["id"]: row["content"] for row in final.messages}
    replies = {row["id"]: contents.get(row["reply_id"] or "") for row in final.messages}
    for call in operations:
        if call.name == "reply" and call.outcome == "done":
            message = call.arguments["message"]
            if replies.get(message) != call.answer:
                yield f"message {message} was answered with {call.answer!r}, which is not kept"


def check_turns(final: Final) -> Iterator[str]:
    """Turns are closed, and nobody began one under a token that was taken over."""
    newest: dict[str, int] = defaultdict(int)
    for turn in final.turns:
        if turn["outcome"] == "running":
            yield f"turn {turn['id']} of {turn['agent']} is still open"
        if turn["token"] < newest[turn["agent"]]:
            yield f"turn {turn['id']} was begun by a holder before the last"
        newest[turn["agent"]] = max(newest[turn["agent"]], turn["token"])


def check_firings(final: Final) -> Iterator[str]:
    """Each second of the schedule was fired for, alone or with others, and said once."""
    if final.said != len(final.firings):
        yield f"the schedule fired {len(final.firings)} times and was said {final.said} times"
    following = [at for at, _ in final.firings[1:]] + [final.next_firing]
    for (at, times), after in zip(final.firings, following, strict=False):
        if round(after - at) != times:
            yield f"the firing at {at:.0f} stands for {times} s, and the next is at {after:.0f}"
