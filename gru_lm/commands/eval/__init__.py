"""`gru-lm eval`: all that is measured of a run on texts."""
