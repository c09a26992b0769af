#!/bin/sh
# New names that resemble a list of names. Usage: sh run.sh [budget, default: --minutes 1]
set -e
here=$(dirname "$0")
python3 "$here/names.py" > names.txt
gru-lm train names.txt --out names ${@:---minutes 1}
gru-lm eval names --strangest 5
gru-lm sample names --samples 200 --unique --novel > new.txt
python3 "$here/names.py" --known names.txt < new.txt
printf 'get_\nis_\ntest_\n' | gru-lm sample names --prompts - --samples 3
gru-lm eval names new.txt --per-line scores.tsv
