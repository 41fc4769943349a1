"""Icons out of packages: what there is, what it is called, drawn on demand, split so that no variant is on both sides. No torch.

`catalog` lists them, `names` takes names apart, `draw` renders, `split` divides, `digits` holds scikit-learn's handwriting.
May import what `pidep.tasks` may.
"""

__all__: list[str] = []
