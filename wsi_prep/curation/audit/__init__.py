"""What is in shards, as numbers, pictures and one page."""
