"""Print the names of the functions and methods of Python's standard library, one on each line.

With names on standard input and `--known FILE`, print how many of them are not in the file.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from pathlib import Path


def function_names(folder: Path) -> set[str]:
    """Names of functions defined in a folder's modules and packages, without leading underscores."""
    names = set()
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if path.parent.name in ("test", "idlelib", "turtledemo"):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in names if not name.startswith("_")}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--known"]:
        known = set(Path(sys.argv[2]).read_text(encoding="utf-8").splitlines())
        given = sys.stdin.read().splitlines()
        print(f"{len(given)} names, {len(set(given))} different, {len(set(given) - known)} new")
    else:
        print(*sorted(function_names(Path(sysconfig.get_path("stdlib")))), sep="\n")
