"""`gru-lm` and `python -m gru_lm` are one program."""

from gru_lm.cli import main

if __name__ == "__main__":
    main()
