"""Slide files as pixels: one interface, a reader for tiled TIFF and one for everything that OpenSlide knows."""
