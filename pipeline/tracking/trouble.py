"""Trouble with MLflow, told in one sentence: what is wrong, at which address, and what to do about it.

Whatever is asked of a store is asked within ``told``: no page of traceback, and no trouble that passes for an answer.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import UserError

OWN_STORE = "or unset MLFLOW_TRACKING_URI, and the project's own store is used"
_LOOK = "look at the server's log and try again"
# What is installed for a module that MLflow misses; others are called as their module.
_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pyodbc": "pyodbc",
    "psycopg": "'hyojo[postgres]'",
    "boto3": "'hyojo[s3]'",
    "botocore": "'hyojo[s3]'",
    "google": "'hyojo[gs]'",
    "azure": "'hyojo[azure]'",
}
# A pattern of errors, each written as "type: text"; what it means, and the remedy. The first that fits counts.
_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), what, remedy)
    for pattern, what, remedy in (
        (r"No module named '(?P<module>\w+)", "it needs {package}, which is not installed", "`pip install {package}`"),
        (
            r"filesystem tracking backend",
            "MLflow takes no folder for a store any more",
            f"set MLFLOW_TRACKING_URI to sqlite:////absolute/path/mlflow.db or a server, {OWN_STORE}",
        ),
        (
            r"unsupported URI|not parse SQLAlchemy URL|NoSuchModuleError|Invalid url|InvalidSchema",
            "MLflow knows no such kind of address",
            f"set MLFLOW_TRACKING_URI to http://host:port or sqlite:////absolute/path/mlflow.db, {OWN_STORE}",
        ),
        (
            r"UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED|\b401\b",
            "it knows no such user or password",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        ),
        (
            r"NoCredentials|Unable to locate credentials|InvalidAccessKey|SignatureDoesNotMatch|ExpiredToken",
            "the credentials for it are missing or wrong",
            "set those of the storage, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            r"PERMISSION_DENIED|AccessDenied|\b403\b",
            "this user may not do that",
            "ask its administrator for the permission (EDIT, on experiment and registered models)",
        ),
        (
            r"file is not a database|malformed",
            "this file is no database, or a damaged one",
            "move it away: `hyojo sync` fills a new one from DVC's files",
        ),
        (r"database is locked", "another process holds the database", "end that process, or wait, and try again"),
        (
            r"Can't locate revision|database schema",
            "another version of MLflow made this database",
            "use that version, or `mlflow db upgrade` after a backup if it is older",
        ),
        (r"No space left|disk is full", "the disk is full", "make room and try again"),
        (
            r"readonly database|unable to open database|PermissionError",
            "it cannot be written",
            "look at its permissions",
        ),
        (r"CERTIFICATE|SSLError", "its certificate is not trusted", "set MLFLOW_TRACKING_SERVER_CERT_PATH"),
        (
            r"NameResolution|gaierror|Failed to resolve",
            "there is no machine of that name",
            f"correct the address, {OWN_STORE}",
        ),
        (r"Connection ?Refused|could not connect|NewConnection", "nobody answers", f"start the server, {OWN_STORE}"),
        (r"timed? ?out", "it takes too long to answer", f"{_LOOK}, or set MLFLOW_HTTP_REQUEST_TIMEOUT to more seconds"),
        (r"too many (?P<status>\d{3})|\b(?P<code>5\d\d) (?:!=|Server)", "it answers with HTTP status {status}", _LOOK),
        (
            r"valid JSON|ENDPOINT_NOT_FOUND|HTMLDecode|JSONDecode",
            "what answers there is no MLflow server, or an older one",
            f"correct the address, {OWN_STORE}",
        ),
        (r"Connection ?(?:Error|Reset|Aborted)|RemoteDisconnected", "the connection was cut", _LOOK),
        (r"FileNotFoundError|NotADirectory|No such file", "there is no such place", "look whether the disk is mounted"),
    )
)


class TrackingError(UserError):
    """Trouble with MLflow, in a sentence; ``code`` is MLflow's, such as ``RESOURCE_DOES_NOT_EXIST``."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_missing(self) -> bool:
        """Whether MLflow answered that what was asked for is not there: an answer, and no trouble."""
        return self.code == "RESOURCE_DOES_NOT_EXIST"

    @property
    def is_denied(self) -> bool:
        """Whether MLflow answered that this user may not do that."""
        return self.code == "PERMISSION_DENIED"

    @property
    def is_taken(self) -> bool:
        """Whether MLflow answered that a name is taken."""
        return self.code == "RESOURCE_ALREADY_EXISTS"


@contextmanager
def told(address: str) -> Iterator[None]:
    """Have any trouble in this block told as a ``TrackingError``.

    Args:
        address: Of the store that is asked; if it was the artifacts that made trouble, theirs is told.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _explain(error, address) from error


def hide_secrets(address: str) -> str:
    """An address without the user's name and password."""
    return re.sub(r"(?<=//)[^/@]*@", "", address)


def _explain(error: Exception, address: str) -> TrackingError:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    code = getattr(error, "error_code", None)
    text = "\n".join([str(code), *(f"{type(each).__name__}: {each}" for each in chain)])
    place = hide_secrets(_artifact_place(error) or address)
    for pattern, what, remedy in _KINDS:
        if found := pattern.search(text):
            given = found.groupdict()
            module = given.get("module") or ""
            names = {"package": _PACKAGES.get(module, module), "status": given.get("status") or given.get("code")}
            return TrackingError(f"MLflow at {place}: {what.format(**names)}; {remedy.format(**names)}.", code)
    said = hide_secrets(" ".join(str(error).split()) or type(error).__name__)
    return TrackingError(f"MLflow at {place}: {said[:300].rstrip('.')}; {_LOOK}.", code)


def _artifact_place(error: Exception) -> str | None:
    """Where the artifacts are whose storage made trouble; None if the trouble came from elsewhere."""
    place = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("mlflow.store.artifact"):
            place = getattr(frame.f_locals.get("self"), "artifact_uri", place)
    return place
