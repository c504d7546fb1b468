"""The command line: parse, call, render. No SQL, no logic."""

import gc

_USUAL = gc.get_threshold()

# A command leaves little garbage, and looking for it among all that was imported, again and
# again, takes longer than to build the command.
gc.set_threshold(100_000)


def collect_as_usual() -> None:
    """Look for garbage as Python does, in a process that stays: there it would add up."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
