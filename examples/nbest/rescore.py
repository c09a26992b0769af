"""Rescore the n-best lists of a speech recogniser with a run; prints the best hypothesis per utterance.

    python rescore.py RUN NBEST.tsv [--scale S] [--weight W] [--lower]

NBEST.tsv has a header and one row per hypothesis. Four columns are used: `utt`, `hyp`, and the natural
log-probabilities `acoustic_ln` (acoustic model) and `lm_ln` (the recogniser's own language model). The
score of a hypothesis is

    acoustic_ln + S ((1 - W) lm_ln - W nats)

where nats is its negative log-probability under the run. If a field is missing or invalid, exits with
code 3 and names file and line.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

COLUMNS = ("utt", "acoustic_ln", "lm_ln", "hyp")

parser = argparse.ArgumentParser(description="Rescore n-best lists with a run.")
parser.add_argument("run")
parser.add_argument("table")
parser.add_argument("--scale", type=float, default=14.0, help="language model scale (14)")
parser.add_argument("--weight", type=float, default=0.5, help="weight of the run (0.5)")
parser.add_argument("--lower", action="store_true", help="lowercase hypotheses for the run")
args = parser.parse_args()


def fail(problem: str) -> NoReturn:
    """Report a problem with the table and exit with code 3."""
    sys.stderr.write(f"error: {args.table}{problem}\n")
    sys.exit(3)


rows, number = [], 1
try:
    with Path(args.table).open("rb") as file:
        table = csv.DictReader(map(bytes.decode, file), delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in table:
            number = table.reader.line_num
            utterance, acoustic, own, text = (row[name] for name in COLUMNS)
            rows.append((utterance, float(acoustic), float(own), text.strip()))
except OSError as error:
    fail(f": {error.strerror}")
except (UnicodeDecodeError, csv.Error) as error:
    fail(f", line {table.reader.line_num + isinstance(error, UnicodeDecodeError)}: {error}")
except (AttributeError, KeyError, TypeError, ValueError):
    fail(f", line {number}: missing or invalid field, expected {', '.join(COLUMNS)}")

lines = "".join((text.lower() if args.lower else text) + "\n" for *_, text in rows)
answer = subprocess.run(
    [sys.executable, "-m", "gru_lm", "eval", args.run, "-", "--per-line", "-"],
    input=lines,
    stdout=subprocess.PIPE,
    check=False,
    encoding="utf-8",
)
if answer.returncode:
    sys.exit(answer.returncode)
nats = [float(line.split("\t")[2]) for line in answer.stdout.splitlines()[1:]]

best: dict[str, tuple[float, str]] = {}
for (utterance, acoustic, own, text), cost in zip(rows, nats, strict=True):
    score = acoustic + args.scale * ((1 - args.weight) * own - args.weight * cost)
    best[utterance] = max(best.get(utterance, (float("-inf"), "")), (score, text))
for utterance, (score, text) in best.items():
    print(f"{utterance}\t{score:.2f}\t{text}")
