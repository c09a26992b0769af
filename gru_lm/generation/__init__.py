"""Text generation: sampling from a model."""
