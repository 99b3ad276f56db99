"""What all verbs share: how they are called, how they fail, and how their results are shown.

A verb is a function under :func:`verb`: its name, its arguments and its docstring are the command line's. It exits with
0 when done, 1 when the work failed, 2 when the request was wrong, with one sentence that says so.
"""

import gc
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, TypeVar

import typer

from rlstride import progress
from rlstride.errors import RlstrideError
from rlstride.extras import naming_the_extra, require

# typer's own click has no public name; its errors of usage are what BadParameter is one of.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_NOT_VERBS = {"app", "options", "__main__"}
_ROWS_SHOWN = 40
_INTERRUPTED = 130  # what typer makes of Ctrl-C
Verb = TypeVar("Verb", bound=Callable[..., None])

app = typer.Typer(
    help="Train language models with RL, keep the trajectory of their weights, take it apart and predict where it "
    "goes.",
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=False,
)
cluster = typer.Typer(
    help="What a study needs of a Slurm cluster, and what an ended run left there.",
    context_settings=_HELP,
    rich_markup_mode=None,
)
app.add_typer(cluster, name="cluster")

_debug = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns 0 when done, 1 when the work failed, 2 when the request was wrong."""
    global _debug
    _debug = False
    # Verbs report their own progress; the bars of the libraries under them would fill a log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # TRL would import MLflow, which takes a second, to see whether a run is open there; `rlstride track` writes to it.
    os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(with_all_verbs())
    name = _verb_of(given)
    try:
        with naming_the_extra():
            status = command.main(given, prog_name="rlstride", standalone_mode=False)
        if status == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:  # `rlstride check ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 1
    except _UsageError as error:
        text = " ".join(getattr(error, "format_message", error.__str__)().split()).replace("Value error, ", "")
        print(f"{name}: {text[:1].lower()}{text[1:].rstrip('.?')}; see {name} --help", file=sys.stderr)
        return 2
    except RlstrideError as error:
        if _debug:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        print(f"{name}: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if _debug:
            raise
        said = " ".join(str(error).split())
        print(f"{name}: {type(error).__name__}: {said} (--debug shows where)", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0


def verb(function: Verb) -> Verb:
    """Makes a function a verb of its own name, with the options that all verbs have."""
    return verb_of(app, function.__name__)(function)


def verb_of(group: typer.Typer, name: str) -> Callable[[Verb], Verb]:
    """The same for a verb of a group, or of another name than its function's."""
    return lambda function: _added(function, group, name)


def _added(function: Verb, group: typer.Typer, name: str) -> Verb:
    kind, own = inspect.Parameter.KEYWORD_ONLY, list(inspect.signature(function).parameters.values())
    shared = [
        inspect.Parameter(flag, kind, default=False, annotation=Annotated[bool, option])
        for flag, option in _SHARED.items()
    ]

    def call(**options: Any) -> None:
        global _debug
        _debug = options.pop("debug")
        progress.hush(options.pop("quiet"))
        if options.pop("verbose"):
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
            os.environ["TQDM_DISABLE"] = "0"
        function(**options)

    parameters = [each.replace(kind=kind) for each in own] + shared
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__doc__, call.__name__ = function.__doc__, function.__name__
    group.command(name, help=inspect.cleandoc(function.__doc__ or ""))(call)
    return function


_SHARED = {
    "quiet": typer.Option("--quiet", "-q", help="Show no progress, only results and errors."),
    "verbose": typer.Option("--verbose", "-v", help="Show what the libraries underneath have to say."),
    "debug": typer.Option("--debug", help="Show the traceback of an error."),
}


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        print(f"rlstride {version('rlstride')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@contextmanager
def imports(extra: str | None = None) -> Iterator[None]:
    """Imports torch and its like a quarter faster: nothing that a module holds is garbage.

    Nor is it looked at again by later collections, which takes another second off a run of 40 steps.

    Args:
        extra: of the package, which the verb needs.

    Raises:
        ExtraError: it is not installed, or in other versions than were tested.
    """
    if extra:
        require(extra)
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once: a caller from Python may have garbage by then
            gc.freeze()
        gc.enable()


def show(rows: Sequence[Mapping[str, Any]], title: str, *, as_json: bool = False) -> None:
    """Prints results: JSON where it is asked for, a table on a terminal, aligned columns elsewhere."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=1, default=_plain))
        return
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_text(row.get(column)) for column in columns] for row in rows[:_ROWS_SHOWN]]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in cells:
            table.add_row(*row)
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in (columns, *cells):
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if len(rows) > _ROWS_SHOWN:
        print(f"... and {len(rows) - _ROWS_SHOWN} more")


def show_file(file: Path, columns: Sequence[str], *, as_json: bool = False) -> None:
    """Prints some columns of a Parquet table that a verb has written."""
    import pandas as pd

    frame = pd.read_parquet(file)
    kept = frame[[name for name in columns if name in frame]]
    show(
        [{str(name): value for name, value in row.items()} for row in kept.to_dict("records")],
        str(file),
        as_json=as_json,
    )


def with_all_verbs() -> typer.Typer:
    """The command line, every verb's file imported."""
    package = import_module("rlstride.cli")
    for module in iter_modules(package.__path__):
        if module.name not in _NOT_VERBS:
            import_module(f"rlstride.cli.{module.name}")
    return app


def _verb_of(arguments: Sequence[str]) -> str:
    """The command as errors name it: rlstride spectra, rlstride cluster check."""
    words = [word for word in arguments if not word.startswith("-")]
    length = 2 if words[:1] == ["cluster"] else 1
    found = " ".join(words[:length])
    known = {each.name for each in app.registered_commands} | {
        f"cluster {each.name}" for each in cluster.registered_commands
    }
    return f"rlstride {found}" if found in known else "rlstride"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def is_debugged() -> bool:
    """Whether the verb that runs shows the traceback of an error."""
    return _debug
