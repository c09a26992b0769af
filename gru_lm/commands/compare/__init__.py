"""`gru-lm compare`: cells or finished models, measured against each other."""
