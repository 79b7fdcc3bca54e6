"""Which stain a slide has, and how much of each dye."""
