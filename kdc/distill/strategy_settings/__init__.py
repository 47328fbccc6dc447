"""Settings of the strategies around the loop, readable without torch: one file a family."""
