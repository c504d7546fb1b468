"""Turns that fail, or whose process dies: given back, tried again, and not for ever."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from assistant_cli.errors import AgentFailedError, DatabaseUnreachableError, TurnClosedError
from assistant_cli.messages import Remember, Reply
from assistant_cli.store import answering, inbox, leases
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .claiming import PAUSE, answer, claim, claim_turns, fail, put, seconds_to_next, states
from .conftest import until_locked
from .hosting import rows


async def retry_now(database: Database) -> None:
    await rows(database, "UPDATE assistant.messages SET retry_at = now() WHERE retry_at > now()")


async def test_a_recovery_waits_for_what_was_given_up_and_closes_what_it_began(
    database: Database, lease: Lease, dsn: str
) -> None:
    await put(database, "hello")
    begin = "SELECT turn_id FROM assistant.begin_turns('conversation', %s, 'offline', 1)"
    async with await psycopg.AsyncConnection.connect(dsn) as given_up:
        row = await (await given_up.execute(begin, [lease.token])).fetchone()
        assert row is not None
        recovery = asyncio.create_task(answering.recover(database, "conversation", lease.token))
        await until_locked(dsn, 1)
        # The holder goes on to hold its lease meanwhile.
        async with database.connection() as connection:
            await leases.renew(connection, lease)
        await given_up.commit()
    assert await recovery == [row[0]]
    assert await states(database) == [("hello", "waiting", 0)]


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


async def test_a_message_that_ends_the_process_ten_times_is_not_tried_again(
    database: Database, lease: Lease
) -> None:
    message = await put(database, "hello")
    for attempt in range(10):
        assert await states(database) == [("hello", "waiting", attempt)]
        await claim(database, lease)
        lease = await follow(database, lease)
        await answering.recover(database, "conversation", lease.token)
    assert await states(database) == [("hello", "failed", 10)]
    with pytest.raises(AgentFailedError, match=r"interrupted"):
        await inbox.wait_for_reply(database, message)


async def test_a_cancelled_turn_fails_all_its_messages_where_one_was_taken_back_as_well(
    database: Database, lease: Lease
) -> None:
    mine = await put(database, "mine")
    await put(database, "other")
    turn = await claim(database, lease)
    await inbox.withdraw(database, mine)
    assert await answering.cancel_turn(database, turn.id) == "asked"
    await fail(database, lease, turn, "interrupted")
    assert await states(database) == [("mine", "failed", 1), ("other", "failed", 1)]
