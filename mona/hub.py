"""What a Hugging Face hub's failures mean: which are the request's, and which may pass.

What is asked of a hub, and where it is kept, is `resources`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mona.errors import MonaError, PassingError, RequestError

_PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))


@contextmanager
def hub_answers(what: str) -> Iterator[None]:
    """Runs what asks a hub: RequestError where it says no (nothing there, no access), where it
    may not be asked (offline), and for data that can't be read; PassingError where it did not
    answer. `what` opens the line."""
    # It warns of every data set whose card has no header.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    try:
        yield
    except MonaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if not _of_a_hub(error):
            raise
        raise _meaning(what, error) from error


def repository(where: str, kind: str, repo: str, revision: str | None) -> str:
    """What is asked, as `hub_answers` says it: the key, then the `kind` of repository and its
    name."""
    return f"{where}: hub {kind} {repo}" + (f"@{revision}" if revision is not None else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _of_a_hub(error: Exception) -> bool:
    from huggingface_hub.errors import HTTPError, RevisionResolutionError

    # HTTPError is the root of whichever client the installed library speaks through: a refused
    # connection is one, and is no OSError. datasets refuses a loading script by a RuntimeError.
    expected = (OSError, ValueError, RuntimeError, HTTPError, RevisionResolutionError)
    return isinstance(error, expected) or _by_datasets(error)


def _by_datasets(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "datasets"


def _meaning(what: str, error: BaseException) -> MonaError:
    from huggingface_hub import errors

    for link in _chain(error):
        if isinstance(link, errors.OfflineModeIsEnabled):
            return RequestError(f"{what}: HF_HUB_OFFLINE is set, and it is not in the cache")
        if isinstance(link, errors.GatedRepoError):
            return RequestError(
                f"{what}: access is restricted: accept its terms on the hub and set HF_TOKEN"
            )
        if isinstance(link, errors.RepositoryNotFoundError):
            return RequestError(
                f"{what}: no such repository, or a private one that HF_TOKEN does not open"
            )
        if isinstance(link, errors.RevisionNotFoundError):
            return RequestError(f"{what}: no such revision")
        if isinstance(link, errors.HfHubHTTPError):
            status = getattr(link.response, "status_code", None)
            if status is not None and status not in _PASSING_STATUS:
                return RequestError(f"{what}: {first_line(link)}")
            return _silent(what, link)
        if isinstance(link, ConnectionError | TimeoutError | errors.HTTPError):
            return _silent(what, link)
    if isinstance(error, OSError) and not _by_datasets(error):
        return _silent(what, error)
    return RequestError(f"{what}: {first_line(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling: a library's own error does not
    say whether the failure under it may pass."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _silent(what: str, error: BaseException) -> PassingError:
    return PassingError(f"{what}: the hub does not answer: {first_line(error)}")
