"""A traced network as data: genes, what they cost in pairs, one ONNX export for any widths, and the kernels in it."""
