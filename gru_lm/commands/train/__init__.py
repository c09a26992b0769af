"""`gru-lm train`: prepare, train and resume runs."""
