"""`python -m reproduce` is the `fcn` command."""

from reproduce.cli import main

main()
