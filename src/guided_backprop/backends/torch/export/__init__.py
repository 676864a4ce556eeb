"""An explanation as one graph of PyTorch's operations, and the same in ONNX's words."""
