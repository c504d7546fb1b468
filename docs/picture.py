"""Draws docs/status.svg from the board of the configured database.

python docs/picture.py, with `assistant run` and whatever else shall be in it running.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from rich.console import Console

from assistant_cli import connect
from assistant_cli.cli.status_table import draw
from assistant_cli.store.status import get_snapshot


async def main() -> None:
    """Draw the picture."""
    async with connect() as database:
        snapshot = await get_snapshot(database)
    console = Console(record=True, width=92, force_terminal=True)
    console.print("$ assistant status --watch", highlight=False)
    console.print(draw(snapshot, list(snapshot.agents), snapshot.now))
    # Without the fonts that Rich refers to on the net: the viewer's own will do.
    picture = re.sub(r"@font-face \{[^}]*\}\s*", "", console.export_svg(title="assistant"))
    (Path(__file__).parent / "status.svg").write_text(picture, "utf-8")


asyncio.run(main())
