"""From an ONNX file to a torch ExportedProgram, for the runtimes whose converters take no ONNX.

`module.py` walks the graph's nodes and calls a torch function for each; `torch.export` traces that walk. What depends on
sizes alone (Shape, Gather, Concat in front of a Reshape) is computed beside the trace and stands in it as plain sizes.
QuantizeLinear and DequantizeLinear become `torch.ops.quantized_decomposed`, which XNNPACK, LiteRT and Core ML know.
"""
