"""Models that a workflow names by URL: which folder and which local name they get. Pure.

Where ComfyUI's own loader names the model, the loader tells the folder. A node that we don't know does not: then the
input's name does, if ComfyUI uses that name for one folder only, or else a folder in the URL's path.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from function.errors import InputRefusedError
from function.sources import check_allowed, parse_source_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from function.sources import AllowedUrls, SourceUrl

_UNSAFE = re.compile(r"[^\w.+()-]")
_DIGEST_CHARACTERS = 16  # 64 bits: nobody finds a second URL with the name of a given one
_MAX_BASENAME_BYTES = 200


def allowed_url(value: str, allow: Iterable[AllowedUrls], *, what: str) -> SourceUrl:
    """Take a value apart that is meant as a URL.

    Raises:
        InputRefusedError: It can't be used, or is not allowed. What is shown of it is its origin at most.
    """
    try:
        url = parse_source_url(value)
    except ValueError as error:
        raise InputRefusedError(f"{what}: this URL can't be used: {error}") from None
    check_allowed(url, allow, what=what)
    return url


def local_name(url: SourceUrl, suffixes: tuple[str, ...], *, what: str) -> str:
    """The file name of a URL's model: the same for the same URL, readable at the end, free of its query.

    Raises:
        InputRefusedError: The path does not end in a file name with one of these suffixes.
    """
    if not url.filename.lower().endswith(suffixes):
        raise InputRefusedError(
            f"{what}: {url} does not end in a file name like model{suffixes[0]}; a name that only the server's answer "
            "tells (Content-Disposition) is not read yet: name the file itself"
        )
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    basename = _UNSAFE.sub("_", url.filename).encode()[-_MAX_BASENAME_BYTES:].decode(errors="ignore")
    return f"{digest}-{basename}"


def folder_of(url: SourceUrl, input_name: str, loaders: Mapping[tuple[str, str], str], *, what: str) -> str:
    """The folder of a model whose node we don't know.

    Raises:
        InputRefusedError: Nothing tells it.
    """
    by_name = {folder for (_, name), folder in loaders.items() if name == input_name}
    by_path = [segment for segment in url.path.split("/")[:-1] if segment in loaders.values()]
    if len(by_name) == 1:
        return by_name.pop()
    if by_path:
        return by_path[-1]
    raise InputRefusedError(
        f"{what}: which model folder {url} belongs into can't be told; put the file under MODELS_URL and name it"
    )
