"""What in a slide's picture speaks for tissue, and what against it."""
