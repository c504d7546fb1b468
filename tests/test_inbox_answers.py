"""Answers are kept once and whole, and the board tells of each turn in the same commit."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import pytest

from assistant_cli.errors import BadDataError, LeaseLostError
from assistant_cli.messages import AddSchedule, Remember, Reply
from assistant_cli.store import answering, inbox, leases
from assistant_cli.store.board import IDLE, StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease
from assistant_cli.timing import Timing

from .claiming import answer, claim, claim_turns, fail, put, states, texts
from .hosting import rows, worker_of


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
