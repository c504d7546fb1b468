"""Settings: an option beats the environment, which beats config.toml, which beats the default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from assistant_cli import connect
from assistant_cli.errors import ConfigurationError
from assistant_cli.settings import Settings, load_settings

from .conftest import CommandLine

# In falling order of precedence; each names a database that tells where it came from.
SOURCES = ["--database-url", "ASSISTANT_DATABASE_URL", "DATABASE_URL", "config.toml"]
DEFAULTS = ("offline", None, "30m", "10m")


def write_config(home: Path, text: str) -> Path:
    home.mkdir(mode=0o700, exist_ok=True)
    path = home / "config.toml"
    path.write_text(text)
    return path


@pytest.fixture
def home(environment: dict[str, str]) -> Path:
    return Path(environment["ASSISTANT_HOME"])


@pytest.mark.parametrize("first", range(len(SOURCES) + 1))
def test_the_database_comes_from_the_first_place_that_names_one(
    environment: dict[str, str], home: Path, first: int
) -> None:
    arguments: list[str] = []
    for number, source in enumerate(SOURCES):
        # What comes before is empty, which names nothing.
        url = f"host=127.0.0.1 port=1 dbname=db{number}" if number >= first else ""
        match source:
            case "--database-url":
                arguments += [source, url] if url else []
            case "config.toml":
                write_config(home, f'database_url = "{url}"')
            case _:
                environment[source] = url
    done = CommandLine(environment)(*arguments, "db", "status", "--json")
    assert done.code == 69
    document = json.loads(done.out)
    assert document["source"] == [*SOURCES, "embedded"][first]
    assert (f"dbname=db{first}" in document["url"]) is (first < len(SOURCES))


def test_every_setting_has_a_default_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    environ = {"ASSISTANT_HOME": str(tmp_path), "ASSISTANT_HEARTBEAT": ""}
    assert load_settings(environ=environ) == Settings(tmp_path)
    write_config(tmp_path, 'model = "command:a"\nheartbeat = "1m"\nturn_timeout = "2m"\n')
    assert load_settings(environ=environ) == Settings(
        tmp_path, model="command:a", heartbeat="1m", turn_timeout="2m"
    )
    environ["ASSISTANT_MODEL"] = "command:b"
    environ["ASSISTANT_HEARTBEAT"] = "off"
    environ["ASSISTANT_TURN_TIMEOUT"] = "3m"
    assert load_settings(environ=environ) == Settings(
        tmp_path, model="command:b", heartbeat="off", turn_timeout="3m"
    )


def test_run_is_hosted_with_the_model_of_the_option(assistant: CommandLine) -> None:
    write_config(Path(assistant.environment["ASSISTANT_HOME"]), 'model = "command:tr a-z A-Z"')
    assistant("send", "--id", "1", "hello")
    assert assistant("run", "--until-idle").code == 0
    assert assistant("send", "--id", "1", "hello", "--wait").out == "HELLO\n"
    assistant("send", "--id", "2", "hello")
    assert assistant("run", "--until-idle", "--model", "command:echo other").code == 0
    assert assistant("send", "--id", "2", "hello", "--wait").out == "other\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('databse_url = "s3cret"', "unknown key 'databse_url'; the keys are base_url, "),
        ("database_url = 5432", "database_url must be text in quotes"),
        ('model = ["command:llm"]', "model must be text in quotes"),
        ("database_url = postgresql://u:s3cret@h/db", "is not TOML"),
        ("model = '''", "is not TOML"),
        (b'model = "caf\xe9"', "cannot read"),
        (f"heartbeat_tokens = {'9' * 5000}", "is not TOML: Exceeds the limit"),
        (f"model = {'[' * 9000}", "is not TOML"),
        (None, "cannot read"),
    ],
)
def test_a_config_file_that_is_wrong_is_one_line_and_names_the_file(
    environment: dict[str, str], home: Path, content: str | bytes | None, complaint: str
) -> None:
    path = write_config(home, "")
    if content is None:
        # A folder in its place can be read by nobody, not even by root.
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = CommandLine(environment)("kv", "ls")
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert str(path) in done.err
    assert complaint in done.err
    assert "s3cret" not in done.err


def test_an_option_does_not_hide_a_config_file_that_is_wrong(
    environment: dict[str, str], home: Path
) -> None:
    write_config(home, "nonsense")
    done = CommandLine(environment)("db", "url", "--database-url", "host=h")
    assert (done.code, done.out) == (78, "")


def test_help_is_there_whatever_the_config_file_says(
    environment: dict[str, str], home: Path
) -> None:
    write_config(home, "nonsense")
    done = CommandLine(environment)("status", "--help")
    assert (done.code, done.err) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "me/.local/share/assistant"),
        ({"ASSISTANT_HOME": ""}, "me/.local/share/assistant"),
        ({"XDG_DATA_HOME": "data"}, "data/assistant"),
        ({"XDG_DATA_HOME": "data", "ASSISTANT_HOME": "~/mine"}, "me/mine"),
        ({"ASSISTANT_HOME": "here/mine"}, "here/mine"),
    ],
)
def test_the_home_is_the_platforms_data_folder_unless_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if data := environ.get("XDG_DATA_HOME"):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / data))
    assert load_settings(environ=environ).home == tmp_path / expected


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_without_a_home_the_config_file_in_the_data_folder_counts(
    environment: dict[str, str],
) -> None:
    del environment["ASSISTANT_HOME"]
    home = Path(environment["HOME"], ".local", "share", "assistant")
    home.mkdir(parents=True)
    write_config(home, 'database_url = "host=h dbname=mine"')
    assert "dbname=mine" in CommandLine(environment)("db", "url").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["db", "--database-url=dbname=mine", "url"],
        ["db", "url", "--database-url", "dbname=mine"],
        ["db", "url", "--database-url=dbname=mine"],
    ],
)
def test_the_database_may_be_named_anywhere_before_a_double_dash(
    environment: dict[str, str], arguments: list[str]
) -> None:
    environment["ASSISTANT_DATABASE_URL"] = "dbname=other"
    done = CommandLine(environment)(*arguments)
    assert (done.code, done.out, done.err) == (0, "dbname=mine\n", "")


def test_a_database_url_without_a_value_says_that_it_needs_one(
    environment: dict[str, str],
) -> None:
    done = CommandLine(environment)("db", "url", "--database-url")
    assert (done.code, done.out) == (2, "")
    assert "'--database-url' requires an argument" in done.err


def test_an_option_that_is_empty_is_no_choice_of_the_embedded_database(
    environment: dict[str, str],
) -> None:
    done = CommandLine(environment)("kv", "get", "k", "--database-url", "")
    assert (done.code, done.out) == (2, "")
    assert "--database-url is empty" in done.err


async def test_a_dsn_that_is_empty_is_no_choice_of_the_configured_database(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSISTANT_DATABASE_URL", dsn)
    with pytest.raises(ConfigurationError, match="the DSN given is empty"):
        async with connect(""):
            pass
    async with connect() as database:
        assert database.dsn == dsn


def test_each_agent_may_have_a_model_of_its_own(assistant: CommandLine) -> None:
    home = Path(assistant.environment["ASSISTANT_HOME"])
    write_config(home, 'model = "offline"\n[models]\nconversation = "command:tr a-z A-Z"\n')
    process = assistant.start_run()
    assert assistant("send", "--wait", "hello").out == "HELLO\n"
    process.terminate()
    process.wait()
    assistant.environment["ASSISTANT_MODEL"] = "command:rev"
    assistant.start_run()
    assert assistant("send", "--wait", "hello").out == "olleh\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('models = "openai:gpt-5"', "models is a table"),
        ("[models]\nheartbeat = 5", "heartbeat must be text in quotes"),
        ('[models]\nheartbeat = "nobody:x"', "nobody:x"),
    ],
)
def test_a_bad_table_of_models_is_told_before_anything_starts(
    assistant: CommandLine, text: str, complaint: str
) -> None:
    write_config(Path(assistant.environment["ASSISTANT_HOME"]), text)
    done = assistant("run", "--until-idle")
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert complaint in done.err
