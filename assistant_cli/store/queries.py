"""Named queries: the `.sql` file beside a module, its parts headed `-- name: …`."""

from __future__ import annotations

import re
from pathlib import Path

_HEADER = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(module_file: str) -> dict[str, bytes]:
    """Read the queries beside a module, by name, as bytes ready for psycopg."""
    text = Path(module_file).with_suffix(".sql").read_text("utf-8")
    parts = _HEADER.split(text)
    return {
        name: body.strip().rstrip(";").encode()
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
