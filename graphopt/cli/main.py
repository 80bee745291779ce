"""The command line, `graphopt optimize` and others; `graphopt --help` lists them.

Exit codes: 0 all is well, 1 something graphopt or the model could not do, 2 a mistake in the command, 130 Ctrl-C.
Errors are one line on standard error; `--debug` shows where they come from, `-v` what is done.
"""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt.cli import cascade, common, completion, evaluate, inspect, optimize, search

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (
    optimize.optimize, inspect.analyze, inspect.targets, inspect.passes, evaluate.check, evaluate.audit, evaluate.compare,
    search.search, cascade.cascade, optimize.compile, inspect.show, inspect.profile, inspect.doctor, optimize.demo,
    completion.completion,
):  # fmt: skip
    app.command()(common.with_common_options(command))
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(optimize.run)


def main() -> None:
    """The entry point."""
    completion.prepare()
    app(prog_name="graphopt")


def _version(wanted: bool) -> None:
    if wanted:
        from graphopt.utils.version import versions

        ours, *others = (f"{name} {version}" for name, version in versions().items())
        print(f"{ours} ({', '.join(others)})")
        raise typer.Exit


@app.callback()
def graphopt(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions.", callback=_version, is_eager=True)
    ] = False,
    debug: common.Debug = False,
    verbose: common.Verbose = 0,
    log_file: common.LogFile = None,
) -> None:
    """Make trained PyTorch models small and fast on edge hardware."""
    common.before(debug, verbose, log_file)
