"""The voice token broker: plans that a browser can always use, turns that are kept."""

__version__ = "0.1.0"
