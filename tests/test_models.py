"""Models: a shell command with the prompt on stdin, and the one that needs none."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from assistant_cli.errors import ConfigurationError
from assistant_cli.messages import SILENCE
from assistant_cli.models import ModelError, Prompt, RefusedError, get_model
from assistant_cli.models.pausing import PausingModel

from .conftest import eventually
from .driven_clock import DrivenClock
from .hosting import living, until


def prompt(text: str = "hello") -> Prompt:
    return Prompt(text, "conversation", "work", 7)


async def reply(command: str, text: str = "hello", url: str | None = None) -> str:
    return await get_model(f"command:{command}", url).reply(prompt(text))


async def test_the_command_reads_the_text_as_it_is_and_a_newline() -> None:
    text = "  a \\n $HOME 'b' \"c\" ünï \t\x1b[0m\r\nend"
    assert await reply("od -An -v -tx1 | tr -d ' \\n'", text) == f"{text}\n".encode().hex()


async def test_the_reply_is_what_it_prints_without_the_last_newlines() -> None:
    assert await reply("printf '  a\\n\\nb \\n\\n'") == "  a\n\nb "


async def test_the_facts_of_the_turn_are_in_the_environment() -> None:
    command = 'echo "$ASSISTANT_AGENT $ASSISTANT_CONVERSATION $ASSISTANT_TURN_ID"'
    assert await reply(command) == "conversation work 7"
    assert await reply("echo $ASSISTANT_DATABASE_URL", url="postgresql://h/d") == "postgresql://h/d"


async def test_the_command_has_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "42")
    assert await reply("echo $MY_KEY") == "42"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo why >&2; exit 3", "exited with 3: why"),
        ("echo partial; exit 1", "exited with 1"),
        ("kill -9 $$", "was killed by signal 9"),
        ("no-such-command-anywhere", "exited with 127: .*no-such-command-anywhere.*"),
        ("printf 'a\\000\\351' >&2; exit 1", "exited with 1: a\ufffd\ufffd"),
    ],
)
async def test_a_command_that_fails_gives_its_reason(command: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^the model's command {reason}$"):
        await reply(command)


@pytest.mark.parametrize(
    ("complaint", "summary"),
    [
        ("Traceback (most recent call last):\n  File x\nKeyError: 'why'", ": KeyError: 'why'"),
        ("fatal: no such thing\nhint: try another", ": fatal: no such thing"),
        ("what\nnow", ": now"),
        ("the beginning of a line that is cut " + "x" * 2_000 + "\nnow", ": now"),
        ("one line " + "x" * 2_000, ""),
    ],
)
async def test_a_long_complaint_begins_with_the_line_that_tells_why(
    complaint: str, summary: str
) -> None:
    with pytest.raises(ModelError) as caught:
        await reply(f"printf '%s\\n' {shlex.quote(complaint)} >&2; exit 1")
    first, _, rest = str(caught.value).partition("\n")
    assert first == f"the model's command exited with 1{summary}"
    assert rest == complaint[-2_000:]


async def test_of_a_long_complaint_the_end_is_kept() -> None:
    with pytest.raises(ModelError) as caught:
        await reply("yes complaint | head -c 3000000 >&2; echo the end >&2; exit 1")
    assert str(caught.value).endswith("the end")
    assert len(str(caught.value)) < 2_100


async def test_a_command_that_ignores_a_long_prompt_may_answer_all_the_same() -> None:
    assert await reply("exec <&-; echo done", "x" * 5_000_000) == "done"


async def test_a_command_that_answers_while_it_reads_does_not_block() -> None:
    assert await reply("cat", "y" * 900_000) == "y" * 900_000


async def test_a_reply_without_bound_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="larger than 1,000,000 bytes"):
        await reply(f"echo $$ > {tmp_path}/pid; exec yes")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_ten_megabytes_are_too_many() -> None:
    with pytest.raises(ModelError, match="larger than 1,000,000 bytes"):
        await reply("head -c 10000000 /dev/zero")


async def test_what_is_not_utf8_is_replaced() -> None:
    assert await reply(r"printf 'caf\351\000!'") == "caf\ufffd\ufffd!"


async def test_cancelling_ends_the_command_and_its_children(tmp_path: Path) -> None:
    asking = asyncio.create_task(reply(f"sleep 1000 & echo $$ > {tmp_path}/group; wait"))
    file = tmp_path / "group"

    async def started() -> bool:
        return file.exists() and bool(file.read_text())

    await until(started)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    group = int(file.read_text())
    eventually(lambda: not living({group}), "the end of the child")


async def test_cancelling_at_any_moment_leaves_no_command_behind(tmp_path: Path) -> None:
    for steps in range(12):
        asking = asyncio.create_task(reply(f"echo $$ >> {tmp_path}/pids; sleep 1000 & wait"))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asking, 20)
    file = tmp_path / "pids"
    groups = {int(pid) for pid in file.read_text().split()} if file.exists() else set()
    eventually(lambda: not living(groups), "the end of all")


async def test_a_process_that_left_the_group_is_not_waited_for(tmp_path: Path) -> None:
    leave = (
        f"{sys.executable} -c 'import os, time; os.setsid(); print(1, flush=True); time.sleep(9)'"
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reply(f"{leave} & echo $! > {tmp_path}/pid; wait"), 0.5)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("code", "stream"), [(0, ""), (0, ">&2"), (3, "")])
async def test_what_a_command_leaves_running_holds_up_no_reply(
    tmp_path: Path, code: int, stream: str
) -> None:
    command = f"cat; sleep 1000 {stream} & echo $! > {tmp_path}/pid; echo why >&2; exit {code}"
    try:
        answer = asyncio.wait_for(reply(command, "x" * 500_000), 20)
        if code:
            with pytest.raises(ModelError, match="exited with 3: why"):
                await answer
        else:
            assert await answer == "x" * 500_000
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("agent", ["conversation", "conversation@b"])
async def test_the_offline_model_says_that_it_is_none(agent: str) -> None:
    model = get_model("offline")
    reply = await model.reply(Prompt("hello", agent, "work", 7))
    assert "No language model is configured" in reply
    assert await model.reply(Prompt("", "heartbeat", "main", 1)) == SILENCE


@pytest.mark.parametrize("name", ["", "gpt", "command:", "command:  ", "Offline"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no model"):
        get_model(name)


async def test_a_clock_that_is_set_back_does_not_prolong_the_pause_of_a_model() -> None:
    class Refusing:
        name = "refusing"
        talks = True
        asked = 0

        async def reply(self, prompt: Prompt) -> str:
            self.asked += 1
            raise RefusedError("no key")

    clock, model = DrivenClock(), Refusing()
    pausing = PausingModel(model, clock)
    for asked, minutes in [(1, 0), (1, 1), (2, -60)]:
        clock.move(minutes=minutes)
        with pytest.raises(RefusedError):
            await pausing.reply(prompt())
        assert model.asked == asked
