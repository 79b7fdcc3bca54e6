"""Tiled TIFF: SVS, generic pyramids and OME-TIFF."""
