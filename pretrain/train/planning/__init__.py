"""What a recipe will need and take on some GPUs, told without one."""
