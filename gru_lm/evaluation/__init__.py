"""How well a model predicts a text."""

# stream carries the state through each document, line resets it at each line, columns cuts all of the
# text as validation does. Here, where the command line finds them without torch.
MODES = ("stream", "line", "columns")
CONVENTIONS = ("srilm", "kenlm", "lm-eval")  # of other tools, for `--as`
TABLES = (".tsv", ".csv", ".jsonl")  # forms of a table, by the ending of its file's name
