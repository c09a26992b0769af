"""gru-lm: recurrent language models from the command line, trained, measured and compared."""

__version__ = "0.1.0"
