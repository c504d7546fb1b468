"""Text that would steer a terminal, and what of it a terminal is shown."""

from __future__ import annotations

import re

# As stored, as shown on a line of a terminal, as shown in JSON on a terminal.
PIECES = [
    ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", r"\u001b[31mred\u001b[0m"),
    ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H", r"\u001b[2J\u001b[H"),
    ("\x1b]8;;http://x\x07at", r"\x1b]8;;http://x\x07at", r"\u001b]8;;http://x\u0007at"),
    ("\x1b]52;c;eA==\x07clip", r"\x1b]52;c;eA==\x07clip", r"\u001b]52;c;eA==\u0007clip"),
    ("\x9b31mred\x9d52;c;eA==\x9c", r"\x9b31mred\x9d52;c;eA==\x9c", r"\u009b31mred\u009d52;c;"),
    ("\u202etxet\u202c \u2066a\u2069", r"\u202etxet\u202c \u2066a\u2069", r"\u202etxet\u202c"),
    ("over\rwritten\x7f", r"over\rwritten\x7f", r"over\rwritten\u007f"),
    ("[red]x[/red] [/foo] :smile:", "[red]x[/red] [/foo] :smile:", "[red]x[/red] [/foo] :smile:"),
    ("[link=http://x]y[/link]", "[link=http://x]y[/link]", "[link=http://x]y[/link]"),
    ("\u00fc\u4e2d", "\u00fc\u4e2d", ""),
]
HOSTILE = " ".join(stored for stored, _, _ in PIECES)
ON_A_LINE = [shown for _, shown, _ in PIECES]
IN_JSON = [shown for _, _, shown in PIECES]

# A key that the commands themselves accept.
BIDI = "\u202eyek [red]x[/red] \u00fc"

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# What draws the board itself: its own colors, none of which is plain red, and its movements.
DRAWING = re.compile(r"\x1b\[(0|1|2|32|36|1;31)m|\x1b\[\?(25|1049)[lh]|\r?\x1b\[2K|\x1b\[(\d*A|H)")
