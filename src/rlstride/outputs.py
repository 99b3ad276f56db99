"""What may be written where: nothing is overwritten without a word.

Every verb that writes to ``--out`` asks here before it works, so that a refusal costs nothing. What is there already
stays, unless ``--force`` is given; and even then only a table that was named, or a folder that rlstride wrote, goes.
"""

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path

from rlstride.errors import RequestError

CARD = "README.md"  # of a folder that rlstride wrote; its first line is one of the marks
MODEL_MARK, BASE_MARK = "<!-- written by rlstride -->", "<!-- a base, written by rlstride -->"
_REPLACE = "name another one, or replace it with --force"
Recognise = Callable[[Path], bool]


def require_free_table(out: Path, *, force: bool, beside: Mapping[Path, Recognise] | None = None) -> None:
    """Refuses a table that is there already, or that is not written as its name says.

    A killed call may leave files that belong to a table without the table: those are replaced.

    Args:
        out: the table, a Parquet file.
        force: replace the table.
        beside: the files that are written with it, and how each is told from somebody else's.

    Raises:
        RequestError: ``out`` does not end in .parquet, exists, or cannot be made; or a file beside it is no part of it.
    """
    if out.suffix != ".parquet":
        raise RequestError(f"{out}: the table's name must end in .parquet")
    _require_folder(out.parent)
    if out.is_dir():
        raise RequestError(f"{out}: this is a folder; name a file for the table")
    for file, is_ours in (beside or {}).items():
        if file.exists() and not is_ours(file):
            raise RequestError(f"{file}: it would be overwritten, but rlstride did not write it; name another --out")
    if out.exists() and not force:
        raise RequestError(f"{out}: this table exists already; {_REPLACE}")


def require_free_folder(
    out: Path, what: str, mark: str = MODEL_MARK, *, force: bool, finished: str | None = None
) -> None:
    """Refuses a folder for a model that holds one already, or anything else.

    Args:
        out: the folder.
        what: the kind of model, for the message.
        mark: with which the card of such a model begins.
        force: replace such a model.
        finished: the file that such a model has when it is whole; one without it is left over, and replaced.

    Raises:
        RequestError: ``out`` is a file, holds something that rlstride did not write, or exists and is not to be
            replaced.
    """
    _require_folder(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _begins_with(out / CARD, mark):
        raise RequestError(f"{out}: this folder holds something other than {what}; name a new folder")
    if not force and (finished is None or (out / finished).is_file()):
        raise RequestError(f"{out}: there is {what} here already; {_REPLACE}")


def require_nothing_else(folder: Path, names: Collection[str], what: str, step_record: str | None = None) -> None:
    """Refuses a folder that holds anything else than what may be replaced or removed there.

    Args:
        folder: it may be missing.
        names: patterns of the names that belong there.
        what: what belongs there, for the message.
        step_record: the file that each folder step_* must have.

    Raises:
        RequestError: ``folder`` is a file, or holds something else.
    """
    _require_folder(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        # A network file system keeps an open file that was removed as .nfs...
        foreign = not any(fnmatch(path.name, name) for name in (*names, ".nfs*"))
        if step_record and path.name.startswith("step_"):
            foreign |= path.exists() and not (path / step_record).is_file()  # another process may move it away
        if foreign:
            raise RequestError(f"{folder}: this folder holds something other than {what} ({path.name}); name a new one")


def require_free_files(folder: Path, names: Collection[str], *, force: bool) -> None:
    """Refuses to overwrite any of several files of a folder.

    Raises:
        RequestError: one of them exists, and ``force`` is not given; or the folder cannot be made.
    """
    _require_folder(folder)
    there = next((folder / name for name in names if (folder / name).exists()), None)
    if there is not None and not force:
        raise RequestError(f"{there}: this file exists already; name another --out, or replace it with --force")


def has_columns(*columns: str) -> Recognise:
    """Recognises a Parquet file that has these columns."""

    def recognise(file: Path) -> bool:
        import pyarrow.parquet as pq  # slow, and seldom needed

        try:
            return set(columns) <= set(pq.read_schema(file).names)
        except (OSError, ValueError):  # of Arrow: not a Parquet file
            return False

    return recognise


def _begins_with(file: Path, mark: str) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(mark.encode())) == mark.encode()


def _require_folder(folder: Path) -> None:
    """What stands at a path, or at the first of its parents that exists, must be a folder."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise RequestError(f"{there}: this is a file, where a folder is needed")
