"""Tuning: training an expert per task, and the whole predict-interpolate run behind `pidep tune`.

May import everything below the three wings, never `pidep.export` or `pidep.serving`.
"""

__all__: list[str] = []
