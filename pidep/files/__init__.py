"""Files: atomic writes, safetensors, digests, caches, HTML. May import `pidep.errors`."""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.files.atomic_write import (
        atomic_folder,
        check_place,
        write_bytes,
        write_json,
        write_text,
    )
    from pidep.files.bounded_read import read_file, read_json
    from pidep.files.cache_file import read_cached, write_cached
    from pidep.files.cache_folder import locked
    from pidep.files.digest import bytes_digest, file_digest
    from pidep.files.tensor_file import read_tensors, tensor_bytes

__all__ = [
    "atomic_folder",
    "bytes_digest",
    "check_place",
    "file_digest",
    "locked",
    "read_cached",
    "read_file",
    "read_json",
    "read_tensors",
    "tensor_bytes",
    "write_bytes",
    "write_cached",
    "write_json",
    "write_text",
]

__getattr__ = lazy_names(
    __name__,
    {
        "atomic_folder": "pidep.files.atomic_write",
        "bytes_digest": "pidep.files.digest",
        "check_place": "pidep.files.atomic_write",
        "file_digest": "pidep.files.digest",
        "locked": "pidep.files.cache_folder",
        "read_cached": "pidep.files.cache_file",
        "read_file": "pidep.files.bounded_read",
        "read_json": "pidep.files.bounded_read",
        "read_tensors": "pidep.files.tensor_file",
        "tensor_bytes": "pidep.files.tensor_file",
        "write_bytes": "pidep.files.atomic_write",
        "write_cached": "pidep.files.cache_file",
        "write_json": "pidep.files.atomic_write",
        "write_text": "pidep.files.atomic_write",
    },
)
