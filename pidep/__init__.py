"""pidep: π-Tuning (arXiv 2304.14381) for compiled inference: tune, predict, interpolate, export, serve."""

__version__ = "0.1.0"
__all__ = ["__version__"]
