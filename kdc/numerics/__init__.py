"""Pure tensor and number maths: no files, no models."""
