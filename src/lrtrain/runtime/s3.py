"""S3 as an fsspec file system, on boto3: its credentials, its endpoints, and errors that a retry can tell apart."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.patience import persist

PART_BYTES = 32 * 2**20  # S3 takes 10,000 parts: files up to 312 GiB
STREAMS = 8
CONNECT_SECONDS, ANSWER_SECONDS = 10, 30

Result = TypeVar("Result")
_making = threading.Lock()

CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
ADVICE = {
    "NoSuchBucket": "there is no such bucket: correct the URL, or AWS_ENDPOINT_URL",
    "InvalidBucketName": "this is no name of a bucket: correct the URL",
    "AccessDenied": "no permission: ask for it, or use other credentials (AWS_PROFILE)",
    "InvalidAccessKeyId": f"the store does not know these credentials: {CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is not that of the access key: {CREDENTIALS}",
    "ExpiredToken": "the credentials have expired: sign in again (aws sso login)",
    "InvalidToken": f"the session token is not valid: {CREDENTIALS}",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "XMinioStorageFull": "no space left in the store: free some",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "PreconditionFailed": "it has changed meanwhile: start again",
}
BY_STATUS = {401: CREDENTIALS, 403: ADVICE["AccessDenied"], 507: ADVICE["XMinioStorageFull"]}
PASSING = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "408", "429")


class S3FileSystem(AbstractFileSystem):
    """Reads, lists, writes and deletes whole objects of S3 and of stores that speak its protocol (MinIO, Ceph, R2).

    Credentials, region and endpoint are those that boto3 finds: environment (`AWS_ENDPOINT_URL`,
    `AWS_ENDPOINT_URL_S3`, http:// too), profiles, SSO, roles of the machine. Every request is tried again as
    `patience.persist` does, so what fails for good is a UserError, an outage a TemporaryError, and a missing object
    FileNotFoundError. A client belongs to one process: a forked one makes its own.
    """

    protocol = ("s3", "s3a")

    def __init__(self, endpoint_url: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.endpoint_url = endpoint_url

    def request(self, what: str, path: str, call: Callable[[Any, dict[str, str]], Result]) -> Result:
        """What `call(client, {"Bucket": …, "Key": …})` returns for the object `path`, tried again during an outage."""
        bucket, _, key = self._strip_protocol(path).partition("/")
        if not bucket:
            raise UserError(f"s3://{path} names no bucket: give s3://bucket/folder")
        named = {"Bucket": bucket, "Key": key}

        def now() -> Result:
            settings = tuple((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
            return call(_client(os.getpid(), settings, self.endpoint_url), named)

        return persist(now, f"{what} s3://{path}", _lasting)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if "/" in path:
            try:
                found = self.request("looking for", path, lambda s3, at: s3.head_object(**at))
                return _object(path, found["ContentLength"], found)
            except FileNotFoundError:
                pass
        if self._page(path, {"MaxKeys": 1}).get("KeyCount") or "/" not in path:
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(f"s3://{path}")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found = [*self._objects(path, {"Delimiter": "/"})]
        if not found and "/" in path:
            found = [self.info(path)]
        return found if detail else [entry["name"] for entry in found]

    def objects(self, path: str) -> list[dict[str, Any]]:
        """All objects below `path`, at any depth; none if there are none."""
        return [*self._objects(self._strip_protocol(path), {})]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if start is not None or end is not None:
            content: bytes = super().cat_file(path, start, end, **kwargs)
            return content
        path = self._strip_protocol(path)
        return self.request("reading", path, lambda s3, at: bytes(s3.get_object(**at)["Body"].read()))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        only = {"IfNoneMatch": "*"} if mode == "create" else {}

        def put(s3: Any, at: dict[str, str]) -> None:
            try:
                s3.put_object(**at, Body=value, **only)
            except s3.exceptions.ClientError as error:
                if only and _code(error)[0] in ("PreconditionFailed", "412"):
                    raise FileExistsError(f"s3://{path}") from error
                raise

        self.request("writing", path, put)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        self.request("uploading", self._strip_protocol(rpath), lambda s3, at: Transfer(s3, at).upload(lpath))

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        self.request("downloading", self._strip_protocol(rpath), lambda s3, at: Transfer(s3, at).download(lpath))

    def rm_file(self, path: str) -> None:
        self.request("deleting", self._strip_protocol(path), lambda s3, at: s3.delete_object(**at))

    def abort_uploads(self, path: str) -> None:
        """Drops the parts of multipart uploads to `path`, or below it, that a killed process left."""

        def abort(s3: Any, at: dict[str, str]) -> None:
            pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=at["Bucket"], Prefix=at["Key"])
            for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
                if f"{upload['Key']}/".startswith(f"{at['Key']}/"):
                    s3.abort_multipart_upload(Bucket=at["Bucket"], Key=upload["Key"], UploadId=upload["UploadId"])

        self.request("looking for unfinished uploads in", self._strip_protocol(path), abort)

    def _page(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        below = f"{path.partition('/')[2]}/".lstrip("/")
        return self.request(
            "listing", path, lambda s3, at: dict(s3.list_objects_v2(Bucket=at["Bucket"], Prefix=below, **options))
        )

    def _objects(self, path: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        bucket, page = path.partition("/")[0], self._page(path, options)
        while True:
            for prefix in page.get("CommonPrefixes", []):
                yield {"name": f"{bucket}/{prefix['Prefix'].rstrip('/')}", "size": 0, "type": "directory"}
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # what consoles make to show a folder
                    yield _object(f"{bucket}/{entry['Key']}", entry["Size"], entry)
            if not page.get("IsTruncated"):
                return
            page = self._page(path, {**options, "ContinuationToken": page["NextContinuationToken"]})

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "S3File":
        if mode != "rb":
            raise io.UnsupportedOperation(f"s3://{path}: objects are written whole, with pipe_file or put_file")
        return S3File(self, path, mode, **options)


class S3File(AbstractBufferedFile):
    """An object read in pieces; one that changes meanwhile is refused."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        wanted = {"Range": f"bytes={start}-{end - 1}", "IfMatch": self.details["ETag"]}
        return self.fs.request("reading", self.path, lambda s3, at: bytes(s3.get_object(**at, **wanted)["Body"].read()))


class Transfer:
    """One object to or from a local file, in parts that run beside each other."""

    def __init__(self, s3: Any, at: dict[str, str]) -> None:
        from boto3.s3.transfer import TransferConfig

        self.s3, self.at = s3, at
        self.config = TransferConfig(PART_BYTES, max_concurrency=STREAMS, multipart_chunksize=PART_BYTES)

    def upload(self, file: str) -> None:
        self.s3.upload_file(file, **self.at, Config=self.config)

    def download(self, file: str) -> None:
        with open(file, "wb") as out:
            self.s3.download_fileobj(**self.at, Fileobj=out, Config=self.config)


@lru_cache(maxsize=8)
def _client(process: int, settings: tuple[tuple[str, str], ...], endpoint_url: str | None) -> Any:
    """The client of a process under these AWS_… variables: a forked process must not share connections."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import PartialCredentialsError
    except ImportError as error:
        raise UserError("s3:// needs boto3: pip install 'lrtrain[s3]'") from error
    # Stores other than Amazon's may not know the checksums that boto3 otherwise adds to every request.
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        retries={"total_max_attempts": 1},  # its pauses would draw from the random numbers that a run's steps draw from
        tcp_keepalive=True,
        max_pool_connections=2 * STREAMS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with _making:
        try:
            return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint_url)
        except PartialCredentialsError:
            raise
        except Exception as error:  # a profile, region or endpoint that cannot be one
            raise UserError(f"s3: {' '.join(str(error).split())}: correct AWS_… or ~/.aws/config") from error


def _object(path: str, size: int, properties: dict[str, Any]) -> dict[str, Any]:
    return {"name": path, "size": size, "type": "file", "ETag": properties["ETag"]}


def _code(error: Any) -> tuple[str, int]:
    """Code and HTTP status of what S3 answered."""
    return str(error.response["Error"].get("Code", "")), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)


def _lasting(error: Exception) -> str | Exception | None:
    """Why trying again cannot mend `error`; None if it may pass."""
    import urllib3.exceptions
    from boto3.exceptions import Boto3Error, RetriesExceededError
    from botocore import exceptions as of

    if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
        error = error.__context__  # an upload's failure, of which boto3 keeps but the text
    if isinstance(error, of.ClientError):
        return _answered(error)
    if isinstance(error, of.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"the certificate of the store is not trusted: set AWS_CA_BUNDLE ({str(error)[-120:]})"
    passing: tuple[type[Exception], ...] = (of.HTTPClientError, of.ConnectionError, of.IncompleteReadError)
    passing += (of.ChecksumError, of.MetadataRetrievalError, urllib3.exceptions.HTTPError, RetriesExceededError)
    passing += (ConnectionError, TimeoutError)
    if isinstance(error, passing):
        return None
    if isinstance(error, of.NoCredentialsError | of.PartialCredentialsError):
        return f"no credentials: {CREDENTIALS}"
    if isinstance(error, of.BotoCoreError | ValueError):
        return f"{' '.join(str(error).split())} ({type(error).__name__}): correct AWS_…, ~/.aws/config or the URL"
    return error


def _answered(error: Any) -> str | Exception | None:
    code, status = _code(error)
    if code in ADVICE:
        return f"{ADVICE[code]} ({code})"
    if code in PASSING or (status >= 500 and status not in (501, 507)):
        return None
    if status == 404:
        return FileNotFoundError(str(error))
    said = f"{code} {error.response['Error'].get('Message', '')}"[:200]
    return f"{BY_STATUS.get(status, 'the store refuses it')} ({said.strip()})"
