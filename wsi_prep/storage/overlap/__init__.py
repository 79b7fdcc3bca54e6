"""What tables of labelled tiles share with shards: slides, patients, and tiles that look the same."""
