"""The order of things: recipe, plan, run, report."""
