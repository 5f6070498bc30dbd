"""Requests to the Hub, with time limits, retries and readable errors."""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import huggingface_hub
import tenacity
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import httpx

from impossible.settings import UserError

_T = TypeVar("_T")
ERRORS = (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError)
_WAITS = (1, 2, 4, 8, 16, 32)  # seconds between attempts, where the Hub names none
_TIMEOUT = 60  # seconds without a byte until a request counts as lost
_OUT_OF_REACH = 20  # seconds until the Hub counts as out of reach, where nobody waits for it
_TRANSIENT = {408, 412, 429}  # beside 5xx; 412: the branch has moved, look again


def patiently(what: str, call: Callable[[], _T]) -> _T:
    """Call the Hub, and retry with pauses if the call fails. Returns its result.

    Only temporary failures are retried: too many requests, server errors, lost connections
    and time-outs.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception()
        return retry_after(error) or _WAITS[min(state.attempt_number, len(_WAITS)) - 1]

    def tell(state: tenacity.RetryCallState) -> None:
        error, pause = state.outcome.exception(), state.next_action.sleep
        print(f"{what}: {text_of(error)}; trying again in {pause:g} s", flush=True)

    limit_time()
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, ERRORS) and is_transient(e)),
        stop=tenacity.stop_after_attempt(len(_WAITS) + 1),
        wait=wait,
        before_sleep=tell,
        reraise=True,
    )
    with writable_cache():
        return attempts(call)


@contextlib.contextmanager
def writable_cache() -> Iterator[None]:
    """Raise UserError for an error of the disk in the folders of the Hub's downloads."""
    try:
        yield
    except Exception as error:
        names = ("HF_HUB_CACHE", "HF_DATASETS_CACHE")
        folders = {"HF_HOME": huggingface_hub.constants.HF_HOME}
        folders |= {name: os.environ[name] for name in names if os.environ.get(name)}
        causes = [e for e in _causes(error) if not isinstance(e, FileNotFoundError)]
        for cause in filter(_is_of_disk, causes):
            place = Path(str(cause.filename)).absolute()
            for name, text in folders.items():
                folder = Path(text).absolute()
                # A folder that cannot be made fails at the first of its parents.
                if place.is_relative_to(folder) or folder.is_relative_to(place):
                    raise UserError(
                        f"{place}: {cause.strerror}. Downloads are stored in {name} = {folder}. "
                        f"Set {name} to a folder that you may write to and that has room."
                    )
        raise


def dataset_folder(
    repo: str, commit: str, patterns: list[str], is_complete: Callable[[Path], bool]
) -> Path:
    """A dataset of the Hub in its cache; only missing files are downloaded.

    is_complete: whether nothing is missing in a folder of the cache, as after a download that was
    interrupted. Raises what the library raises.
    """
    fetch = functools.partial(
        huggingface_hub.snapshot_download,
        repo,
        repo_type="dataset",
        revision=commit,
        allow_patterns=patterns,
    )
    with writable_cache():
        with contextlib.suppress(LocalEntryNotFoundError):
            if is_complete(place := Path(fetch(local_files_only=True))):
                return place
        limit_time()
        # Asked first for its time limit: the listing that follows has none.
        huggingface_hub.dataset_info(repo, revision=commit, timeout=_OUT_OF_REACH)
        return Path(fetch())


@functools.cache
def limit_time() -> None:
    """Give every request a time limit, even where the library explicitly sets none."""
    hooks = {"request": [*huggingface_hub.get_session().event_hooks["request"], _limit]}
    # A factory, because the library makes a new client after an error of the connection.
    huggingface_hub.set_client_factory(
        lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=None)
    )


def _limit(request: httpx.Request) -> None:
    limits = request.extensions["timeout"]
    request.extensions["timeout"] = {kind: limits[kind] or _TIMEOUT for kind in limits}


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    return causes


def _http_error(error: BaseException) -> HfHubHTTPError | None:
    return next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)


def _status(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer, if known; hf_xet reports it only in its message."""
    if (http_error := _http_error(error)) is not None:
        return http_error.response.status_code
    for cause in _causes(error):
        if match := re.search(r"HTTP status (?:client|server) error \((\d{3})", str(cause)):
            return int(match[1])
    return None


def is_transient(error: BaseException) -> bool:
    """Whether a failure may be temporary."""
    if (status := _status(error)) is not None:
        return status >= 500 or status in _TRANSIENT
    if isinstance(error, OfflineModeIsEnabled) or _is_of_disk(error):
        return False
    # A RuntimeError is of the upload, which may give no status; the last, of an answer that is no
    # JSON, such as the page of a server in trouble.
    kinds = (
        httpx.TimeoutException,
        httpx.NetworkError,
        httpx.RemoteProtocolError,
        httpx.ProxyError,
        ConnectionError,
        TimeoutError,
        RuntimeError,
        json.JSONDecodeError,
    )
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _is_of_disk(error: BaseException) -> bool:
    """Whether the error comes from the local disk rather than the network."""
    kinds = (HfHubHTTPError, ConnectionError, TimeoutError)
    return isinstance(error, OSError) and bool(error.filename) and not isinstance(error, kinds)


def retry_after(error: BaseException) -> int | None:
    """The seconds that the Hub asks to wait; None if it names none."""
    http_error = _http_error(error)
    if http_error is None:
        return None
    headers = http_error.response.headers
    limit = huggingface_hub.utils.parse_ratelimit_headers(headers)
    if http_error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return int(value)
    with contextlib.suppress(ValueError):  # the other form is a date
        left = parsedate_to_datetime(value) - datetime.now(UTC)
        return max(0, math.ceil(left.total_seconds()))
    return None


def text_of(error: BaseException) -> str:
    """The error in one line, including the Hub's message but without the token."""
    http_error = _http_error(error)
    lines = [line.strip() for line in str(http_error or error).splitlines() if line.strip()]
    if http_error is not None and http_error.server_message:
        lines = [lines[0], http_error.server_message]
    text = " ".join(lines) or type(error).__name__
    token = huggingface_hub.get_token()
    return text.replace(token, "(the token)") if token else text


def reason_of(error: BaseException) -> str:
    """The error and what to do about it. Raises the error itself if the disk caused it."""
    if isinstance(error, UserError):
        return str(error)
    if _is_of_disk(error):
        raise error
    text, status = text_of(error), _status(error)
    if status == 401:
        text = (
            f"the Hub does not accept the token ({text}). Type: hf auth login (a token in "
            "HF_TOKEN takes precedence)."
        )
    elif status == 403:
        text = (
            f"the Hub does not let this token write there ({text}). The token may lack write "
            "permission (https://huggingface.co/settings/tokens), or the account may be out of "
            "storage."
        )
    else:
        text = f"the Hub could not be used: {text}."
    return text
