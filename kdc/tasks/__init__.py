"""What a task is, and how its data come in."""
