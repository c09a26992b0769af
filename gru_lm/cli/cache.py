"""`gru-lm cache [clear]`: show the location and size of the caches, or clear them."""

from __future__ import annotations

from typing import Annotated

import typer

from gru_lm.cli.options import Group, laid_out

app = typer.Typer(cls=Group, epilog="Examples:\n\n  gru-lm cache\n\n  gru-lm cache clear tokens")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def cache_cli(context: typer.Context, as_json: Json = False) -> None:
    """Show the caches and their sizes, or clear them.

    They hold compiled kernels, tokenized texts, corpora and matplotlib's fonts, and are refilled as
    needed. Tokenized texts are removed after 30 days without use and, least recently used first, beyond
    10 GB (or a tenth of the disk). XDG_CACHE_HOME=DIRECTORY moves the caches.
    """
    if context.invoked_subcommand:
        return
    from gru_lm import caches
    from gru_lm.reporting import console

    usage = caches.usage()
    if as_json:
        console.result_json({"caches": usage, "bytes": sum(each["bytes"] for each in usage)})
        return
    rows = [(r["name"], f"{r['files']:,}", f"{r['bytes']:,}", r["path"]) for r in usage]
    console.table(("cache", "files", "bytes", "path"), rows)
    console.note("to clear them: gru-lm cache clear" if rows else "there are no caches yet")


@app.command(
    "clear", cls=laid_out(("json",), ("gru-lm cache clear", "gru-lm cache clear tokens --json"))
)
def clear_cli(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="kernels, tokens, corpora or matplotlib; or all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Clear the caches. Runs and their checkpoints are not affected."""
    from gru_lm import caches
    from gru_lm.reporting import console

    removed = caches.clear(names or caches.NAMES)
    if as_json:
        console.result_json(removed)
    else:
        console.result("removed: {files:,} files, {bytes:,} bytes".format(**removed))
