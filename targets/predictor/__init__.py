"""Estimating latencies on the user's own machine: calibrate once, then ask for any ONNX file without timing it."""
