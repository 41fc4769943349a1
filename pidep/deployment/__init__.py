"""deployment."""

__all__: list[str] = []
