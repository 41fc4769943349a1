"""gallery."""

__all__: list[str] = []
