"""C kernels for the recurrences, compiled on first use; PyTorch is the fallback."""
