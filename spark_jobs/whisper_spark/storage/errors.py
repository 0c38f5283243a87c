"""The errors of object storage, and how those of clients and file systems are converted to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(Exception):
    """Reading or writing an object failed. The message contains the URI, but no credential or endpoint."""


class ObjectNotFound(StorageError):  # noqa: N818 - reads as what happened
    """The object or the bucket does not exist."""


class ObjectForbidden(StorageError):  # noqa: N818
    """The store refused access because of wrong, missing or insufficient credentials."""


class ObjectChanged(StorageError):  # noqa: N818
    """The object was replaced after it was listed: its etag differs."""


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Convert errors of the client and the file system to :class:`StorageError`.

    The messages contain no endpoints and no credentials.
    Panics of the client are converted as well: they are not an ``Exception`` and would end a trigger.
    """
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise _not_found(uri, str(error)) from None
    except (NotADirectoryError, IsADirectoryError):
        raise ObjectNotFound(f"{uri} does not exist") from None
    except PermissionError as error:
        raise ObjectForbidden(f"no permission to access {error.filename or uri}") from None
    except Exception as error:
        ours = error_of(uri, error)
        if ours is None:
            raise
        # The original message may contain the endpoint or a signed URL.
        raise ours from None
    except BaseException as error:
        # The client panics on some invalid settings. A panic is not an Exception, so callers would not handle
        # it.
        if type(error).__name__ != "PanicException":
            raise
        raise StorageError(
            f"cannot access {uri}: the store's client refuses its settings ({_reason(str(error))}). Look "
            "for blanks, line breaks and a missing https:// in endpoint, region, keys and token"
        ) from None


def error_of_status(uri: str, code: int, text: str) -> StorageError:
    """The error for an HTTP status and the body of its response."""
    if code in (401, 403):
        return ObjectForbidden(f"no permission to access {uri}: {_reason(text)}")
    if code == 404:
        return _not_found(uri, text)
    return StorageError(f"cannot access {uri}: {_reason(text)}")


def error_of(uri: str, error: Exception) -> StorageError | None:
    """The error for an exception of the client; ``None`` for other exceptions."""
    import obstore.exceptions as theirs

    text = str(error)
    reason = _reason(text)
    status = re.search(r"non-2xx status code: (\d{3})", text)
    code = int(status.group(1)) if status else 0
    if "//169.254." in text or "//metadata." in text:
        reason = "no credentials were found. Name a connection that has them, or set them in the environment"
        return ObjectForbidden(f"no permission to access {uri}: {reason}")
    if isinstance(error, theirs.PermissionDeniedError | theirs.UnauthenticatedError) or code in (401, 403):
        return ObjectForbidden(f"no permission to access {uri}: {reason}")
    if code == 404:
        return _not_found(uri, text)
    if isinstance(error, theirs.PreconditionError | theirs.NotModifiedError):
        return ObjectChanged(f"{uri} was replaced while it was read: {reason}")
    if isinstance(error, theirs.InvalidPathError) or (isinstance(error, ValueError) and "parse path" in text):
        return StorageError(
            f"{uri} holds or is a key with an empty, '.' or '..' component or a control character, which "
            f"cannot be read: {reason}. Rename that object"
        )
    if "LOCATION" in text:
        reason += (
            ". The bucket seems to be in another region: set region_name in the connection, or AWS_REGION"
        )
    if isinstance(error, theirs.BaseError | OSError | UnicodeError):
        return StorageError(f"cannot access {uri}: {reason}")
    return None


def _not_found(uri: str, text: str) -> ObjectNotFound:
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        bucket = "/".join(uri.split("/", 3)[:3])
        return ObjectNotFound(f"{uri} does not exist: there is no bucket {bucket}")
    return ObjectNotFound(f"{uri} does not exist")


def _reason(text: str) -> str:
    """The informative part of a client's message, without URLs."""
    text = text.split("\n\nDebug source")[0]
    fields = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL)
    if fields:
        return f"{fields.group(1)}: {fields.group(2)}"
    text = re.sub(r"Error performing \w+ (\S+ )?(in [\w.µ]+)?[, -]*", "", text)
    return " ".join(re.sub(r"\w+://\S+", "the store", text).split())
