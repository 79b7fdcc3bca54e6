"""Shard folders and labelled tiles, as batches."""
