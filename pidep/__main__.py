"""`python -m pidep`."""

from pidep.cli import main

main()
