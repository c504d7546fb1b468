"""The command `assistant`: its groups, and how every command ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from copy import copy
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command_name, get_group

from .. import __version__
from ..errors import AssistantError, ClosedPipeError, NotPermittedError, OutputError, UsageError
from . import commands, output, session, streams

_NOT_WRITTEN = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT, errno.EBADF}
_NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}

EPILOG = """\
--database-url and --color may also stand behind a command, before any `--`.

Exit codes:
  0 done, yes                    65 bad data
  2 usage                        66 input file missing
  3 no such key, path or agent   69 database unreachable
  4 stale: the holder is gone    74 output not written
  5 lost the race                75 too many messages wait
  6 an agent or a turn failed    77 not permitted
  8 not yet: pending             78 configuration wrong
                                 124 deadline passed
                                 130 interrupted, 143 terminated, 141 closed pipe

Environment: ASSISTANT_DATABASE_URL, DATABASE_URL (your own Postgres; neither:
an embedded one), ASSISTANT_HOME, ASSISTANT_MODEL, ASSISTANT_BASE_URL,
ASSISTANT_HEARTBEAT, ASSISTANT_HEARTBEAT_HOURS, ASSISTANT_HEARTBEAT_TOKENS,
ASSISTANT_TURN_TIMEOUT, NO_COLOR.

Examples:
  assistant run --model 'command:llm'
  assistant send --wait 'what is on today?'
  assistant status --watch
  assistant kv get status_board heartbeat.status -r
"""

# The module of each command and what its help begins with, in the order of the help.
COMMANDS = {
    "run": ("run", "Host the conversation and the heartbeat agent until a signal."),
    "chat": ("chat", "Talk with the assistant; Ctrl-C cancels a reply, Ctrl-D leaves."),
    "send": (
        "send",
        "Send a message: exit 0 once it is committed, and print its id; with --wait, the reply.",
    ),
    "reply": (
        "send",
        "Print the reply to a message; exit 8 while there is none yet, 6 if there will be none.",
    ),
    "history": ("history", "Show the last messages of a conversation, oldest first."),
    "status": (
        "status",
        "Show what each agent does, since when, and whether its process is still alive.",
    ),
    "wait": (
        "board",
        "Wait until agents are in a state, also agents that are not on the board yet.",
    ),
    "report": ("board", "Put the status of an agent of your own on the board."),
    "track": (
        "track",
        "Run CMD as an agent: running while it runs, then idle or failed; its exit code is CMD's.",
    ),
    "turns": ("turns", "The turns of the agents: what each did, and what it cost."),
    "schedule": (
        "schedule",
        "Texts that come at a time, every so often, or as a cron line says.",
    ),
    "heartbeat": (
        "heartbeat",
        "Ask for a heartbeat, pause them, and see what came of the last one.",
    ),
    "memory": ("memory", "What the agents remember."),
    "kv": ("kv", "Durable JSON values that any program can read and write."),
    "db": ("database", "The database."),
    "doctor": ("doctor", "Check everything a run needs; start and change nothing."),
}


class Root(commands.Group):
    """The group of all commands; what one takes is built when it is called.

    Building all of them takes longer than what most of them do.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(commands.Command(name, help=summary))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _global_options_first(args, ctx.resilient_parsing))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load_command(name, rest), rest


def load_command(name: str, words: Sequence[str] = ()) -> Any:
    """A command with all that it takes; of a group, where words call one of it, only that one."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    import_module(f".{COMMANDS[name][0]}", __package__).register(app)
    for group in app.registered_groups:
        group.typer_instance = _narrow(group.typer_instance, words[:1])
    return get_group(app).commands[name]


def _narrow(group: Any, called: Sequence[str]) -> Any:
    narrowed = copy(group)
    narrowed.registered_commands = [
        command
        for command in group.registered_commands
        if (command.name or get_command_name(command.callback.__name__)) in called
    ]
    return narrowed if narrowed.registered_commands else group


def create_app() -> typer.Typer:
    """The command line."""
    return typer.Typer(
        name="assistant",
        cls=Root,
        callback=configure,
        help="A background assistant and its state, made for the shell.",
        epilog="\n\n".join("\b\n" + part for part in EPILOG.split("\n\n")),
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"assistant {__version__}\n")
        raise typer.Exit


def configure(
    database_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Your own Postgres. In the environment it stays out of the process list.",
            show_envvar=False,
        ),
    ] = None,
    color: Annotated[
        str, typer.Option(metavar="auto|always|never", help="Color on stdout.")
    ] = "auto",
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Set up what all commands share."""
    del version
    if color not in {"auto", "always", "never"}:
        raise typer.BadParameter("it is auto, always or never", param_hint="--color")
    if database_url == "":
        raise UsageError("--database-url is empty; leave it out for the configured database")
    output.set_color(color)
    session.configure(database_url)


def main() -> None:
    """Run the command line of this process and exit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        # From here on KeyboardInterrupt is caught.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A parent may have it ignored; then the exit codes of our own children would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = run_command_line(sys.argv[1:])
    # What the log could not write must not fail again when Python exits.
    output.write_to_stderr("")
    sys.exit(code)


def run_command_line(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. No traceback leaves from here."""
    streams.prepare_streams()
    try:
        if {"--install-completion", "--show-completion"}.intersection(arguments):
            import_module(".completion", __package__).prepare()
        result = create_app()(arguments, prog_name="assistant", standalone_mode=False)
        if result == session.INTERRUPTED:
            # To flush to a reader that does not read would hang.
            output.silence(sys.stdout)
        sys.stdout.flush()
    except (BrokenPipeError, ClosedPipeError):
        code = ClosedPipeError.exit_code
        output.silence(sys.stdout)
    except SystemExit as leaving:
        # Completion leaves like this; with 1 so does Typer where a pipe is closed.
        code = ClosedPipeError.exit_code if leaving.code == 1 else int(leaving.code or 0)
    except AssistantError as error:
        code = _fail(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = session.INTERRUPTED
        output.silence(sys.stdout)
    except Exception as error:
        code = _exit_code_of(error)
    else:
        code = result if isinstance(result, int) else 0
    return code


def _exit_code_of(error: Exception) -> int:
    """Report what Typer refuses, or a fault of ours, in one line."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        help_of = f"; see `{context.command_path} --help`" if context else ""
        message = format_message().rstrip(".")
        if "\n" in message:
            # A group without a command: the message is its help.
            output.write_to_stderr(f"{message}\n")
            return 2
        return _fail(f"{message}{help_of}", int(getattr(error, "exit_code", 2)))
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        return _fail_to_write(error)
    if isinstance(error, OSError) and error.errno in _NOT_PERMITTED:
        what = error.filename or "what it needs"
        return _fail(f"cannot use {what}: {error.strerror}", NotPermittedError.exit_code)
    if os.environ.get("ASSISTANT_DEBUG"):
        raise error
    return _fail(f"internal error ({type(error).__name__}); ASSISTANT_DEBUG=1 shows where", 1)


def _fail(message: str, code: int) -> int:
    """Report an error; returns its exit code, or another where what was printed is lost."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        output.silence(sys.stdout)
    except OSError as error:
        code = _fail_to_write(error)
    output.tell(message, "ERROR")
    return code


def _fail_to_write(error: OSError) -> int:
    output.silence(sys.stdout)
    return _fail(f"cannot write the output: {error.strerror}", OutputError.exit_code)


def _global_options_first(arguments: list[str], unfinished: bool) -> list[str]:
    """Let the options of all commands stand behind a command as well.

    `unfinished`: the line is being completed; where it is a value of theirs, they are all of it.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word in {"--database-url", "--color"}:
            value = next(words, None)
            if value is None and unfinished:
                return [word]
            if value is None:
                raise UsageError(f"option '{word}' requires an argument")
            moved += [word, value]
        elif word.startswith(("--database-url=", "--color=")):
            moved.append(word)
        else:
            rest.append(word)
    return [*moved, *rest, *arguments[end:]]
