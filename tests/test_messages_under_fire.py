"""Every message is answered exactly once and in order, however often `run` is killed meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
from itertools import pairwise

from assistant_cli.runtime import RunOptions
from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .hosting import rows, until
from .openai_server import OpenAIServer, echoes, serving, stalls

CONVERSATIONS = 10
ROUNDS = 10
MESSAGES = CONVERSATIONS * ROUNDS
KILLS = 6
ANSWERS_BETWEEN_KILLS = 15
KILLS_IN_MID_REPLY = 3
AHEAD = 25
"""How many messages wait at most while more are sent: enough that turns follow each other."""

ANSWERED = "SELECT count(*) FROM assistant.messages WHERE state = 'answered'"
REPLIES = """
SELECT reply.conversation, reply.content, reply.position,
    array_agg(message.conversation), array_agg(message.content ORDER BY message.position),
    array_agg(message.position ORDER BY message.position)
FROM assistant.messages AS reply
LEFT JOIN assistant.messages AS message ON message.reply_id = reply.id
WHERE reply.role = 'assistant' AND reply.source <> 'heartbeat'
GROUP BY reply.id ORDER BY reply.position
"""
STATES = """
SELECT state, count(*), count(reply_id) FROM assistant.messages WHERE role = 'user' GROUP BY state
"""
SPEAKING = "SELECT text FROM assistant.partial_replies WHERE text = 'Well'"
OUTCOMES = "SELECT count(*) FROM assistant.turns WHERE trigger = %s AND outcome = %s"


async def answered(database: Database, count: int) -> None:
    async def reached() -> bool:
        (found,) = await rows(database, ANSWERED)
        return bool(found >= count)

    await until(reached, f"answer {count}")


async def send_all(database: Database) -> None:
    for number in range(ROUNDS):
        await answered(database, number * CONVERSATIONS - AHEAD)
        await asyncio.gather(
            *(
                inbox.put_message(database, f"{name}.{number}", conversation=f"talk {name}")
                for name in range(CONVERSATIONS)
            )
        )


async def kill_again_and_again(
    database: Database, assistant: CommandLine, server: OpenAIServer
) -> None:
    async def speaking() -> object:
        return await rows(database, SPEAKING)

    for kill in range(1, KILLS + 1):
        run = await start_run(assistant)
        await answered(database, kill * ANSWERS_BETWEEN_KILLS)
        if kill <= KILLS_IN_MID_REPLY:
            server.will(stalls)
            await until(speaking, "half a reply")
        run.kill()
        run.wait()
    await start_run(assistant)


async def start_run(assistant: CommandLine) -> subprocess.Popen[str]:
    return await asyncio.to_thread(
        assistant.start_run, "--model", "openai:gpt-4o-mini", "--heartbeat", "1s"
    )


async def test_a_hundred_messages_are_answered_once_and_in_order_over_six_kills(
    assistant: CommandLine, database: Database
) -> None:
    with serving() as server:
        server.always(echoes)
        assistant.environment["ASSISTANT_BASE_URL"] = server.base_url
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all(database))
            tasks.create_task(kill_again_and_again(database, assistant, server))
        await answered(database, MESSAGES)

    assert await rows(database, STATES) == [("answered", MESSAGES, MESSAGES)]
    replies = await rows(database, REPLIES)
    for conversation, reply, _, conversations, messages, _ in replies:
        assert reply == "re:" + "".join(f" {message};" for message in messages)
        assert set(conversations) == {conversation}
    assert sum(len(messages) for *_, messages, _ in replies) == MESSAGES
    for name in range(CONVERSATIONS):
        told = [reply for reply in replies if reply[0] == f"talk {name}"]
        assert all(earlier[-1][-1] < later[-1][0] for earlier, later in pairwise(told))
    (interrupted,) = await rows(database, OUTCOMES, "message", "interrupted")
    assert 1 <= interrupted <= KILLS * RunOptions.concurrency
    assert await rows(database, OUTCOMES, "message", "done") == [len(replies)]
    ticked = "SELECT count(*) FROM assistant.turns WHERE trigger = 'timer'"
    assert await rows(database, ticked) >= [3]
