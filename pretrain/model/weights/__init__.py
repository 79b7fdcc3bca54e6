"""Weights to begin from, in the layouts that others publish."""
