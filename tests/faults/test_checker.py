"""The checker, on histories that are known to be right and known to be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from .checker import check
from .final import MARKER, Final
from .history import Delivery, History, Operation
from .linearizability import is_linearizable

When = tuple[int, int | None]


def call(name: str, when: When, answer: Any = None, **arguments: Any) -> Operation:
    """A call that was answered, or whose outcome is unknown where it has no second time."""
    called_at, answered_at = when
    if answered_at is None:
        return Operation("c", name, arguments, called_at)
    outcome = "refused" if isinstance(answer, str) and answer.endswith("Error") else "done"
    return Operation("c", name, arguments, called_at, answered_at, outcome, answer)  # type: ignore[arg-type]


def put(value: int, when: When, revision: int | None = None) -> Operation:
    return call("set", when, revision, key="k", value=value)


def get(when: When, answer: Any) -> Operation:
    return call("get", when, answer, key="k")


def replace_at(seen: int, value: int, when: When, answer: Any) -> Operation:
    return call("replace", when, answer, key="k", value=value, if_revision=seen)


def add(when: When, answer: str | None) -> Operation:
    return call("increment", when, answer, key="k", by=1)


def remove(when: When, answer: Any = None) -> Operation:
    return call("delete", when, answer, key="k")


RIGHT = {
    "reads see writes": [put(1, (0, 1), 10), get((2, 3), [1, 10])],
    "overlapping calls have either order": [
        put(1, (0, 5), 10),
        put(2, (1, 4), 9),
        get((6, 7), [1, 10]),
    ],
    "an unknown write happens late": [
        put(1, (0, None)),
        get((2, 3), None),
        get((4, 5), [1, 10]),
    ],
    "an unknown write never happens": [put(1, (0, None)), get((2, 3), None), get((4, 5), None)],
    "a write wins its race once": [
        put(1, (0, 1), 10),
        replace_at(10, 2, (2, 5), 11),
        replace_at(10, 3, (2, 5), "ConflictError"),
        get((6, 7), [2, 11]),
    ],
    "an unknown write makes another lose its race": [
        put(1, (0, 1), 10),
        replace_at(10, 2, (2, None), None),
        replace_at(10, 3, (3, 5), "ConflictError"),
    ],
    "nobody is told the revision of an increment": [
        add((0, 1), "1"),
        replace_at(1, 5, (2, 3), 2),
        add((4, 5), "6"),
        replace_at(1, 7, (6, 7), "ConflictError"),
        get((8, 9), [6, 3]),
    ],
    "unknown increments count or not": [
        add((0, 1), "1"),
        add((2, None), None),
        add((2, None), None),
        add((3, 4), "3"),
        get((5, 6), [3, 12]),
    ],
    "a key is created again": [
        put(1, (0, 1), 10),
        remove((2, 3)),
        call("create", (4, 5), 11, key="k", value=2),
        get((6, 7), [2, 11]),
    ],
}

WRONG = {
    "a stale read": [put(1, (0, 1), 10), put(2, (2, 3), 11), get((4, 5), [1, 10])],
    "a lost write": [put(1, (0, 1), 10), get((2, 3), None)],
    "a read of what nobody wrote": [put(1, (0, 1), 10), get((2, 3), [7, 11])],
    "a write that comes and goes": [
        put(1, (0, 1), 10),
        put(2, (2, None)),
        get((3, 4), [2, 11]),
        get((5, 6), [1, 10]),
    ],
    "two winners of a race": [
        put(1, (0, 1), 10),
        replace_at(10, 2, (2, 5), 11),
        replace_at(10, 3, (2, 5), 12),
    ],
    "a loser without a winner": [
        put(1, (0, 1), 10),
        replace_at(10, 2, (2, 3), "ConflictError"),
    ],
    "a race won with a revision from before an increment": [
        put(1, (0, 1), 10),
        add((2, 3), "2"),
        replace_at(10, 5, (4, 5), 12),
    ],
    "a lost increment": [add((0, 3), "1"), add((1, 4), "1")],
    "an unknown increment that counts twice": [add((0, None), None), add((1, 2), "3")],
    "a revision that goes back": [put(1, (0, 1), 10), put(2, (2, 3), 9)],
    "a refused write that happened": [
        put(1, (0, 1), 10),
        call("create", (2, 3), "ConflictError", key="k", value=2),
        get((4, 5), [2, 11]),
    ],
    "a removal of what was gone": [put(1, (0, 1), 10), remove((2, 3)), remove((4, 5))],
    "a write before it was asked for": [get((0, 1), [1, 10]), put(1, (2, 3), 10)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_history_that_one_order_explains_is_accepted(name: str) -> None:
    assert is_linearizable(RIGHT[name]) is True


@pytest.mark.parametrize("name", WRONG)
def test_a_history_that_no_order_explains_is_refused(name: str) -> None:
    assert is_linearizable(WRONG[name]) is False


def test_many_concurrent_calls_are_decided_soon() -> None:
    calls = [put(i, (i, i + 9), i + 100) for i in range(100)]
    unknown = [put(1000 + i, (i * 10, None)) for i in range(10)]
    last = get((200, 201), [99, 199])
    assert is_linearizable([*calls, *unknown, last]) is True
    assert is_linearizable([*calls, get((200, 201), [98, 198])]) is False


def deliver(key: str, value: Any, revision: int) -> Delivery:
    return Delivery("w", 1, key, value, revision)


END = deliver(MARKER, 0, 99)
STORED = Final(keys={"k/a": (2, 11), MARKER: (0, 99)}, watchers=["w"])


@pytest.mark.parametrize(
    ("deliveries", "violation"),
    [
        ([deliver("k/a", 1, 10), deliver("k/a", 2, 11), END], None),
        ([deliver("k/a", 2, 11), END], None),
        ([deliver("k/a", 1, 10), deliver("k/a", None, 10), deliver("k/a", 2, 11), END], None),
        ([deliver("k/b", 5, 9), deliver("k/b", None, 9), deliver("k/a", 2, 11), END], None),
        ([deliver("k/a", 1, 10), END], "the last of k/a"),
        ([END], "the last of k/a"),
        ([deliver("k/b", 5, 9), deliver("k/a", 2, 11), END], "deletion of k/b"),
        ([deliver("k/a", 2, 11), deliver("k/a", 1, 10), END], "came after revision 11"),
        ([deliver("k/a", 2, 11), deliver("k/a", 2, 11), END], "came after revision 11"),
        ([deliver("k/a", None, 10), deliver("k/a", 2, 11), END], "not what was shown before"),
        ([deliver("k/a", 7, 11), END], "was written as 2"),
        ([deliver("k/a", 2, 11)], "never came to the end"),
    ],
)
def test_a_watch_is_in_order_and_ends_with_what_is_stored(
    deliveries: list[Delivery], violation: str | None
) -> None:
    expect(violation, check(History([], deliveries), STORED))


def update(token: int, number: int, when: When, answer: Any = None) -> Operation:
    detail = f"{token} c {number}"
    return call("update", when, answer, agent="a", token=token, detail=detail)


def acquire(token: int, when: tuple[int, int]) -> Operation:
    return call("acquire", when, token, agents=["a"])


def timeline(*details: str, leases: dict[str, int] | None = None) -> Final:
    board = {"a": {"status": "idle", "detail": details[-1]}}
    return Final(board=board, board_events=[("a", d) for d in details], leases=leases or {})


HELD = [acquire(1, (0, 1)), update(1, 1, (2, 3)), acquire(2, (4, 5)), update(2, 1, (6, 7))]
READ = call("read", (8, 9), "1 c 1", agent="a")


@pytest.mark.parametrize(
    ("operations", "final", "violation"),
    [
        (HELD, timeline("1 c 1", "2 c 1"), None),
        ([*HELD, update(2, 2, (8, None))], timeline("1 c 1", "2 c 1", "2 c 2"), None),
        ([*HELD, update(1, 2, (8, 9), "LeaseLostError")], timeline("1 c 1", "2 c 1"), None),
        (HELD, timeline("1 c 1"), "lost the acknowledged update '2 c 1'"),
        (HELD, timeline("2 c 1", "1 c 1"), "wrote after the next one had begun"),
        (HELD, timeline("1 c 1", "2 c 1", "1 c 1"), "written twice"),
        (
            [*HELD, update(1, 2, (8, 9))],
            timeline("1 c 1", "1 c 2", "2 c 1"),
            "token 1 wrote after token 2",
        ),
        (
            [*HELD, update(1, 2, (8, 9), "LeaseLostError")],
            timeline("1 c 1", "1 c 2", "2 c 1"),
            "kept the refused update",
        ),
        (
            [*HELD, call("claim", (8, 9), [], agent="a", token=1)],
            timeline("1 c 1", "2 c 1"),
            "token 1 wrote after token 2",
        ),
        ([*HELD, acquire(2, (8, 9))], timeline("1 c 1", "2 c 1"), "given twice"),
        ([acquire(2, (0, 1)), acquire(1, (2, 3))], Final(), "went from 2 back to 1"),
        (HELD, timeline("1 c 1", "2 c 1", leases={"a": 1}), "went back to 1"),
        ([*HELD, READ], timeline("1 c 1", "2 c 1"), "was seen at its update 0 after 1"),
        (
            [*HELD, replace(READ, answer="9 c 9")],
            timeline("1 c 1", "2 c 1"),
            "which nobody wrote",
        ),
    ],
)
def test_a_board_is_one_order_of_its_updates_and_tokens_rise(
    operations: list[Operation], final: Final, violation: str | None
) -> None:
    expect(violation, check(History(operations, []), final))


def test_only_the_holder_writes_for_an_agent() -> None:
    holders = [(1, "a", "first"), (2, "a", "second")]
    writes = [("a", 1, "first"), ("a", 2, "second")]
    assert check(History([], []), Final(holders=holders, writes=writes)) == []
    late = [*writes, ("a", 2, "first")]
    assert check(History([], []), Final(holders=holders, writes=late)) == [
        "a: first wrote while second held it with token 2"
    ]
    again = [*writes, ("a", 1, "first")]
    assert check(History([], []), Final(holders=holders, writes=again)) == [
        "a: a write with token 1 came after one with 2"
    ]


def test_a_board_that_says_something_else_than_its_timeline_is_found() -> None:
    final = replace(timeline("1 c 1", "2 c 1"), board={"a": {"detail": "1 c 1"}})
    expect("board: a says '1 c 1'", check(History(HELD, []), final))


def message(number: int, reply: int | None, **changes: Any) -> dict[str, Any]:
    row = {"id": f"m{number}", "position": number, "conversation": "x", "role": "user"}
    answered = {"reply_id": reply and f"r{reply}", "state": "answered" if reply else "waiting"}
    return {**row, **answered, "content": f"text {number}", "source": "cli", **changes}


def reply(position: int, *numbers: int, **changes: Any) -> dict[str, Any]:
    content = "re: " + "\n".join(f"text {number}" for number in numbers)
    row = {"id": f"r{position}", "position": position, "conversation": "x", "role": "assistant"}
    said = {"reply_id": None, "state": "said", "source": "conversation"}
    return {**row, **said, "content": content, **changes}


def send(number: int, when: When) -> Operation:
    return call("send", when, f"m{number}", content=f"text {number}", conversation="x")


SENT = [send(1, (0, 1)), send(2, (2, 3)), send(3, (4, None))]


def test_messages_sent_at_the_same_time_may_be_answered_in_any_order() -> None:
    final = Final(messages=[message(1, 4), message(2, 3), reply(3, 2), reply(4, 1)])
    assert check(History([send(1, (0, 3)), send(2, (2, 4))], []), final) == []
    [violation] = check(History([send(1, (0, 1)), send(2, (2, 4))], []), final)
    assert "'text 2' was answered before an earlier one" in violation


@pytest.mark.parametrize(
    ("messages", "violation"),
    [
        ([message(1, 3), message(2, 3), reply(3, 1, 2)], None),
        ([message(1, 3), message(2, 4), reply(3, 1), reply(4, 2)], None),
        ([message(1, 4), message(2, 4), message(3, 4), reply(4, 1, 2, 3)], None),
        ([message(2, 3), reply(3, 2)], "'text 1' was acknowledged and is lost"),
        ([message(1, 3), message(2, None), reply(3, 1)], "is waiting and has no answer"),
        ([message(1, 3), message(2, 4), reply(3, 2), reply(4, 2)], "answered 0 times"),
        ([message(1, 3), message(2, 4), reply(3, 1), reply(4, 1, 2)], "'text 1' was answered 2"),
        ([message(1, 4), message(2, 3), reply(3, 2), reply(4, 1)], "before an earlier one"),
        (
            [message(1, 4), message(2, 4), message(9, 4, content="text 1"), reply(4, 1, 2)],
            "kept 2 times",
        ),
        (
            [message(1, 3), message(2, 3), reply(3, 1, 2, conversation="y")],
            "answered in another conversation",
        ),
        (
            [message(1, 5, position=2), message(2, 5, position=1), reply(5, 1, 2)],
            "the order of messages in x",
        ),
    ],
)
def test_a_message_that_was_acknowledged_is_answered_once_and_in_order(
    messages: list[dict[str, Any]], violation: str | None
) -> None:
    expect(violation, check(History(SENT, []), Final(messages=messages)))


def test_a_reply_that_was_seen_is_the_one_that_is_kept() -> None:
    seen = call("reply", (5, 6), "re: another", message="m1")
    kept = Final(messages=[message(1, 3), message(2, 3), reply(3, 1, 2)])
    expect("which is not kept", check(History([*SENT, seen], []), kept))


@pytest.mark.parametrize(
    ("turns", "violation"),
    [
        ([(1, "done"), (1, "failed"), (2, "done")], None),
        ([(2, "done"), (1, "done")], "begun by a holder before the last"),
        ([(1, "running")], "still open"),
    ],
)
def test_turns_are_closed_and_begun_under_rising_tokens(
    turns: list[tuple[int, str]], violation: str | None
) -> None:
    rows = [
        {"id": number, "agent": "conversation", "token": token, "outcome": outcome}
        for number, (token, outcome) in enumerate(turns)
    ]
    expect(violation, check(History([], []), Final(turns=rows)))


@pytest.mark.parametrize(
    ("firings", "said", "violation"),
    [
        ([(10.0, 1), (11.0, 3), (14.0, 1)], 3, None),
        ([(10.0, 1), (12.0, 3)], 2, "the firing at 10 stands for 1 s"),
        ([(10.0, 1), (11.0, 3), (14.0, 1)], 4, "was said 4 times"),
        ([(10.0, 1), (11.0, 3)], 2, "the next is at 15"),
    ],
)
def test_each_time_of_a_schedule_is_fired_for_once(
    firings: list[tuple[float, int]], said: int, violation: str | None
) -> None:
    final = Final(firings=firings, next_firing=15.0, said=said)
    expect(violation, check(History([], []), final))


def expect(violation: str | None, found: list[str]) -> None:
    """Exactly the violation expected, or none."""
    if violation is None:
        assert found == []
    else:
        assert any(violation in line for line in found), found
