"""The version, which results and pages name."""

__version__ = "0.2.0"
