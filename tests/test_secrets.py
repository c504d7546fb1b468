"""Keys and passwords are repeated nowhere, and what was said in no log, whatever fails."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from assistant_cli import connect
from assistant_cli.errors import AssistantError
from assistant_cli.redaction import without_secrets

from .conftest import CommandLine, eventually
from .openai_server import MODEL, OpenAIServer, refuses_and_repeats
from .password_server import PasswordServer
from .postgres_server import PASSWORD

KEY = "sk-canary-0815"
TOKEN = "token-canary-0816"
WRONG_PASSWORD = "wrong-canary-0817"
SAID = "the canary sings at 0818"
VALUE = "value-canary-0819"
SECRETS = (KEY, TOKEN, PASSWORD, WRONG_PASSWORD)

REPEATS_ALL = "command:cat >&2; env >&2; sleep 0.2; exit 3"
KEPT = """
SELECT coalesce(string_agg(line, chr(10)), '') FROM (
    SELECT kv::text AS line FROM kv WHERE key = 'status_board'
    UNION ALL SELECT detail FROM assistant.board_events
    UNION ALL SELECT turns::text FROM assistant.turns
    UNION ALL SELECT steps::text FROM assistant.turn_steps AS steps
    UNION ALL SELECT error FROM assistant.messages
) AS lines
"""
BOARD = "SELECT value::text FROM kv WHERE key = 'status_board'"
FAILED = "SELECT FROM assistant.turns WHERE outcome = 'failed'"


@pytest.fixture
def owner(password_server: PasswordServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(password_server.url(), autocommit=True) as connection:
        connection.execute(
            "TRUNCATE kv, assistant.messages, assistant.turns, assistant.leases, "
            "assistant.board_events RESTART IDENTITY CASCADE"
        )
        yield connection


@pytest.fixture
def assistant(
    owner: psycopg.Connection[Any], password_server: PasswordServer, environment: dict[str, str]
) -> Iterator[CommandLine]:
    url = password_server.url("runtime")
    secrets = {"OPENAI_API_KEY": KEY, "OTHER_TOKEN": TOKEN, "ASSISTANT_DATABASE_URL": url}
    command_line = CommandLine({**environment, **secrets})
    yield command_line
    command_line.end_all()


def log_of_failures(
    assistant: CommandLine, owner: psycopg.Connection[Any], model: str, form: str
) -> str:
    """What `run` logs whose turns fail; the process list tells nothing meanwhile."""
    run = assistant.start("run", "--model", model, "--log-format", form, "--heartbeat", "1s")
    assert assistant("send", SAID).code == 0
    words: set[str] = set()

    def failed() -> bool:
        for process in [(parent := psutil.Process(run.pid)), *parent.children(recursive=True)]:
            try:
                words.update(process.cmdline())
            except psutil.NoSuchProcess:
                continue
        return owner.execute(FAILED).rowcount > 0

    eventually(failed, "a failed turn")
    eventually(lambda: '"failed"' in str(owner.execute(BOARD).fetchone()), "the board")
    run.terminate()
    out, log = run.communicate(timeout=30)
    assert out == ""
    assert_silent("\n".join(words))
    return log


def assert_silent(text: str, *secrets: str) -> None:
    """Nothing secret is in it."""
    assert [secret for secret in (*SECRETS, *secrets) if secret in text] == [], text


@pytest.mark.parametrize(("kind", "form"), [("command", "text"), ("language model", "json")])
def test_a_model_that_repeats_all_it_knows_tells_no_secret(
    assistant: CommandLine,
    owner: psycopg.Connection[Any],
    server: OpenAIServer,
    kind: str,
    form: str,
) -> None:
    server.always(refuses_and_repeats)
    assistant.environment["ASSISTANT_BASE_URL"] = server.base_url
    model = REPEATS_ALL if kind == "command" else MODEL
    log = log_of_failures(assistant, owner, model, form)
    assert_silent(log, SAID)
    ((kept,),) = owner.execute(KEPT).fetchall()
    assert "[secret]" in kept
    assert_silent(kept)
    ((board,),) = owner.execute(BOARD).fetchall()
    assert_silent(board, SAID)
    for command in ("turns ls", "status --history", "status --json", "turns show 1"):
        done = assistant(*command.split())
        assert_silent(done.out + done.err)
    home = Path(assistant.environment["ASSISTANT_HOME"])
    for path in home.rglob("*"):
        if path.is_file():
            assert_silent(path.read_text("utf-8", "replace"), SAID)


@pytest.mark.parametrize(
    "dsn",
    [
        "bad dsn",
        f"postgres//u:{WRONG_PASSWORD}@h/x",
        f"postgresql://u:{WRONG_PASSWORD}@[::1/x",
        f"postgresql://u:%zz{WRONG_PASSWORD}@h/x",
        f"host=h password='{WRONG_PASSWORD}",
        f"postgresql://u:p@{WRONG_PASSWORD}@127.0.0.1:1/x",
        f"postgresql://u:{WRONG_PASSWORD}@127.0.0.1:1/x",
        f"postgresql://u@127.0.0.1:{WRONG_PASSWORD}/x",
        f"postgresql://u:12/{WRONG_PASSWORD}@h/x",
        f"postgresql://u@127.0.0.1:1/x?connect_timeout={WRONG_PASSWORD}",
        f"postgresql://u@127.0.0.1:1/x?{WRONG_PASSWORD}=1",
        f"host='{'a' * 70}' password={WRONG_PASSWORD}",
        f"postgresql://u:{WRONG_PASSWORD}@127.0.0.1:1/x?sslmode=require&sslrootcert=/missing",
    ],
)
async def test_no_error_of_the_library_tells_what_is_in_a_dsn(dsn: str) -> None:
    with pytest.raises(AssistantError) as caught:
        async with connect(dsn):
            pass
    text = "".join(traceback.format_exception(caught.value))
    words = [line for line in text.splitlines() if not line.startswith("    ")]
    assert_silent("\n".join(words))
    assert "--database-url" not in str(caught.value)


def test_doctor_tells_of_a_password_that_others_may_read(
    assistant: CommandLine, password_server: PasswordServer
) -> None:
    url = assistant.environment.pop("ASSISTANT_DATABASE_URL")
    home = Path(assistant.environment["ASSISTANT_HOME"])
    home.mkdir(mode=0o700)
    config = home / "config.toml"
    config.write_text(f'database_url = "{url}"')
    config.chmod(0o644)
    done = assistant("doctor")
    assert done.code == 78
    assert f"others may read the password in {config}; chmod go-r {config}" in done.out
    assert_silent(done.out + done.err)
    config.chmod(0o600)
    assert assistant("doctor").code == 0


@pytest.mark.parametrize("fault", ["refused", "forbidden", "down", "malformed"])
def test_no_command_that_fails_tells_a_secret(
    assistant: CommandLine, password_server: PasswordServer, fault: str
) -> None:
    url = password_server.url("stranger")
    match fault:
        case "refused":
            url = password_server.url("stranger", WRONG_PASSWORD)
        case "down":
            url = url.replace(str(password_server.port), "1")
        case "malformed":
            url = url.replace("//", "/", 1)
    assistant.environment["ASSISTANT_DATABASE_URL"] = url
    for command in (
        ["send", SAID],
        ["kv", "set", "k", json.dumps(VALUE)],
        ["kv", "set", "k", f'["{VALUE}'],
        ["run"],
        ["doctor"],
    ):
        done = assistant(*command)
        assert done.code in {65, 69, 77, 78}, done
        assert_silent(done.out + done.err, SAID, VALUE)


def test_a_key_in_a_command_line_is_neither_logged_nor_put_on_the_board(
    assistant: CommandLine, owner: psycopg.Connection[Any]
) -> None:
    model = f"command:cat > /dev/null; true --key {KEY} --url 'host=h password={PASSWORD}'; echo ok"
    run = assistant.start("run", "--model", model)
    assert assistant("send", "--wait", "hello").out == "ok\n"
    assert assistant("track", "backup", "--", "sh", "-c", f": {TOKEN}").code == 0
    run.terminate()
    _, log = run.communicate(timeout=30)
    assert "the model is command:cat > /dev/null; true --key [secret]" in log
    assert_silent(log)
    ((kept,),) = owner.execute(KEPT).fetchall()
    assert "sh -c : [secret]" in kept
    assert_silent(kept)


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "apikey", "TOKEN", "GITHUB_TOKEN_RO", "PGPASSWORD", "DB_PASS"),
        *("SMTP_PASSWD", "SSH_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "CREDENTIALS", "KEY_2", "KEYS"),
    ],
)
def test_the_value_of_a_variable_named_as_a_secret_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "opensesame")
    assert without_secrets("say opensesame now") == "say [secret] now"


@pytest.mark.parametrize("name", ["PWD", "KEYBOARD", "TOKENIZERS_PARALLELISM", "KEYRING", "PATH"])
def test_the_value_of_any_other_variable_is_none(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "opensesame")
    assert without_secrets("say opensesame now") == "say opensesame now"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:pa55word@h/d", "postgresql://u:[secret]@h/d"),
        ("host=h password=pa55word dbname=d", "host=h password=[secret] dbname=d"),
        ("password = 'pa55\\'word x' host=h", "password = [secret] host=h"),
        ("postgresql://h/d?password=pa55word&sslmode=x", "postgresql://h/d?password=[secret]&"),
    ],
)
def test_a_password_in_a_dsn_is_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text).startswith(shown)
    assert "pa55" not in without_secrets(text)
