"""Rescore a recogniser's n-best lists with a run: prints the best hypothesis of each utterance.

    python rescore.py RUN NBEST.tsv [--scale S] [--weight W] [--lower]

NBEST.tsv has a header, then a row for each hypothesis, of which four columns are read: `utt`,
`acoustic_ln` and `lm_ln` (natural logarithms, of acoustics and of the recogniser's own language model)
and `hyp`. Its score is

    acoustic_ln + S ((1 - W) lm_ln - W nats)

with the nats that the run takes for it. Exits with 3, naming file and line, where a field is missing.
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
parser.add_argument("--scale", type=float, default=14.0, help="of language models (14)")
parser.add_argument("--weight", type=float, default=0.5, help="of the run's among them (0.5)")
parser.add_argument("--lower", action="store_true", help="give the run lower case")
given = parser.parse_args()


def fail(what: str) -> NoReturn:
    """Say what is wrong with the table, and leave."""
    sys.stderr.write(f"error: {given.table}{what}\n")
    sys.exit(3)


rows, number = [], 1
try:
    with Path(given.table).open("rb") as file:
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
    fail(f", line {number}: not all of {', '.join(COLUMNS)}")

lines = "".join((text.lower() if given.lower else text) + "\n" for *_, text in rows)
answer = subprocess.run(
    [sys.executable, "-m", "gru_lm", "eval", given.run, "-", "--per-line", "-"],
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
    score = acoustic + given.scale * ((1 - given.weight) * own - given.weight * cost)
    best[utterance] = max(best.get(utterance, (float("-inf"), "")), (score, text))
for utterance, (score, text) in best.items():
    print(f"{utterance}\t{score:.2f}\t{text}")
