"""Finished shards: checked, shown, exchanged, reckoned with and forgotten."""
