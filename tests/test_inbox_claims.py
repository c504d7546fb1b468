"""What waits in the inbox is claimed in order, and by the holder of the lease alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf
from uuid import uuid4

import psycopg
import pytest

from assistant_cli.errors import DatabaseUnreachableError, LeaseLostError
from assistant_cli.messages import Reply, Turn, Usage
from assistant_cli.store import leases, turns
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .claiming import answer, claim, claim_turns, put, seconds_to_next, states, texts
from .hosting import rows, worker_of


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
