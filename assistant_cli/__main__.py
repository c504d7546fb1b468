"""`python -m assistant_cli`, the same as `assistant`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line of this process and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # To load the program takes a moment, in which Ctrl-C would end in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import app

    app.main()


if __name__ == "__main__":
    main()
