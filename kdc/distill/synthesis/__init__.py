"""Training samples where the user has none: synthesised from the teacher, or chosen among collected ones."""
