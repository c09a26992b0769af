"""From batches to checkpoints; knows no terminal."""
