"""Runs many command lines, each in a fork of one process that has loaded the program already.

`python -m tests.command_lines` reads the words of a command line as a JSON array, a line each, and
answers with a line `{"code": …, "out": …, "err": …}`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from assistant_cli.cli.app import run_command_line

from .conftest import Finished

_LONGEST_SECONDS = 20

RunCommandLine = Callable[[Sequence[str]], Finished]


@contextmanager
def running_command_lines(environment: dict[str, str]) -> Iterator[RunCommandLine]:
    """What runs a command line; one that takes too long ends with -14."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.command_lines"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def run(words: Sequence[str]) -> Finished:
            questions.write(json.dumps(words) + "\n")
            questions.flush()
            return Finished(**json.loads(answers.readline()))

        yield run
        questions.close()


def _run(words: list[str]) -> Finished:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become(words, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
    return Finished(os.waitstatus_to_exitcode(status), *texts)


def _become(words: list[str], out: int, err: int) -> None:
    """Be the process of this command line, and end."""
    code = 1
    try:
        signal.alarm(_LONGEST_SECONDS)
        for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(target, number)
        code = run_command_line(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(vars(_run(json.loads(line)))) + "\n")
        sys.stdout.flush()
