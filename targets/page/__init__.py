"""The picture of a measurement: one HTML file that opens offline; see `targets.page.page`."""
