"""Strategies around the loop, one family a file: what a view is, or a policy that composes with the objectives."""
