"""Icons of installed packages: listed, named, drawn on demand, and split. No torch.

`catalog` lists them, `names` takes names apart, `draw` renders, `split` divides them so that no
variant of an icon is on both sides, `digits` holds scikit-learn's handwriting.
"""

__all__: list[str] = []
