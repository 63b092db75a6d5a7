"""The one place that states the version; setup.py reads it."""

__version__ = "0.1.0"
