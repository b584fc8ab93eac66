"""What an S3 server's refusals mean, in one line with a remedy; pure, so that every line can be tested.

The lines hold no text of the server's: a message of S3 may quote the access key, the string that was signed or a
request id.
"""

from __future__ import annotations

import re

from function.errors import StorageUnavailableError
from function.storage.objects import ObjectChangedError, ObjectMissingError, SlowDownError, TransientStorageError

_DENIED = (
    "access denied: allow these credentials s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
    " (without s3:ListBucket, S3 answers a missing key the same way)"
)
_FAILING = "the store is overloaded or failing: try later"
_REGION = "the bucket lies in another region: set AWS_DEFAULT_REGION, or without it AWS_REGION, to that one"
_TOKEN = "the session token is not valid (any more): renew AWS_SESSION_TOKEN"  # noqa: S105  (a remedy, not a secret)
_NO_CONNECTION = "no connection: check AWS_ENDPOINT_URL and whether the store runs"
_NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role"
_BROKEN = "the answer broke off or took too long: try later"

# Error codes of S3; an answer to HEAD has no body, so that botocore gives its status as the code.
_ANSWERS = {
    "301": _REGION,
    "403": f"{_DENIED}; or check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "500": _FAILING,
    "503": _FAILING,
    "AccessDenied": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _TOKEN,
    "InternalError": _FAILING,
    "InvalidAccessKeyId": "the access key is unknown: check AWS_ACCESS_KEY_ID",
    "InvalidToken": _TOKEN,
    "NoSuchBucket": "the bucket does not exist: create it or correct the URL",
    "NotImplemented": "the store lacks this function: use one with conditional writes, ranges and multipart uploads",
    "PermanentRedirect": _REGION,
    "RequestTimeout": _FAILING,
    "RequestTimeTooSkewed": "this machine's clock differs from the store's: set it",
    "ServiceUnavailable": _FAILING,
    "SignatureDoesNotMatch": "the secret key does not match the access key: check AWS_SECRET_ACCESS_KEY",
    "SlowDown": _FAILING,
}

# Class names in botocore.exceptions: what went wrong before there was an answer, or while it was read.
_FAILURES = {
    "ConnectTimeoutError": _NO_CONNECTION,
    "ConnectionClosedError": _NO_CONNECTION,
    "CredentialRetrievalError": _NO_CREDENTIALS,
    "EndpointConnectionError": _NO_CONNECTION,
    "IncompleteReadError": _BROKEN,
    "InvalidRegionError": "no region of this name: check AWS_DEFAULT_REGION and AWS_REGION",
    "NoCredentialsError": _NO_CREDENTIALS,
    "NoRegionError": "no region: set AWS_REGION",
    "ParamValidationError": "no valid bucket name: correct the URL",
    "PartialCredentialsError": _NO_CREDENTIALS,
    "ProfileNotFound": "no such profile: check AWS_PROFILE",
    "ProxyConnectionError": "no connection to the proxy: check HTTPS_PROXY and NO_PROXY",
    "ReadTimeoutError": _BROKEN,
    "ResponseStreamingError": _BROKEN,
    "SSLError": "the store's certificate is not accepted: check AWS_CA_BUNDLE and AWS_ENDPOINT_URL",
    "ValueError": "no valid URL: check AWS_ENDPOINT_URL",
}

_SLOW_DOWN = {"503", "ServiceUnavailable", "SlowDown"}
_SLOW_DOWN_STATUSES = {429, 503}
_TIMEOUT_STATUS, _SERVER_STATUS, _LACKING_STATUS = 408, 500, 501
_TRANSIENT_LINES = {_FAILING, _NO_CONNECTION, _BROKEN}

_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")


def error_of_answer(
    code: str, url: str, *, status: int = 0
) -> ObjectMissingError | ObjectChangedError | StorageUnavailableError:
    """The error that an S3 error code stands for, or where it stands for none, the answer's HTTP status.

    Gateways answer with pages of their own, and servers have codes of their own (MinIO's SlowDownRead): what they mean
    is that the same request may succeed later.
    """
    if code in {"404", "NoSuchKey", "NoSuchVersion"}:
        return ObjectMissingError(url)
    if code in {"412", "PreconditionFailed"}:
        return ObjectChangedError(url)
    shown = code if _CODE.fullmatch(code) else "an error"
    line = _ANSWERS.get(code, _FAILING if _is_failing(status) else f"the store answered {shown}")
    return _unavailable(line, url, slow_down=code in _SLOW_DOWN or status in _SLOW_DOWN_STATUSES)


def _is_failing(status: int) -> bool:
    if status in _SLOW_DOWN_STATUSES or status == _TIMEOUT_STATUS:
        return True
    return status >= _SERVER_STATUS and status != _LACKING_STATUS


def error_of_failure(name: str, url: str) -> StorageUnavailableError:
    """The error for a failure without an answer, by the name of botocore's class."""
    return _unavailable(_FAILURES.get(name, f"the request failed ({name})"), url)


def _unavailable(line: str, url: str, *, slow_down: bool = False) -> StorageUnavailableError:
    if slow_down:
        return SlowDownError(f"{url}: {line}")
    return (TransientStorageError if line in _TRANSIENT_LINES else StorageUnavailableError)(f"{url}: {line}")
