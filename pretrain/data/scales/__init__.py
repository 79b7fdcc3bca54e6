"""Tiles of any um/px from stored ones: how often each um/px is drawn, which tiles can serve it, and how it is cut."""
