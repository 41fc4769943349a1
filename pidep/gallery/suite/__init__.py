"""Sixteen packaged tasks of vision, language and both, drawn from package data alone. No torch.

`facts` states what each asks, its labels, sizes and licences. `vision`, `language` and
`vision_language` choose rows, `pictures` draws, and `files` keeps rows as JSONL in the user's cache
folder.
"""

__all__: list[str] = []
