"""A process of the campaign with a role, which is started again when it ends."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from psycopg.conninfo import make_conninfo

from .client import EPOCH_VARIABLE, RENEWAL_VARIABLE
from .history import Recorder
from .plan import Plan

PREFIX = "k/"
MODEL = "command:sleep 0.02; sed 's/^/re: /'"

HOSTING = {"host", "worker"}
"""Those that run `assistant run`: all agents, or one more worker that answers messages."""

_KILLED = -signal.SIGKILL
_ASKED_TO_END = {0, -signal.SIGTERM, 128 + signal.SIGTERM}
"""How a process ends that is asked to, also before it is ready for that, or twice."""

_LEAVING = {"host": {5, 69}, "worker": {5, 69}, "shell": {69}}


class Ear:
    """A script that reads what `kv watch` prints, and may stop reading.

    `mouth`: the end of its pipe to write to, which takes little.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._end, self.mouth = os.pipe()
        fcntl.fcntl(self.mouth, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        self._recorder = recorder
        self._heard = b""
        self._keys: set[str] = set()
        self._ended = False
        self.open()

    def open(self) -> None:
        """Read."""
        if not self._ended:
            asyncio.get_running_loop().add_reader(self._end, self._hear)

    def close(self) -> None:
        """Do not read."""
        if not self._ended:
            asyncio.get_running_loop().remove_reader(self._end)

    def knows(self, key: str) -> bool:
        """Whether it was told something of a key."""
        return key in self._keys

    def _hear(self) -> None:
        piece = os.read(self._end, 65_536)
        if not piece:
            self.close()
            self._ended = True
            os.close(self._end)
        *lines, self._heard = (self._heard + piece).split(b"\n")
        for line in lines:
            entry = json.loads(line)
            self._keys.add(entry["key"])
            self._recorder.deliver(0, entry["key"], entry.get("value"), entry["revision"])


class Actor:
    """A process with a role; started again it has another name, and so another history.

    Attributes:
        ended_with: the exit codes of its earlier lives.
        ear: who reads what one in the role `shell` prints.
    """

    ear: Ear

    def __init__(self, role: str, number: int, plan: Plan, folder: Path, dsn: str) -> None:
        self.role = role
        self.ended_with: list[int] = []
        self._stem = f"{role}{number}"
        self._plan = plan
        self._folder = folder
        self._dsn = dsn
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def name(self) -> str:
        return f"{self._stem}-{len(self.ended_with) + 1}"

    def start(self) -> None:
        """Begin a life."""
        self._asked = False
        dsn = make_conninfo(self._dsn, application_name=self.name)
        with self._output() as output, (self._folder / f"{self.name}.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._command(dsn)],
                cwd=self._plan.project,
                env={
                    **os.environ,
                    "ASSISTANT_DATABASE_URL": dsn,
                    RENEWAL_VARIABLE: str(self._plan.renewal),
                    EPOCH_VARIABLE: str(self._plan.epoch),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def _output(self) -> IO[bytes]:
        if self.role != "shell":
            return (self._folder / f"{self.name}.out").open("wb")
        self.ear = Ear(Recorder(self._folder / f"{self.name}.jsonl"))
        return os.fdopen(self.ear.mouth, "wb")

    def _command(self, dsn: str) -> list[str]:
        if self.role == "shell":
            return ["assistant_cli", "kv", "watch", "--prefix", PREFIX, "--json"]
        if self.role in HOSTING:
            options = ["--standby", "--heartbeat", "3s", "--model", MODEL]
            if self.role == "worker":
                options += ["--agent", f"conversation@{self._stem}"]
            return ["tests.faults.hosting", *options]
        seed = f"{self._plan.seed}/{self.name}"
        return ["tests.faults.client", self.role, self.name, seed, str(self._folder), dsn]

    def has_begun(self) -> bool:
        """Whether it has ever found the server."""
        if self.ended_with:
            return True
        if self.role in HOSTING:
            said = (self._folder / f"{self.name}.err").read_text("utf-8", "replace")
            return "hosting" in said or "standing by" in said
        history = self._folder / f"{self.name}.jsonl"
        return history.exists() and history.stat().st_size > 0

    def revive(self) -> str | None:
        """Start it again if it has ended; returns what is wrong about how it did, if anything."""
        if self.process.poll() is None:
            return None
        complaint = self.complaint()
        self.ended_with.append(self.process.returncode)
        self.start()
        return complaint

    def kill(self) -> None:
        """End the process, and a model's command that it may have started is left alone."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """Ask the process to end."""
        self._asked = True
        self.process.send_signal(signal.SIGTERM)

    def complaint(self) -> str | None:
        """What is wrong about the way in which the process ended by itself, if anything."""
        code = self.process.returncode
        # A host leaves when it lost its lease. Who finds no database at the start leaves.
        if code == _KILLED or code in _LEAVING.get(self.role, ()):
            return None
        if (self._asked or self.role == "watch") and code in _ASKED_TO_END:
            return None
        said = (self._folder / f"{self.name}.err").read_text("utf-8", "replace").splitlines()
        return f"{self.name} ended with {code}: {' / '.join(said[-3:])}"
