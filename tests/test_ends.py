"""How a command ends where its streams, its folder or the moment are unfavourable."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from .conftest import CommandLine, eventually
from .small_disk import needs_small_disk, small_disk
from .test_help_and_completion import SCRIPT

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_full
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["kv", "get", "missing"], 3),
        (["kv", "set", "k", "bad"], 65),
        (["kv", "get"], 2),
        (["kv"], 2),
        (["db", "migrate"], 0),
        (["run", "--until-idle"], 0),
    ],
)
def test_a_full_stderr_changes_no_exit_code(
    assistant: CommandLine, command: list[str], code: int
) -> None:
    with Path("/dev/full").open("w") as full:
        process = assistant.start(*command, stderr=full)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")


def test_a_stderr_that_nobody_reads_changes_no_exit_code(assistant: CommandLine) -> None:
    process = assistant.start("kv", "get", "missing")
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(30) == 3


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("send", 2),
        ("send -", 66),
        ("kv set k", 2),
        ("kv set k -", 66),
        ("kv import", 66),
        ("schedule add --at 2h", 2),
        ("schedule add --at 2h -", 66),
        ("chat", 2),
    ],
)
def test_a_closed_stdin_is_told_in_one_line(
    assistant: CommandLine, command: str, code: int
) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m assistant_cli {command} <&-"],
        env=assistant.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 74),
        ("kv get k", 74),
        ("kv watch k", 74),
        ("status --watch", 74),
        ("kv get missing", 3),
        ("kv set k 2", 0),
    ],
)
def test_what_a_closed_stdout_does_not_take_is_told(
    assistant: CommandLine, command: str, code: int
) -> None:
    assistant("kv", "set", "k", "1")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m assistant_cli {command} >&-"],
        env=assistant.environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    told = "assistant: cannot write the output: Bad file descriptor\n"
    assert (done.returncode, done.stderr == told) == (code, code == 74)


@needs_full
def test_what_a_full_stdout_does_not_take_of_a_failure_is_told_beside_it(
    assistant: CommandLine,
) -> None:
    assistant("report", "backup", "failed")
    with Path("/dev/full").open("w") as full:
        process = assistant.start("status", "--check", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 74
    assert err.splitlines() == [
        "assistant: cannot write the output: No space left on device",
        "assistant: failed: backup",
    ]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_stdout_takes_only_in_part_is_told(
    assistant: CommandLine, tmp_path: Path, unbuffered: str
) -> None:
    assistant("kv", "set", "k", f'"{"x" * 100_000}"')
    assistant.environment["PYTHONUNBUFFERED"] = unbuffered
    with (tmp_path / "out").open("w") as out:
        process = assistant.start("kv", "get", "k", stdout=out, preexec_fn=limit_files)
        _, err = process.communicate(timeout=30)
    told = "assistant: cannot write the output: File too large\n"
    assert (process.returncode, err) == (74, told)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["kv get k", "kv export", "kv watch k -n 1", "kv ls --values"])
def test_a_stdout_that_does_not_block_takes_everything(
    assistant: CommandLine, unbuffered: str, command: str
) -> None:
    # As one that was shared with a program that waits for many files at once.
    value = f'"{"x" * 300_000}"'
    assistant("kv", "set", "k", value)
    assistant.environment["PYTHONUNBUFFERED"] = unbuffered
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = assistant.start(*command.split(), stdout=writing)
    os.close(writing)
    eventually(lambda: unread(reading) > 60_000, "a full pipe")
    with os.fdopen(reading) as out:
        assert value in out.read()
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("command", "first", "rest"),
    [
        ("kv set k -", '{"n":', "1}"),
        ("kv import -", '{"key": "k", "val', 'ue": {"n": 1}}'),
        ("send -", "one ", "two"),
    ],
)
def test_a_stdin_that_does_not_block_is_read_to_its_end(
    assistant: CommandLine, sql: psycopg.Connection[Any], command: str, first: str, rest: str
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = assistant.start(*command.split(), stdin=reading)
    os.write(writing, first.encode())
    eventually(lambda: unread(reading) == 0, "the first part")
    os.close(reading)
    os.write(writing, rest.encode())
    os.close(writing)
    process.communicate(timeout=30)
    assert process.returncode == 0
    kept = (
        "SELECT value ->> 'n' FROM kv WHERE key = 'k' UNION SELECT content FROM assistant.messages"
    )
    assert sql.execute(kept).fetchall() == [("one two" if command == "send -" else "1",)]


def unread(pipe: int) -> int:
    """How much waits in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("command", ["kv set k -", "kv import -", "send -"])
def test_a_stdin_that_cannot_be_read_is_told_in_one_line(
    assistant: CommandLine, command: str
) -> None:
    with Path(os.devnull).open("w") as written:
        process = assistant.start(*command.split(), stdin=written)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (66, "", 1)
    assert err.endswith(": Bad file descriptor\n")


@needs_small_disk
def test_a_home_that_cannot_be_written_is_told(assistant: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 1):
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        nowhere = CommandLine(assistant.environment | {"ASSISTANT_HOME": str(folder / "home")})
        nowhere.environment.pop("ASSISTANT_DATABASE_URL")
        doctor = nowhere("doctor")
        problem = f"cannot write to {folder}; set ASSISTANT_HOME or ASSISTANT_DATABASE_URL"
        assert (doctor.code, problem in doctor.out) == (77, True)
        done = subprocess.run(
            ["bash", "-c", f"{SCRIPT} --install-completion; exit $?"],
            env=assistant.environment | {"HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (77, 1)
        assert "Read-only file system" in done.stderr


BUILDING_THE_LOOP = "import socket\nsocket.socketpair = lambda *_, **__: wait()\n"


@pytest.mark.parametrize(
    ("module", "stub", "code"),
    [
        pytest.param("typer", "wait()\n", -signal.SIGINT, id="the program"),
        pytest.param("asyncio", "wait()\n", 130, id="what a command needs"),
        pytest.param("sitecustomize", BUILDING_THE_LOOP, 130, id="the event loop"),
    ],
)
def test_ctrl_c_while_something_is_loaded_is_silent(
    assistant: CommandLine, tmp_path: Path, module: str, stub: str, code: int
) -> None:
    loading = tmp_path / "loading"
    wait = (
        f"import time\ndef wait():\n    open({str(loading)!r}, 'w').close()\n    time.sleep(60)\n"
    )
    (tmp_path / f"{module}.py").write_text(wait + stub)
    assistant.environment["PYTHONPATH"] = str(tmp_path)
    process = assistant.start("status")
    eventually(loading.exists, "the import")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == code


@pytest.fixture
def without_names(assistant: CommandLine, tmp_path: Path) -> CommandLine:
    """The command line where the server of names says nothing."""
    stub = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
    (tmp_path / "sitecustomize.py").write_text(stub)
    silent = {"PYTHONPATH": str(tmp_path), "ASSISTANT_DATABASE_URL": "host=db.example"}
    return CommandLine(assistant.environment | silent)


def test_a_name_that_is_not_found_in_time_outlasts_no_deadline(without_names: CommandLine) -> None:
    process = without_names.start("status", "--timeout", "1s")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (124, "", "assistant: the time of 1s is over\n")


def test_completion_does_not_wait_for_a_name(without_names: CommandLine) -> None:
    without_names.environment |= {
        "_ASSISTANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "assistant kv get n",
        "COMP_CWORD": "3",
    }
    process = without_names.start()
    assert process.communicate(timeout=20) == ("\n", "")
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells what sleeps")
def test_ctrl_c_while_nobody_reads_the_output_is_silent(assistant: CommandLine) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    process = assistant.start("--version", stdout=writing)
    os.close(writing)
    # To load the program takes no sleep, to write to a full pipe does.
    state = psutil.Process(process.pid).status
    eventually(lambda: state() == psutil.STATUS_SLEEPING, "the full pipe")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) in {(130, ""), (-signal.SIGINT, "")}
    os.close(reading)


def test_a_run_loads_nothing_from_the_folder_that_it_is_started_in(
    assistant: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in {*sys.stdlib_module_names, "psycopg", "psutil", "rich", "tzlocal", "cronsim"}:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert assistant("send", "/help").code == 0
    done = subprocess.run(
        [str(SCRIPT), "run", "--until-idle"],
        cwd=folder,
        env=assistant.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_completion_for_an_unknown_shell_is_a_usage_error(assistant: CommandLine) -> None:
    # A shell is known by the name of a process above.
    process = assistant.start("--show-completion", start_new_session=True)
    out, err = process.communicate(timeout=20)
    assert process.returncode in {0, 2}
    assert (out == "") is (process.returncode == 2)
    assert process.returncode == 0 or "no shell that completion is there for" in err


@pytest.mark.parametrize(
    ("home", "told"),
    [
        ("~nosuchuser/x", "ASSISTANT_HOME is ~nosuchuser/x, and there is no such user"),
        ("/dev/null", "/dev/null is not a folder; set ASSISTANT_HOME"),
        ("/dev/null/x", "/dev/null/x is not a folder; set ASSISTANT_HOME"),
    ],
)
def test_a_home_that_is_no_folder_is_a_wrong_configuration(
    environment: dict[str, str], home: str, told: str
) -> None:
    done = CommandLine({**environment, "ASSISTANT_HOME": home})("status")
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert told in done.err


@pytest.mark.parametrize(
    ("home", "command", "told"),
    [
        ("relative", "status", "ASSISTANT_HOME is relative, and the folder it starts from is gone"),
        (None, "run --until-idle --agent mine:work", "cannot import mine: ModuleNotFoundError"),
    ],
)
def test_a_working_folder_that_is_gone_is_told(
    assistant: CommandLine, tmp_path: Path, home: str | None, command: str, told: str
) -> None:
    (tmp_path / "gone").mkdir()
    gone = 'cd "$0" && rmdir "$0" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", gone, str(tmp_path / "gone"), str(SCRIPT), *command.split()],
        env={**assistant.environment, **({"ASSISTANT_HOME": home} if home else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (78, "", 1)
    assert told in done.stderr
