"""The two ways in which a verb can fail, and their exit statuses."""


class RlstrideError(Exception):
    """Base of the errors that are shown to a person as one sentence."""

    exit_status = 1


class WorkError(RlstrideError):
    """The request was sound, but the work failed (exit status 1)."""

    exit_status = 1


class NotFiniteError(WorkError):
    """A tensor holds NaN or infinite entries."""


class RequestError(RlstrideError):
    """The request itself was wrong: a file, a key, a name or a number (exit status 2)."""

    exit_status = 2


def first_line(error: Exception) -> str:
    """What a library's error says, without the page that may follow; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
