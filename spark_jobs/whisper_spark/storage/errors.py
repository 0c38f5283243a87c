"""What can go wrong with an object, whatever store it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(Exception):
    """Reading or writing an object failed. The message names the URI and never a credential or endpoint."""


class ObjectNotFound(StorageError):  # noqa: N818 - reads as what happened
    """There is no such object, or no such bucket."""


class ObjectForbidden(StorageError):  # noqa: N818
    """The store refused access: wrong, missing or insufficient credentials."""


class ObjectChanged(StorageError):  # noqa: N818
    """The object is not the one that was listed: its etag differs."""


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Errors of the client and of the file system as ours, free of endpoints and credentials.

    Its panics too, which are no ``Exception`` and would end a trigger.
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
        # The original message may hold the endpoint or a signed URL.
        raise ours from None
    except BaseException as error:
        # The client's, when it meets a setting that it did not foresee. Not an Exception, so it would end
        # more than what asked for the object.
        if type(error).__name__ != "PanicException":
            raise
        raise StorageError(
            f"cannot access {uri}: the store's client refuses its settings ({_reason(str(error))}). Look "
            "for blanks, line breaks and a missing https:// in endpoint, region, keys and token"
        ) from None


def error_of_status(uri: str, code: int, text: str) -> StorageError:
    """What an HTTP status and the body that came with it mean."""
    if code in (401, 403):
        return ObjectForbidden(f"no permission to access {uri}: {_reason(text)}")
    if code == 404:
        return _not_found(uri, text)
    return StorageError(f"cannot access {uri}: {_reason(text)}")


def error_of(uri: str, error: Exception) -> StorageError | None:
    """What an exception of the client means; ``None`` when it is not one."""
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
    """The part of a client's message that helps, without URLs."""
    text = text.split("\n\nDebug source")[0]
    fields = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL)
    if fields:
        return f"{fields.group(1)}: {fields.group(2)}"
    text = re.sub(r"Error performing \w+ (\S+ )?(in [\w.µ]+)?[, -]*", "", text)
    return " ".join(re.sub(r"\w+://\S+", "the store", text).split())
