"""The C kernels of the recurrence, compiled where they run; PyTorch's own path is always there too."""
