"""Engines that `bench_export` times beside each other, each in a process of its own.

`run` times one engine. Every other file makes engines: a function from a batch to a call that
answers it. Peers that need another environment import nothing of pidep.
"""

__all__: list[str] = []
