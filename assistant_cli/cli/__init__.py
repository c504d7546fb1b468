"""The command line: parse, call, render. No SQL, no logic."""

import gc

# A command leaves little garbage, and looking for it among all that was imported, again and
# again, takes longer than to build the command.
gc.set_threshold(100_000)
