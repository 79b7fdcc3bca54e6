"""One slide as it is found: its pixels, its scale, and what of it may be written down."""
