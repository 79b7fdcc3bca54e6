"""Which slides there are, and what a lab knows of them."""
