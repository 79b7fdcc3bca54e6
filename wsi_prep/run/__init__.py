"""One call of `make shards`, and one slide's work in it."""
