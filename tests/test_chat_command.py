"""`assistant chat`: a talk on a real terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from .conftest import CommandLine, eventually, lock_waiters
from .hosting import Hold
from .openai_server import OpenAIServer, says, serving
from .terminals import Terminal

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Screen:
    """A terminal of 100 columns on which a chat runs."""

    def __init__(self, assistant: CommandLine) -> None:
        self._socket = Path(f"/tmp/assistant-tmux-{uuid4().hex[:8]}")
        self._tmux = ["tmux", "-S", str(self._socket), "-f", "/dev/null"]
        environment = [f"-e{name}={value}" for name, value in assistant.environment.items()]
        size = ["-x", "100", "-y", "40"]
        self._run("new-session", "-d", *size, *environment, *assistant.command("chat"))
        self._run("set-option", "-g", "remain-on-exit", "on")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def type(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def text(self) -> str:
        return self._run("capture-pane", "-p", "-S", "-")

    def shows(self, text: str) -> None:
        eventually(lambda: text in self.text(), repr(text))

    def prompts(self) -> None:
        # Keys that come before it reads them are the terminal's own.
        eventually(lambda: f"\n{self.text().rstrip()}".endswith("\n>"), "the prompt")

    def leave(self) -> None:
        self.type("C-d")
        self.ended()

    def ended(self) -> None:
        # How it ended tmux does not always know.
        eventually(lambda: self._run("list-panes", "-F", "#{pane_dead}") == "1\n", "the end")

    def close(self) -> None:
        self._run("kill-server")
        self._socket.unlink(missing_ok=True)


@pytest.fixture
def opened() -> Iterator[Callable[[CommandLine], Screen]]:
    screens: list[Screen] = []

    def open_screen(assistant: CommandLine) -> Screen:
        assistant.environment |= {"TERM": "xterm-256color"}
        screens.append(Screen(assistant))
        return screens[-1]

    yield open_screen
    for screen in screens:
        screen.close()


Opened = Callable[[CommandLine], Screen]


@needs_tmux
def test_a_chat_with_nobody_running_hosts_the_agents_until_it_ends(
    assistant: CommandLine, opened: Opened
) -> None:
    assistant("send", "/remember the earlier days")
    assistant("run", "--until-idle")
    assistant.environment["ASSISTANT_MODEL"] = "command:tr a-z A-Z"
    screen = opened(assistant)
    screen.shows("this chat hosts conversation and heartbeat; ")
    screen.shows("/remember the earlier days")
    screen.type("hello", "Enter")
    screen.shows("HELLO")
    screen.prompts()
    assert assistant("status", "--check").code == 0
    screen.type("Up", "Enter")
    eventually(lambda: screen.text().count("HELLO") == 2, "the line that was recalled")
    screen.prompts()
    screen.leave()
    assert assistant("status", "--check").code == 3


@needs_tmux
def test_a_chat_hosts_only_what_nobody_else_does(assistant: CommandLine, opened: Opened) -> None:
    assistant.start_run("--agent", "heartbeat")
    assistant.environment["ASSISTANT_MODEL"] = "command:tr a-z A-Z"
    screen = opened(assistant)
    screen.shows("this chat hosts conversation; the model is ")
    screen.prompts()
    screen.type("hello", "Enter")
    screen.shows("HELLO")
    screen.prompts()
    screen.leave()
    assert assistant("status", "conversation", "--check").code == 3
    assert assistant("status", "heartbeat", "--check").code == 0


def start_chat(assistant: CommandLine) -> Terminal:
    """A chat whose exit code counts."""
    assistant.environment |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return Terminal(assistant, "chat", more=("stdin", "stderr"))


def test_a_chat_whose_agents_another_process_takes_first_ends_at_once(
    assistant: CommandLine, sql: psycopg.Connection[Any], dsn: str
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE assistant.leases IN EXCLUSIVE MODE")
        chat = start_chat(assistant)
        eventually(lambda: lock_waiters(sql), "the wait for the leases")
        other.execute(
            "INSERT INTO assistant.leases VALUES "
            "('conversation', 99, 'elsewhere', 1, 'x', now(), now() + interval '1 minute')"
        )
    assert chat.finish() == 5
    assert "hosts conversation and heartbeat; the model is offline\n" in chat.plain
    assert "conversation is already held by host elsewhere" in chat.plain


@pytest.mark.parametrize("said", [None, "hello"])
def test_a_chat_whose_agents_are_taken_over_ends_and_takes_nothing_back(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path, said: str | None
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    assistant.environment |= {"ASSISTANT_MODEL": hold.model, "ASSISTANT_HEARTBEAT": "off"}
    chat = start_chat(assistant)
    chat.wait_for("> ")
    if said:
        chat.type(f"{said}\r")
        eventually(lambda: hold.asked == [said], "the question")
    taken = "UPDATE assistant.leases SET token = token + 1"
    eventually(lambda: sql.execute(taken).rowcount == 2, "the leases")
    assert chat.finish() == 5
    assert re.search("this process (lost its lease|no longer holds)", chat.plain)
    states = [row[0] for row in sql.execute("SELECT state FROM assistant.messages")]
    assert states == (["working"] if said else [])


@needs_tmux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_that_is_ended_leaves_its_agents_to_others_at_once(
    assistant: CommandLine, opened: Opened, number: signal.Signals
) -> None:
    chat = opened(assistant)
    chat.shows("this chat hosts")
    chat.prompts()
    # It prompts while it is still taking the agents.
    eventually(lambda: assistant("status", "--check").code == 0, "the agents")
    holders = [agent["holder"] for agent in json.loads(assistant("status", "--json").out)["agents"]]
    os.kill(holders[0]["pid"], number)
    chat.ended()
    agents = json.loads(assistant("status", "--json").out)["agents"]
    assert [(agent["status"], agent["holder"]) for agent in agents] == [("idle", None)] * 2


@needs_tmux
def test_ctrl_c_cancels_the_turn_and_not_the_chat(
    assistant: CommandLine, opened: Opened, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    assistant.start_run("--model", hold.model)
    screen = opened(assistant)
    screen.prompts()
    screen.type("slow", "Enter")
    eventually(lambda: hold.asked == ["slow"], "the question")
    screen.type("C-c")
    screen.shows("cancelled")
    screen.prompts()
    hold.open()
    screen.type("C-c")
    screen.type("quick", "Enter")
    screen.shows("re: quick")
    screen.prompts()
    failed = assistant("turns", "ls", "--failed").out
    assert "cancelled on request" in failed
    screen.leave()


@needs_tmux
def test_where_nobody_is_left_to_answer_the_chat_says_so(
    assistant: CommandLine, opened: Opened, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    run = assistant.start_run("--model", hold.model)
    screen = opened(assistant)
    screen.prompts()
    screen.type("hello", "Enter")
    eventually(lambda: hold.asked == ["hello"], "the question")
    run.kill()
    screen.shows("no conversation agent is running; the message is kept until one does")
    hold.open()
    assistant("run", "--until-idle", "--model", hold.model)
    screen.shows("re: hello")
    screen.prompts()
    screen.leave()


@needs_tmux
def test_what_is_refused_does_not_end_the_chat(
    assistant: CommandLine, opened: Opened, dsn: str, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    # Its heartbeat might ask as well, since there is news.
    assistant.start_run("--model", hold.model, "--heartbeat", "off")
    assistant("send", "first")
    eventually(lambda: hold.asked == ["first"], "the question")
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute(
            "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
            "SELECT gen_random_uuid(), 'main', 'user', 'x', 'psql', 'waiting' "
            "FROM generate_series(1, 1000)"
        )
        screen = opened(assistant)
        screen.prompts()
        screen.type("one too many", "Enter")
        screen.shows("1000 messages wait in this conversation, as many as may; nothing was kept")
        screen.prompts()
    screen.leave()


@needs_tmux
def test_a_database_that_is_away_does_not_end_the_chat(
    private_home: Path, environment: dict[str, str], opened: Opened
) -> None:
    server = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    server("db", "start")
    address = server("db", "url").out.strip()
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": address})
    screen = opened(assistant)
    screen.prompts()
    server("db", "stop")
    screen.type("hello", "Enter")
    screen.shows("cannot reach the database: ")
    screen.prompts()
    server("db", "start")
    screen.type("/history", "Enter")
    screen.shows("Nothing was said before.")
    screen.prompts()
    screen.leave()


@needs_tmux
def test_what_the_agents_say_by_themselves_comes_between(
    assistant: CommandLine, opened: Opened
) -> None:
    assistant.start_run()
    screen = opened(assistant)
    screen.prompts()
    screen.type("/remind 1s tea", "Enter")
    screen.shows("I will remind you")
    screen.shows("Reminder: tea")


@needs_tmux
def test_a_reply_of_a_language_model_comes_to_the_chat(
    assistant: CommandLine, opened: Opened
) -> None:
    with serving() as server:
        run_with(assistant, server)
        screen = opened(assistant)
        screen.prompts()
        screen.type("hello", "Enter")
        screen.shows("Well done, \\x1b[31mred.")


def run_with(assistant: CommandLine, server: OpenAIServer) -> None:
    server.will(says("Well ", "done, ", "\x1b[31mred."))
    assistant.environment["ASSISTANT_BASE_URL"] = server.base_url
    assistant.start_run("--model", "openai:gpt-4o-mini")


def test_without_a_terminal_there_is_no_chat(assistant: CommandLine) -> None:
    done = assistant("chat")
    assert (done.code, done.out) == (2, "")
    assert "a chat needs a terminal, and a TERM that is not dumb; " in done.err
