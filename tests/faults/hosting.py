"""`assistant run` with leases that lapse sooner: `python -m tests.faults.hosting OPTIONS`."""

from __future__ import annotations

import sys

from assistant_cli.cli.app import main

from .client import shorten_leases

if __name__ == "__main__":
    shorten_leases()
    sys.argv[1:1] = ["run"]
    main()
