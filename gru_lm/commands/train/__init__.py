"""`gru-lm train`: prepare, fit, resume."""
