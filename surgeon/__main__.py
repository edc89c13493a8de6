"""`python -m surgeon`."""

from surgeon.cli.commands import main

main()
