"""`gru-lm corpus list | get | show`: named corpora.

Options and printing only; text/corpora.py has the recipes.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from gru_lm.cli.options import Group, laid_out

app = typer.Typer(cls=Group, help="List, fetch and print the named corpora.")

Name = Annotated[str, typer.Argument(help="Name of a corpus, with or without the @.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def corpus_list() -> list[dict[str, Any]]:
    """Return all corpora with size, licence, source, and whether they are in the cache."""
    from gru_lm.text import corpora

    rows = []
    for recipe in map(corpora.read_recipe, corpora.names()):
        paths = corpora.cached_paths(recipe)
        size = sum(path.stat().st_size for path in paths) if paths else recipe.bytes
        rows.append(
            {
                "name": recipe.name,
                "description": recipe.description,
                "documents": recipe.documents,
                "bytes": size,
                "words": recipe.words,
                "exact": recipe.pinned,
                "licence": recipe.licence,
                "source": recipe.source,
                "version": recipe.version,
                "sha256": recipe.sha256,
                "splits": recipe.splits,
                "cached": paths is not None,
                "path": str(corpora.cache_folder(recipe)),
            }
        )
    return rows


def corpus_get(name: str) -> dict[str, Any]:
    """Fetch or build corpus `name` unless cached; return its folder and files.

    Raises InputError for an unknown name, EnvironmentProblem if it cannot be fetched or written.
    """
    paths = _paths(name)
    return {
        "name": name.removeprefix("@"),
        "path": str(paths[0].parent),
        "documents": len(paths),
        "bytes": sum(path.stat().st_size for path in paths),
        "files": [path.name for path in paths],
    }


def corpus_show(name: str, *, as_json: bool = False) -> None:
    """Write the documents of corpus `name` to standard output, as UTF-8.

    With `as_json`, write one object per line, with `document` and `text`.
    """
    for path in _paths(name):
        content = path.read_bytes()
        if as_json:
            row = {"document": path.name, "text": content.decode("utf-8")}
            content = json.dumps(row, ensure_ascii=False).encode()
        if not content.endswith(b"\n"):
            content += b"\n"
        sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _paths(name: str) -> list[Any]:
    from gru_lm.reporting import console
    from gru_lm.signals import watch_signals
    from gru_lm.text import corpora

    with watch_signals() as flag:
        return corpora.corpus_paths(name.removeprefix("@"), stop=flag.check, note=console.note)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from gru_lm.reporting import console

    cells = []
    for row in rows:
        about = "" if row["exact"] else "~"
        sizes = (f"{about}{row['bytes']:,}", f"{about}{row['words']:,}")
        cached = "yes" if row["cached"] else "no"
        cells.append((f"@{row['name']}", *sizes, cached, row["licence"], row["source"]))
    console.table(("name", "bytes", "words", "cached", "licence", "source"), cells)


def _laid_out(*examples: str) -> type[TyperCommand]:
    return laid_out(("json",), [f"gru-lm corpus {example}" for example in examples])


@app.command("list", cls=_laid_out("list", "list --json"))
def list_cli(as_json: Json = False) -> None:
    """List the named corpora: size, licence, source, and whether they are cached."""
    from gru_lm.reporting import console

    rows = corpus_list()
    if as_json:
        console.result_json({"corpora": rows})
    else:
        _print_table(rows)


@app.command("get", cls=_laid_out("get @shakespeare", "get docstrings --json"))
def get_cli(name: Name, as_json: Json = False) -> None:
    """Fetch a corpus into the cache, unless it is already there, and print its folder."""
    from gru_lm.reporting import console

    got = corpus_get(name)
    if as_json:
        console.result_json(got)
    else:
        console.result(got["path"])


@app.command(
    "show",
    cls=_laid_out("show @docstrings", "show docstrings --json"),
)
def show_cli(name: Name, as_json: Json = False) -> None:
    """Print the text of a corpus."""
    corpus_show(name, as_json=as_json)
