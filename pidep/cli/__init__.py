"""The command line: one file per command. Each parses, calls one library function, and renders.

`app` lists the commands; `command` has their help and messages; `options` makes options of
settings. The program starts without torch, and `pidep --help` without numpy, pydantic and rich. May
import everything; heavy packages only inside a command's function.
"""

from pidep.cli.app import main

__all__ = ["main"]
