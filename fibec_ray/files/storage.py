"""Files on shared or object storage, named by URL (s3://, gs://, file://).

pyarrow.fs opens them, and fsspec for kinds of URL that pyarrow does not know. Credentials are those of the machine
(environment, profile or instance role). A URL with credentials is rejected, because URLs are printed and kept.

Anyone who can write to a bucket names its files, so names that lead out of the target folder are rejected.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fibec_ray.errors import StorageError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*:/+.*", re.DOTALL)
_USERS = ("abfs", "abfss", "adl", "az", "ftp", "hdfs", "sftp", "smb", "ssh", "wasb", "wasbs", "webhdfs")
"""Schemes with a container or a user before the @. A password there is rejected too."""
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_SECRET_KEYS = (
    "secret", "password", "passwd", "passphrase", "token", "signature", "credential", "accesskey", "accountkey",
    "apikey", "privatekey", "authorization", "googleaccessid", "subscriptionkey", "sessionid",
)  # fmt: skip
"""Parts of names of query parameters with secrets, in lower case and without '-' and '_'."""
_SECRET_NAMES = ("sig", "key", "pwd", "pw", "pass", "auth", "jwt")
"""Whole names of such parameters."""
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "s3a": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "hf": "HF_TOKEN",
}
_ANY_VARIABLES = f"{_VARIABLES['s3']} (s3), {_VARIABLES['gs']} (gs), HF_TOKEN (hub)"

DEEPEST = 200
"""Most parts of a path; libraries handle deeper ones by recursion."""
_NEVER_IN_NAMES = r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]"
"""Backslashes, control characters, and surrogates, which UTF-8 cannot encode."""


def is_url(text: str | Path) -> bool:
    """True for a URL. A URL that went through pathlib has lost a slash ('s3:/bucket') and does not count."""
    return "://" in str(text)


def refuse_secrets(text: str | Path | None, where: str) -> None:
    """Raises StorageError for a URL with credentials, without repeating them. where: the setting that has the URL.

    Paths and other texts pass. A URL that lost a slash in pathlib is checked too.
    """
    if text is None or not _URL.fullmatch(str(text).strip()):
        return
    for part in re.split(r"::(?=[A-Za-z][A-Za-z0-9+.-]*:/)", str(text).strip()):  # fsspec's chains
        if found := _secret_in(part):
            scheme = part.partition(":")[0].lower()
            raise StorageError(
                f"{where}: the URL has {found}, which would be printed and kept with the run; remove it, and set "
                f"{_VARIABLES.get(scheme, _ANY_VARIABLES)} in the environment"
            )


def _secret_in(url: str) -> str:
    """The kind of credentials in a URL; '' without any."""
    url = re.sub(r":/+", "://", url, count=1)
    try:
        parts = urlsplit(url)
        user, at, host = unquote(parts.netloc).rpartition("@")
    except ValueError:
        return "what may be a password"
    if at and (":" in user or parts.scheme not in _USERS):
        return "credentials before its @"
    # A secret may hold '/', '?' or '#': then it looks like a port and a path. Buckets have no ports.
    port = host.rpartition("]")[2].partition(":")[2]
    if port and (not port.isdecimal() or parts.scheme in _BUCKETS):
        return "credentials before its @"
    texts = (parts.path.partition(";")[2], parts.query, parts.fragment)
    pairs = [pair for text in texts for pair in parse_qsl(text.replace(";", "&"), True)]
    for name, value in ((re.sub(r"[^a-z0-9]", "", name.lower()), value) for name, value in pairs):
        if name in _SECRET_NAMES or any(key in name for key in _SECRET_KEYS):
            return "a key, token or signature in its query"
        if "://" in value and (found := _secret_in(value)):
            return found
    return ""


class Storage:
    """A folder or file behind a URL. Every method raises StorageError when the storage fails."""

    def __init__(self, url: str):
        import pyarrow as pa
        from pyarrow import fs

        refuse_secrets(url, "storage")
        self.url = url.rstrip("/")
        self._errors: tuple[type[Exception], ...] = (pa.ArrowException, OSError)
        try:
            self._fs, self._root = _file_system(self.url)
        except (*self._errors, ValueError, ImportError) as error:
            raise StorageError(
                f"{self.shown}: no such storage ({self._reason(error)}); allowed: s3://BUCKET/..., gs://BUCKET/..., "
                "file:///absolute/path, hdfs://..., abfs://..., and what fsspec has a package for"
            ) from error
        self._kinds = fs.FileType

    @property
    def shown(self) -> str:
        """The URL for error messages, without its query, which may hold secrets."""
        return re.split(r"[?#]", self.url, maxsplit=1)[0]

    @property
    def name(self) -> str:
        """The last part of its path; 'data' if there is none."""
        name = self._root.rstrip("/").rpartition("/")[2]
        return "data" if leads_out(name) else name

    def is_folder(self) -> bool:
        """True for a folder with something in it: object stores have no empty folders."""
        return bool(self._info(self._root).type == self._kinds.Directory)

    def exists(self) -> bool:
        """True if there is a file or folder at the URL."""
        return bool(self._info(self._root).type != self._kinds.NotFound)

    def files(self) -> dict[str, int]:
        """{path below the root: size in bytes}; {} if there is nothing. Raises for names that lead out of the root."""
        from pyarrow import fs

        try:
            found = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        except self._errors as error:
            raise self._failed("cannot be listed", error) from error
        start = len(self._root.rstrip("/")) + 1
        # Some stores list a folder's marker as an empty file 'folder/'.
        files = {info.path[start:]: info.size for info in found if info.is_file and not info.path.endswith("/")}
        self._refuse_names(files)
        return files

    def upload(self, local: Path, name: str) -> None:
        """Write one file below the root in one step: readers see the old file or the new one."""
        self._refuse_names([name])
        target = f"{self._root}/{name}"
        renames = self._fs.type_name in ("local", "hdfs")  # object stores write whole objects
        draft = f"{target}.part" if renames else target
        try:
            if renames:
                self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with local.open("rb") as source, self._fs.open_output_stream(draft) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            if renames:
                self._fs.move(draft, target)
        except self._errors as error:
            raise self._failed(f"{name} cannot be written", error) from error

    def download(self, local: Path, names: Iterable[str] | None = None) -> int:
        """Copy files (None: all) into a local folder; returns their total size in bytes."""
        names = list(self.files() if names is None else names)
        self._refuse_names(names)
        for name in names:
            if not (local / name).resolve().is_relative_to(local.resolve()):
                raise StorageError(f"{self.shown}: the name {name[:200]!r} leads out of {local} through a link there")
        return sum(self._bring(f"{self._root}/{name}", local / name) for name in names)

    def download_file(self, local: Path) -> None:
        """Copy the one file that the URL names to `local`."""
        self._bring(self._root, local)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if it is missing. Raises StorageError."""
        self._refuse_names([name])
        try:
            self._fs.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except self._errors as error:
            raise self._failed(f"{name} cannot be removed", error) from error

    def _bring(self, source: str, local: Path) -> int:
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(f".{local.name}.part")
            with self._fs.open_input_stream(source) as stream, part.open("wb") as sink:
                shutil.copyfileobj(stream, sink, 1 << 20)
            part.replace(local)
        except self._errors as error:
            raise self._failed(f"{local.name} cannot be read", error) from error
        return local.stat().st_size

    def _info(self, path: str) -> Any:
        try:
            return self._fs.get_file_info(path)
        except self._errors as error:
            raise self._failed("does not answer", error) from error

    def _refuse_names(self, names: Iterable[str]) -> None:
        """Raises StorageError for names that are not plain paths below a folder, or that clash with each other."""
        names = set(names)
        folders = {"/".join(parts[:i]) for name in names if (parts := name.split("/")) for i in range(1, len(parts))}
        for name in sorted(names):
            if name in folders:
                raise StorageError(
                    f"{self.shown}: the name {name[:200]!r} is a file and a folder there; remove one of them"
                )
            if leads_out(name):
                raise StorageError(
                    f"{self.shown}: the name {name[:200]!r} does not stay below a folder (it may have no '..', "
                    "backslash, drive, empty part or control character); remove that file there, and ask who wrote it"
                )

    def _failed(self, what: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.shown}: {what} ({self._reason(error)}); check the URL, and the credentials of this machine for it"
        )

    def _reason(self, error: Exception) -> str:
        return (str(error).splitlines() or [type(error).__name__])[0].replace(self.url, self.shown)


def _file_system(url: str) -> tuple[Any, str]:
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs

    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(url)
        return found
    except (ArrowInvalid, ArrowNotImplementedError):
        if not is_url(url) or url.startswith("file://"):
            raise
    import fsspec  # only for URLs that pyarrow does not know

    other, root = fsspec.core.url_to_fs(url)
    return fs.PyFileSystem(fs.FSSpecHandler(other)), str(root)


def leads_out(name: str) -> bool:
    """False for a plain relative path; True for 'a/../b', '/a', 'a\\b', 'c:a', 'a//b', '', 'a\\n' and the like."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or len(parts) > DEEPEST
    return odd or re.match(r"[A-Za-z]:", name) is not None or re.search(_NEVER_IN_NAMES, name) is not None
