"""The forty rows of what serving must survive, a test each (`docs/reference/reliability.md`)."""
