"""Print the whole schema as one script."""

import sys

from . import list_migrations

_HEADER = """\
-- The whole schema of the assistant, for readers, for `psql -f` and for docker-compose.
-- Made from the migrations by `python -m assistant_cli.store.migrations`; do not edit it here.
-- It can run again on a database that has it, also while programs use it.

BEGIN;
SET LOCAL client_min_messages = warning;
"""

scripts = (step.script for step in list_migrations())
sys.stdout.write("\n".join([_HEADER, *scripts, "COMMIT;\n"]))
