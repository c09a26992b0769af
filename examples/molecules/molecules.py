"""Print molecules in SMILES notation, put together by rule from common fragments, one on each line.

With molecules on standard input and `--check`, print how many have matching brackets and ring bonds.
"""

from __future__ import annotations

import random
import re
import sys

BEGINNINGS = ["C", "CC", "CCO", "CN", "N", "O", "Cl", "Br", "FC(F)(F)", "N#C", "OC(=O)", "CC(C)"]
MIDDLES = [
    *("C", "CC", "C(C)", "C(=O)N", "C(=O)O", "OC", "NC", "S(=O)(=O)N", "C=C", "C(F)", "C(O)"),
    *("[C@@H](C)", "[C@H](N)", "c1ccc(cc1)", "c1ccc(nc1)", "c1cc(Cl)c(cc1)", "C1CCC(CC1)"),
]
ENDS = ["C", "O", "N", "F", "Cl", "Br", "C#N", "c1ccccc1", "c1ccc[nH]1", "C1CC1", "C(=O)O", "N(C)C"]
COUNT = 6000
_ATOM = re.compile(r"\[[^][]*\]|Cl|Br|[BCNOPSFIbcnops]|%\d\d|\d|[-=#/\\()@+.]")


def molecule(rng: random.Random) -> str:
    """A molecule of one beginning, up to five middles and one end."""
    middles = rng.choices(MIDDLES, k=rng.randint(0, 5))
    return "".join([rng.choice(BEGINNINGS), *middles, rng.choice(ENDS)])


def is_closed(smiles: str) -> bool:
    """Whether brackets match and every ring bond is closed."""
    rings: set[str] = set()
    depth = 0
    if "".join(_ATOM.findall(smiles)) != smiles:
        return False
    for token in _ATOM.findall(smiles):
        if token.isdigit() or token.startswith("%"):
            rings ^= {token}
        depth += (token == "(") - (token == ")")
        if depth < 0:
            return False
    return not rings and depth == 0


if __name__ == "__main__":
    if "--check" in sys.argv:
        given = sys.stdin.read().splitlines()
        print(
            f"{len(given)} molecules, {sum(map(is_closed, given))} with closed rings and brackets"
        )
    else:
        rng = random.Random(1)
        print(*sorted({molecule(rng) for _ in range(COUNT)}), sep="\n")
