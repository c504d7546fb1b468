"""The inbox: kept before it is acknowledged, claimed in order, answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from math import inf
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from assistant_cli.errors import (
    AgentFailedError,
    BadDataError,
    ConflictError,
    DatabaseUnreachableError,
    LeaseLostError,
    NotFoundError,
    QueueFullError,
    TurnClosedError,
)
from assistant_cli.messages import AddSchedule, Remember, Reply, Turn, Usage
from assistant_cli.store import answering, inbox, leases, turns
from assistant_cli.store.board import IDLE, StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease
from assistant_cli.timing import Timing

from .hosting import rows, until_equal, worker_of

PAUSE = timedelta(seconds=5)


@pytest.fixture
async def lease(database: Database) -> Lease:
    return await leases.acquire(database, ["conversation"])


async def put(database: Database, text: str, conversation: str = "main", **given: Any) -> UUID:
    return await inbox.put_message(database, text, conversation=conversation, **given)


async def claim(database: Database, lease: Lease) -> Turn:
    [turn] = await claim_turns(database, lease)
    return turn


async def claim_turns(database: Database, lease: Lease, limit: int = 1) -> Sequence[Turn]:
    return await worker_of(database, lease).claim("offline", limit)


async def seconds_to_next(database: Database, lease: Lease) -> float | None:
    """What a worker knows that finds nothing to begin."""
    worker = worker_of(database, lease)
    assert await worker.claim("offline") == []
    return worker.seconds_to_next


async def answer(database: Database, lease: Lease, turn: Turn, replies: list[Reply]) -> None:
    await worker_of(database, lease).keep(turn, replies)


async def fail(database: Database, lease: Lease, turn: Turn, outcome: Any = "failed") -> None:
    await answering.fail_turn(database, lease.token, turn, outcome, "no luck", PAUSE)


async def retry_now(database: Database) -> None:
    await rows(database, "UPDATE assistant.messages SET retry_at = now() WHERE retry_at > now()")


def texts(turn: Turn | None) -> list[str]:
    return [message.content for message in turn.messages] if turn else []


async def states(database: Database) -> list[Any]:
    return await rows(
        database,
        "SELECT content, state, attempts FROM assistant.messages WHERE role = 'user' "
        "ORDER BY position",
    )


async def test_a_message_is_committed_when_its_id_is_returned(database: Database, dsn: str) -> None:
    message = await put(database, "hello\nthere")
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        found = await other.execute("SELECT id, content, role, state FROM assistant.messages")
        assert await found.fetchall() == [(message, "hello\nthere", "user", "waiting")]


async def test_a_message_sent_again_under_its_id_is_kept_once(database: Database) -> None:
    sent = [put(database, "hello", external_id="mail-1") for _ in range(20)]
    assert len(set(await asyncio.gather(*sent))) == 1
    assert await states(database) == [("hello", "waiting", 0)]


@pytest.mark.parametrize(("text", "conversation"), [("bye", "main"), ("hello", "work")])
async def test_another_message_under_the_same_id_is_refused(
    database: Database, text: str, conversation: str
) -> None:
    await put(database, "hello", external_id="mail-1")
    with pytest.raises(ConflictError, match=r"mail-1"):
        await put(database, text, conversation, external_id="mail-1")
    assert len(await states(database)) == 1


async def test_an_id_is_the_sources_own(database: Database) -> None:
    await put(database, "hello", external_id="1")
    await put(database, "bye", external_id="1", source="discord")
    assert len(await states(database)) == 2


@pytest.mark.parametrize("text", ["", " \n\t", "a\x00b", "a\ud800b", "x" * 256_001, "ü" * 128_001])
async def test_what_cannot_be_kept_is_refused(database: Database, text: str) -> None:
    with pytest.raises(BadDataError):
        await put(database, text)
    assert await states(database) == []


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1bb", "\x00", "\udcff", "x" * 201])
async def test_bad_names_are_refused(database: Database, name: str) -> None:
    with pytest.raises(BadDataError, match=r"conversation|NUL|UTF-8"):
        await put(database, "hello", name)
    with pytest.raises(BadDataError, match=r"message id|NUL|UTF-8"):
        await put(database, "hello", external_id=name)


async def fill_queue(database: Database, count: int = 1_000) -> None:
    await rows(
        database,
        "INSERT INTO assistant.messages "
        "(id, conversation, role, content, source, external_id, state) "
        "SELECT gen_random_uuid(), 'main', 'user', n::text, 'cli', n::text, 'waiting' "
        "FROM generate_series(1, %s) AS n",
        count,
    )


async def test_no_more_wait_in_a_conversation_than_may(database: Database, lease: Lease) -> None:
    await fill_queue(database)
    with pytest.raises(QueueFullError, match=r"1000 messages wait .*; nothing was kept, try again"):
        await put(database, "hello")
    assert len(await states(database)) == 1_000
    await put(database, "hello", "work")
    assert len(texts(await claim(database, lease))) == 100
    await put(database, "hello")


async def test_one_that_waits_already_is_known_under_its_id_where_no_more_may(
    database: Database,
) -> None:
    await fill_queue(database)
    known = await rows(database, "SELECT id FROM assistant.messages WHERE external_id = '7'")
    assert [await put(database, "7", external_id="7")] == known
    with pytest.raises(ConflictError):
        await put(database, "8", external_id="7")
    with pytest.raises(QueueFullError):
        await put(database, "7", external_id="7", source="discord")


async def test_plain_sql_cannot_make_more_wait_either(database: Database) -> None:
    with pytest.raises(QueueFullError):
        await fill_queue(database, 1_001)
    assert await states(database) == []


async def test_plain_sql_cannot_make_a_message_larger_either(database: Database) -> None:
    insert = (
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), 'main', 'user', repeat('\u00fc', %s), 'psql', 'waiting')"
    )
    await rows(database, insert, 128_000)
    with pytest.raises(BadDataError, match="at most 256,000 bytes; this has 256002"):
        await rows(database, insert, 128_001)
    assert len(await states(database)) == 1


async def test_turns_that_fail_give_back_to_a_queue_that_is_full(
    database: Database, lease: Lease
) -> None:
    await fill_queue(database)
    turn = await claim(database, lease)
    for number in range(100):
        await put(database, f"more {number}")
    await fail(database, lease, turn)
    assert {state for _, state, _ in await states(database)} == {"waiting"}
    with pytest.raises(QueueFullError):
        await put(database, "hello")


async def test_the_largest_message_is_kept_as_it_is(database: Database, lease: Lease) -> None:
    text = "ü" * 128_000
    await put(database, text)
    assert texts(await claim(database, lease)) == [text]


async def test_all_messages_of_the_conversation_that_waits_longest_are_one_turn(
    database: Database, lease: Lease
) -> None:
    for text, conversation in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"), ("5", "a")]:
        await put(database, text, conversation)
    turns = [turn for _ in range(4) for turn in await claim_turns(database, lease)]
    assert [texts(turn) for turn in turns] == [["1", "3", "5"], ["2"], ["4"]]
    assert [turn.conversation for turn in turns] == ["a", "b", "c"]


async def test_a_turn_is_not_without_bound(database: Database, lease: Lease) -> None:
    for number in range(103):
        await put(database, str(number))
    turn = await claim(database, lease)
    assert texts(turn) == [str(number) for number in range(100)]
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    assert texts(await claim(database, lease)) == ["100", "101", "102"]


async def test_a_message_committed_late_is_not_skipped(
    database: Database, lease: Lease, dsn: str
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as slow:
        await slow.execute(
            "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
            "VALUES (%s, 'main', 'user', 'early', 'test', 'waiting')",
            [uuid4()],
        )
        await put(database, "late")
        turn = await claim(database, lease)
        assert texts(turn) == ["late"]
        await slow.commit()
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    assert texts(await claim(database, lease)) == ["early"]


async def test_several_conversations_are_claimed_at_once(database: Database, lease: Lease) -> None:
    for text, conversation in [("1", "b"), ("2", "a"), ("3", "b"), ("4", "c")]:
        await put(database, text, conversation)
    turns = await claim_turns(database, lease, limit=2)
    assert [(turn.conversation, texts(turn)) for turn in turns] == [("b", ["1", "3"]), ("a", ["2"])]
    assert [texts(turn) for turn in await claim_turns(database, lease, limit=2)] == [["4"]]


async def test_a_conversation_waits_for_its_running_turn(database: Database, lease: Lease) -> None:
    await put(database, "1")
    turn = await claim(database, lease)
    await put(database, "2")
    other = await leases.acquire(database, ["conversation@b"])
    for worker in (lease, other):
        assert await claim_turns(database, worker, limit=9) == []
        assert await seconds_to_next(database, worker) == inf
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    [turn] = await claim_turns(database, other)
    assert (turn.agent, texts(turn)) == ("conversation@b", ["2"])


async def test_workers_that_claim_at_once_share_the_inbox(
    database: Database, lease: Lease, dsn: str
) -> None:
    workers = [lease] + [await leases.acquire(database, [f"conversation@{n}"]) for n in range(7)]
    for number in range(200):
        await put(database, str(number), f"c{number % 40}")

    async def work(worker: Lease) -> list[Turn]:
        claimed: list[Turn] = []
        while len(mine := await claim_turns(database, worker, limit=3)) or await left():
            claimed += mine
        return claimed

    async def left() -> bool:
        return bool(await rows(database, "SELECT FROM assistant.messages WHERE state = 'waiting'"))

    turns = [turn for share in await asyncio.gather(*map(work, workers)) for turn in share]
    assert sorted(turn.conversation or "" for turn in turns) == sorted(f"c{n}" for n in range(40))
    for turn in turns:
        assert texts(turn) == [str(n) for n in range(200) if f"c{n % 40}" == turn.conversation]


async def test_a_turn_and_what_the_board_says_of_it_are_one_commit(
    database: Database, lease: Lease
) -> None:
    one_commit = (
        "SELECT turns.xmin = kv.xmin, value -> 'conversation' FROM assistant.turns, kv "
        "WHERE key = 'status_board'"
    )
    for text in ("one", "two"):
        await put(database, text)
    turn = await claim(database, lease)
    running = {"status": "running", "detail": "answering 2 messages in main"}
    assert await rows(database, one_commit) == [(True, running)]
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    assert await rows(database, one_commit) == [(True, IDLE)]


async def test_the_board_is_idle_after_an_answer_that_changes_more(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    await answer(database, lease, turn, [Reply(turn.messages, "hi", [Remember("tea")])])
    assert await database.kv.get("status_board") == {"conversation": IDLE}


async def test_a_recovery_waits_for_what_was_given_up_and_closes_what_it_began(
    database: Database, lease: Lease, dsn: str
) -> None:
    await put(database, "hello")
    begin = "SELECT turn_id FROM assistant.begin_turns('conversation', %s, 'offline', 1)"
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock'"
    )
    async with await psycopg.AsyncConnection.connect(dsn) as given_up:
        row = await (await given_up.execute(begin, [lease.token])).fetchone()
        assert row is not None
        recovery = asyncio.create_task(answering.recover(database, "conversation", lease.token))
        await until_equal(database, waiting, [1])
        # The holder goes on to hold its lease meanwhile.
        async with database.connection() as connection:
            await leases.renew(connection, lease)
        await given_up.commit()
    assert await recovery == [row[0]]
    assert await states(database) == [("hello", "waiting", 0)]


async def test_a_lease_that_is_given_back_leaves_nothing_running_on_the_board(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    await claim(database, lease)
    await leases.release(database, lease, settle=True)
    assert await database.kv.get("status_board") == {"conversation": IDLE}


async def test_the_board_tells_of_the_turns_that_are_left(database: Database, lease: Lease) -> None:
    board = StatusBoard(database, lease)
    worker = answering.Worker(board, "conversation")
    for conversation in ("a", "b", "b", "c"):
        await put(database, "hello", conversation)
    seen = []
    turns = await worker.claim("offline", limit=2)
    seen.append(board.get_entry("conversation")["detail"])
    turns += await worker.claim("offline")
    seen.append(board.get_entry("conversation")["detail"])
    for turn in turns:
        assert await database.kv.get("status_board") == board.get()
        await worker.keep(turn, [Reply(turn.messages, "hi")])
        seen.append(board.get_entry("conversation")["detail"])
    assert seen == [
        "answering 3 messages in 2 conversations",
        "answering 4 messages in 3 conversations",
        "answering 3 messages in 2 conversations",
        "answering 1 message in c",
        None,
    ]
    assert board.get() == {"conversation": IDLE}


@pytest.mark.parametrize("overwritten", ["[]", None])
async def test_a_worker_is_shown_also_where_another_program_removed_the_board(
    database: Database, lease: Lease, overwritten: str | None
) -> None:
    await put(database, "hello")
    if overwritten is not None:
        await rows(database, "INSERT INTO kv VALUES ('status_board', %s::jsonb)", overwritten)
    await claim(database, lease)
    detail = "answering 1 message in main"
    board = {"conversation": {"status": "running", "detail": detail}}
    assert await database.kv.get("status_board") == board


async def test_a_worker_that_lost_its_lease_shows_nothing(database: Database, lease: Lease) -> None:
    await leases.release(database, lease)
    with pytest.raises(LeaseLostError):
        await worker_of(database, lease).show(IDLE)
    assert await database.kv.get("status_board") is None


async def test_an_answer_hints_at_what_may_be_begun_now(
    database: Database, lease: Lease, dsn: str
) -> None:
    await put(database, "one")
    turn = await claim(database, lease)
    await put(database, "two")
    hints = []
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN assistant_messages")
        for _ in range(2):
            await answer(database, lease, turn, [Reply(turn.messages, "hi")])
            hints.append([hint.payload for hint in listener.notifies(timeout=5, stop_after=1)])
            [turn] = await claim_turns(database, lease) or [turn]
    assert hints == [["answered", "sent"], ["answered"]]


async def test_answers_that_come_together_share_a_commit(database: Database, lease: Lease) -> None:
    for number in range(8):
        await put(database, str(number), f"c{number}")
    turns = await claim_turns(database, lease, limit=8)
    worker = worker_of(database, lease)
    kept = [worker.keep(turn, [Reply(turn.messages, f"re: {texts(turn)[0]}")]) for turn in turns]
    await asyncio.gather(*kept)
    said = await rows(
        database,
        "SELECT conversation, content, xmin::text FROM assistant.messages WHERE role = 'assistant' "
        "ORDER BY position",
    )
    assert [row[:2] for row in said] == [(f"c{n}", f"re: {n}") for n in range(8)]
    assert len({row[2] for row in said}) == 1


async def test_the_turns_of_a_worker_whose_lease_lapsed_are_given_back(
    database: Database, lease: Lease
) -> None:
    other = await leases.acquire(database, ["conversation@b"])
    await put(database, "hello")
    await put(database, "bye", "work")
    turn = await claim(database, other)
    mine = await claim(database, lease)
    await give_back(database, lease)
    assert await states(database) == [("hello", "working", 1), ("bye", "working", 1)]
    await rows(
        database, "UPDATE assistant.leases SET expires_at = now() WHERE agent = 'conversation@b'"
    )
    await give_back(database, lease)
    assert await states(database) == [("hello", "waiting", 1), ("bye", "working", 1)]
    async with database.connection() as connection:
        await leases.renew(connection, other)
    with pytest.raises(TurnClosedError):
        await answer(database, other, turn, [Reply(turn.messages, "hi")])
    await answer(database, lease, mine, [Reply(mine.messages, "bye")])
    assert await states(database) == [("hello", "waiting", 1), ("bye", "answered", 1)]


async def test_a_lapsed_lease_does_not_give_back_the_turns_of_this_process(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    await claim(database, lease)
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    await give_back(database, lease)
    assert await states(database) == [("hello", "working", 1)]


async def test_the_turns_of_a_lease_that_is_being_renewed_are_left_alone(
    database: Database, lease: Lease
) -> None:
    other = await leases.acquire(database, ["conversation@b"])
    await put(database, "hello")
    turn = await claim(database, other)
    await rows(
        database, "UPDATE assistant.leases SET expires_at = now() WHERE agent = 'conversation@b'"
    )
    async with database.transaction() as connection:
        await leases.renew(connection, other)
        await give_back(database, lease)
    assert await states(database) == [("hello", "working", 1)]
    await answer(database, other, turn, [Reply(turn.messages, "hi")])


async def test_a_lease_is_not_renewed_while_its_turns_are_given_back(
    database: Database, lease: Lease
) -> None:
    other = await leases.acquire(database, ["conversation@b"])
    await put(database, "hello")
    await claim(database, other)
    await rows(
        database, "UPDATE assistant.leases SET expires_at = now() WHERE agent = 'conversation@b'"
    )
    async with database.transaction() as connection:
        await answering.return_orphaned(connection, lease.token)
        with pytest.raises(DatabaseUnreachableError, match="could not obtain lock"):
            await rows(
                database,
                "SELECT FROM assistant.leases WHERE token = %s FOR NO KEY UPDATE NOWAIT",
                other.token,
            )


async def give_back(database: Database, lease: Lease) -> None:
    async with database.connection() as connection:
        await answering.return_orphaned(connection, lease.token)


async def test_a_recovery_leaves_alone_what_runs_here(database: Database, lease: Lease) -> None:
    for conversation in ("a", "b"):
        await put(database, conversation, conversation)
    running, lost = await claim_turns(database, lease, limit=2)
    closed = await answering.recover(database, "conversation", lease.token, [running.id])
    assert closed == [lost.id]
    assert await states(database) == [("a", "working", 1), ("b", "waiting", 0)]


async def test_only_the_holder_claims(database: Database, lease: Lease) -> None:
    await put(database, "hello")
    with pytest.raises(LeaseLostError):
        await claim_turns(database, replace(lease, token=lease.token - 1))
    assert await states(database) == [("hello", "waiting", 0)]


async def test_only_the_holder_keeps_a_step_and_what_it_used(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    usage = Usage(1, 11, 7, None)
    with pytest.raises(LeaseLostError):
        await turns.add_step(database, turn, lease.token - 1, "response", {}, usage)
    kept = "SELECT (SELECT count(*) FROM assistant.turn_steps), requests FROM assistant.turns"
    assert await rows(database, kept) == [(0, 0)]
    await turns.add_step(database, turn, lease.token, "response", {}, usage)
    assert await rows(database, kept) == [(1, 1)]


async def test_under_a_lease_that_has_lapsed_nothing_is_claimed_or_kept_until_it_is_renewed(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    await put(database, "more")
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    with pytest.raises(DatabaseUnreachableError, match="lapsed"):
        await claim_turns(database, lease)
    with pytest.raises(DatabaseUnreachableError, match="lapsed"):
        await turns.add_step(database, turn, lease.token, "request", {})
    assert await states(database) == [("hello", "working", 1), ("more", "waiting", 0)]


async def test_an_answer_kept_twice_is_one_answer_with_one_effect(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    turn = await claim(database, lease)
    due = turn.messages[0].created_at + timedelta(hours=1)
    again = AddSchedule("again", Timing("at", None, None, due), "remind")
    reply = Reply(turn.messages, "hi", [Remember("greeted"), again])
    for _ in range(3):
        await answer(database, lease, turn, [reply])
    assert await inbox.wait_for_reply(database, message) == "hi"
    spoken = "SELECT content FROM assistant.messages WHERE role = 'assistant'"
    assert await rows(database, spoken) == ["hi"]
    assert await rows(database, "SELECT content, due_at FROM assistant.schedules") == [
        ("again", due)
    ]
    assert len(await database.kv.list_keys("memory/notes/")) == 1
    assert await rows(database, "SELECT outcome FROM assistant.turns") == ["done"]


async def test_an_answer_is_kept_whole_or_not_at_all(database: Database, lease: Lease) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    replies = [
        Reply(turn.messages, "hi", [Remember("fine")]),
        Reply(turn.messages, "hi", [Remember("x" * 2_000_000)]),
    ]
    with pytest.raises(BadDataError):
        await answer(database, lease, turn, replies)
    assert await states(database) == [("hello", "working", 1)]
    assert await rows(database, "SELECT outcome FROM assistant.turns") == ["running"]
    assert await database.kv.list_keys("memory/") == []


async def test_an_answer_of_a_holder_that_was_taken_over_is_not_kept(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    successor = await leases.acquire(database, ["conversation"])
    assert await answering.recover(database, "conversation", successor.token) == [turn.id]
    with pytest.raises(LeaseLostError):
        await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    with pytest.raises(LeaseLostError):
        await fail(database, lease, turn)
    again = await claim(database, successor)
    await answer(database, successor, again, [Reply(again.messages, "ho")])
    assert await states(database) == [("hello", "answered", 2)]


async def test_notes_are_named_for_the_time_in_utc(
    database: Database, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    await put(database, "/remember tea")
    turn = await claim(database, lease)
    await answer(database, lease, turn, [Reply(turn.messages, "ok", [Remember("tea")])])
    (moment,) = await rows(
        database,
        "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS.US\"Z\"') "
        "FROM assistant.messages WHERE role = 'user'",
    )
    (key,) = await database.kv.list_keys("memory/notes/")
    assert key.startswith(f"memory/notes/{moment}-")


async def test_a_failed_message_is_tried_three_times_with_growing_pauses(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    pauses = []
    for _ in range(3):
        turn = await claim(database, lease)
        await fail(database, lease, turn)
        await fail(database, lease, turn)
        pauses.append(await seconds_to_next(database, lease))
        await retry_now(database)
    assert [pause and round(pause) for pause in pauses] == [5, 15, None]
    assert await states(database) == [("hello", "failed", 3)]
    with pytest.raises(AgentFailedError, match=r"in 3 attempts: no luck"):
        await inbox.wait_for_reply(database, message)
    assert await claim_turns(database, lease) == []


async def test_an_interrupted_turn_gives_the_attempt_back(database: Database, lease: Lease) -> None:
    await put(database, "hello")
    for _ in range(4):
        await fail(database, lease, await claim(database, lease), "interrupted")
    assert await states(database) == [("hello", "waiting", 0)]
    assert await rows(database, "SELECT DISTINCT outcome FROM assistant.turns") == ["interrupted"]


async def test_what_was_answered_before_a_turn_failed_is_kept(
    database: Database, lease: Lease
) -> None:
    await put(database, "/remember tea")
    await put(database, "hello")
    turn = await claim(database, lease)
    reply = Reply(turn.messages[:1], "Remembered.", [Remember("tea")])
    for _ in range(2):
        await answering.fail_turn(
            database, lease.token, turn, "failed", "no luck", PAUSE, replies=[reply]
        )
    assert await states(database) == [("/remember tea", "answered", 1), ("hello", "waiting", 1)]
    assert len(await database.kv.list_keys("memory/notes/")) == 1


async def test_a_turn_that_is_done_cannot_fail_any_more(database: Database, lease: Lease) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    await fail(database, lease, turn, "interrupted")
    assert await states(database) == [("hello", "answered", 1)]
    assert await rows(database, "SELECT outcome FROM assistant.turns") == ["done"]


async def follow(database: Database, lease: Lease) -> Lease:
    """The lease of a process that comes after the holder's."""
    await leases.release(database, lease)
    return await leases.acquire(database, lease.agents)


async def test_a_turn_that_was_claimed_and_never_begun_is_no_attempt(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    # The commit is done and its confirmation lost: the same process looks again.
    for _ in range(4):
        await claim(database, lease)
        await answering.recover(database, "conversation", lease.token)
    assert await states(database) == [("hello", "waiting", 0)]


async def test_a_new_message_does_not_shorten_the_pause_of_those_before_it(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    await fail(database, lease, await claim(database, lease))
    await put(database, "are you there?")
    assert await claim_turns(database, lease) == []
    await put(database, "/help")
    turn = await claim(database, lease)
    assert [message.content for message in turn.messages] == ["/help"]


async def test_turns_left_open_by_a_dead_process_are_closed_and_their_messages_wait(
    database: Database, lease: Lease
) -> None:
    await put(database, "hello")
    turn = await claim(database, lease)
    following = await follow(database, lease)
    assert await answering.recover(database, "conversation", following.token) == [turn.id]
    assert await answering.recover(database, "conversation", following.token) == []
    assert await rows(database, "SELECT outcome, ended_at IS NULL FROM assistant.turns") == [
        ("interrupted", False)
    ]
    assert await states(database) == [("hello", "waiting", 1)]


async def test_a_message_that_ends_the_process_three_times_is_not_tried_again(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    for _ in range(3):
        await claim(database, lease)
        lease = await follow(database, lease)
        await answering.recover(database, "conversation", lease.token)
    assert await states(database) == [("hello", "failed", 3)]
    with pytest.raises(AgentFailedError, match=r"interrupted"):
        await inbox.wait_for_reply(database, message)


async def test_a_worker_knows_whether_it_left_anything_to_begin(
    database: Database, lease: Lease
) -> None:
    assert await seconds_to_next(database, lease) is None
    worker = worker_of(database, lease)
    for conversation in ("a", "b"):
        await put(database, "hello", conversation)
    for left in (0, None):
        assert len(await worker.claim("offline")) == 1
        assert worker.seconds_to_next == left


async def test_waiting_for_the_reply_of_no_message_ends(database: Database) -> None:
    with pytest.raises(NotFoundError):
        await inbox.wait_for_reply(database, uuid4())


async def test_a_reply_comes_also_after_the_connection_was_lost(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    waiting = asyncio.create_task(inbox.wait_for_reply(database, message))
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE '%%message.attempts%%' AND state = 'idle'"
    )
    await until_equal(database, listening, [1])
    await rows(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE '%%message.attempts%%' "
        "AND pid <> pg_backend_pid()",
    )
    turn = await claim(database, lease)
    await answer(database, lease, turn, [Reply(turn.messages, "hi")])
    assert await asyncio.wait_for(waiting, 20) == "hi"


async def test_history_is_the_end_of_one_conversation_oldest_first(database: Database) -> None:
    for text, conversation in [("1", "a"), ("2", "a"), ("x", "b"), ("3", "a")]:
        await put(database, text, conversation)
    history = await inbox.read_history(database, "a", 2)
    assert [message.content for message in history] == ["2", "3"]
