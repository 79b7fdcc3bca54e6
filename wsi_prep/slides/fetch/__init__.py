"""Slides' bytes, from wherever they are."""
