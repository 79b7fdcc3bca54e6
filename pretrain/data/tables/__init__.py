"""Folders of Parquet tables with image bytes in place of shards."""
