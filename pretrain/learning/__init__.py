"""What is learned, and how: losses, targets, objectives, optimizer, schedules."""
