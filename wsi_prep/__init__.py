"""Whole-slide images to magnification-true tile shards."""

__version__ = "0.1.0"
