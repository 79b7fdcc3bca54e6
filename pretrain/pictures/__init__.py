"""Pictures to look at: what is trained on, and what a model sees in it."""
