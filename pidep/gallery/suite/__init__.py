"""Sixteen packaged tasks of vision, language and both, drawn from package data alone. No torch.

`facts` states them: what is asked, labels, sizes, licences; nothing is drawn for it. `vision`, `language` and `vision_language` choose
their rows, `pictures` draws, `files` keeps rows as JSONL in the user's cache folder. May import what `pidep.tasks` may.
"""

__all__: list[str] = []
