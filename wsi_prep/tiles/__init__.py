"""Tiles: where they lie, their pixels, their measures, and the store that they end in."""
