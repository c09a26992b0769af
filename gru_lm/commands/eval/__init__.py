"""`gru-lm eval`: score texts with a run's model."""
