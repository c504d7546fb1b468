"""Print the whole schema as one script."""

import sys

from . import list_migrations

_HEADER = """\
-- The whole schema of the assistant, for readers, for `psql -f` and for docker-compose.
-- Made from the migrations by `python -m assistant_cli.store.migrations`; do not edit it here.
-- It can run again on a database that has it.

SET client_min_messages = warning;
"""

sys.stdout.write("\n".join([_HEADER, *(step.script for step in list_migrations())]))
