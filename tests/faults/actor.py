"""A process of the campaign with a role, which is started again when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from psycopg.conninfo import make_conninfo

from .client import EPOCH_VARIABLE, RENEWAL_VARIABLE
from .plan import Plan

MODEL = "command:sleep 0.02; sed 's/^/re: /'"

_KILLED = -signal.SIGKILL
_ASKED_TO_END = {0, -signal.SIGTERM, 128 + signal.SIGTERM}
"""How a process ends that is asked to, also before it is ready for that, or twice."""


class Actor:
    """A process with a role; started again it has another name, and so another history.

    `ended_with`: the exit codes of its earlier lives.
    """

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
        with (self._folder / f"{self.name}.err").open("wb") as errors:
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
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def _command(self, dsn: str) -> list[str]:
        if self.role == "host":
            return ["tests.faults.hosting", "--standby", "--heartbeat", "3s", "--model", MODEL]
        seed = f"{self._plan.seed}/{self.name}"
        return ["tests.faults.client", self.role, self.name, seed, str(self._folder), dsn]

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
        # A host leaves when it lost its lease, or found no database when it started.
        if code == _KILLED or (self.role == "host" and code in {5, 69}):
            return None
        if (self._asked or self.role == "watch") and code in _ASKED_TO_END:
            return None
        said = (self._folder / f"{self.name}.err").read_text("utf-8", "replace").splitlines()
        return f"{self.name} ended with {code}: {' / '.join(said[-3:])}"
