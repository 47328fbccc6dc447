"""The door: what an ONNX file must be before it is measured; see `targets.door.examine`."""
