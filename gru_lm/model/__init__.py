"""The neural networks, in PyTorch only: no text, no files, no command line."""
