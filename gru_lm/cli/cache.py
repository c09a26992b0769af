"""`gru-lm cache [clear]`: where the caches lie, how large they are, and how they are emptied."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Show the caches and their sizes, or clear them.", no_args_is_help=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def cache_cli(context: typer.Context, as_json: Json = False) -> None:
    """Show the caches and their sizes; `gru-lm cache clear` empties them.

    They hold compiled kernels, tokenized texts, corpora and matplotlib's fonts,
    and are filled again as needed. Token caches unused for 30 days are removed,
    and the least recently used beyond 10 GB (or a tenth of the disk).
    """
    if context.invoked_subcommand:
        return
    from gru_lm import caches
    from gru_lm.reporting import console

    found = caches.usage()
    if as_json:
        console.result_json({"caches": found, "bytes": sum(each["bytes"] for each in found)})
        return
    rows = [(r["name"], f"{r['files']:,}", f"{r['bytes']:,}", r["path"]) for r in found]
    console.table(("cache", "files", "bytes", "path"), rows)
    console.note("to empty them: gru-lm cache clear" if rows else "there are no caches")


@app.command("clear")
def clear_cli(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="kernels, tokens, corpora, matplotlib; all if not given."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove what is in the caches. Runs and their checkpoints are kept."""
    from gru_lm import caches
    from gru_lm.reporting import console

    removed = caches.clear(names or caches.NAMES)
    if as_json:
        console.result_json(removed)
    else:
        console.result("removed: {files:,} files, {bytes:,} bytes".format(**removed))
