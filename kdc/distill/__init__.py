"""The one training loop, and what composes in it."""
