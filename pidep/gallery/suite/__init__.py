"""Sixteen packaged tasks of vision, language and both, drawn from package data alone. No torch.

`facts` states what each asks, its labels, sizes and licences. `vision`, `language` and
`vision_language` choose rows, `pictures` draws, and `files` keeps rows as JSONL in the user's cache
folder.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.gallery.suite.facts import FACTS, Facts, Modality
    from pidep.gallery.suite.files import packaged_files, sides_of
    from pidep.gallery.suite.row import SuiteRow

__all__ = [
    "FACTS",
    "Facts",
    "Modality",
    "SuiteRow",
    "packaged_files",
    "sides_of",
]

__getattr__ = lazy_names(
    __name__,
    {
        "FACTS": "pidep.gallery.suite.facts",
        "Facts": "pidep.gallery.suite.facts",
        "Modality": "pidep.gallery.suite.facts",
        "SuiteRow": "pidep.gallery.suite.row",
        "packaged_files": "pidep.gallery.suite.files",
        "sides_of": "pidep.gallery.suite.files",
    },
)
