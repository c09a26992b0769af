"""What to train: tokenizer, amount of text, model and hyperparameters; what a plan costs."""
