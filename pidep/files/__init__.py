"""Files: atomic writes, safetensors, digests, and the cache folder. May import `pidep.errors`."""

__all__: list[str] = []
