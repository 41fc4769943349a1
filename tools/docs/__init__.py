"""Scripts that build the documentation and run its pages."""
