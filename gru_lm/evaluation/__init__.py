"""Evaluation: how well a model predicts a text."""

# stream carries the state through each document, line resets it at every line, columns splits the text
# into parallel columns as validation does. Defined here so that the command line needs no torch.
MODES = ("stream", "line", "columns")
RECORDS = "records"  # the mode of lists: each record is a sequence of its own
CONVENTIONS = ("srilm", "kenlm", "lm-eval")  # reporting conventions of other tools, for `--as`
TABLES = (".tsv", ".csv", ".jsonl")  # formats of tables
