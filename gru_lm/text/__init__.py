"""From text to token ids to batches; knows nothing of models."""
