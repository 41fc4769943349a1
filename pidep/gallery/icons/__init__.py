"""Icons of installed packages: listed, named, drawn on demand, and split. No torch.

`catalog` lists them, `names` takes names apart, `draw` renders, `split` divides them so that no
variant of an icon is on both sides, `digits` holds scikit-learn's handwriting.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.gallery.icons.catalog import FAMILIES, LICENCES, Family, Icon
    from pidep.gallery.icons.digits import Digit
    from pidep.gallery.icons.draw import drawn_file, render
    from pidep.gallery.icons.names import base_and_modifiers

__all__ = [
    "FAMILIES",
    "LICENCES",
    "Digit",
    "Family",
    "Icon",
    "base_and_modifiers",
    "drawn_file",
    "render",
]

__getattr__ = lazy_names(
    __name__,
    {
        "FAMILIES": "pidep.gallery.icons.catalog",
        "LICENCES": "pidep.gallery.icons.catalog",
        "Digit": "pidep.gallery.icons.digits",
        "Family": "pidep.gallery.icons.catalog",
        "Icon": "pidep.gallery.icons.catalog",
        "base_and_modifiers": "pidep.gallery.icons.names",
        "drawn_file": "pidep.gallery.icons.draw",
        "render": "pidep.gallery.icons.draw",
    },
)
