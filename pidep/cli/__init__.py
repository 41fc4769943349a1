"""The command line: one file per command, each parses, calls one library function, renders. Starts without torch.

May import everything; heavy packages only inside a command's function.
"""

from pidep.cli.app import main

__all__ = ["main"]
