"""`python -m assistant_cli`, the same as `assistant`."""

from .cli.app import main

main()
