#!/bin/sh
# New molecules that resemble a list of molecules. Usage: sh run.sh [budget, default: --minutes 1]
set -e
here=$(dirname "$0")
python3 "$here/molecules.py" > molecules.txt
gru-lm train molecules.txt --out molecules --pieces 'Cl,Br,[nH],[C@@H],[C@H]' ${@:---minutes 1}
gru-lm eval molecules --strangest 5
gru-lm sample molecules --samples 200 --unique --novel > new.txt
python3 "$here/molecules.py" --check < new.txt
gru-lm sample molecules --samples 200 --temperature 0.7 | python3 "$here/molecules.py" --check
printf 'c1ccc(cc1)\n' | gru-lm sample molecules --prompts - --samples 5
