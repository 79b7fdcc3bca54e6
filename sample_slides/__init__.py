"""Slides to try the pipeline on: one real one, fetched, and synthetic ones whose tissue is known exactly."""
