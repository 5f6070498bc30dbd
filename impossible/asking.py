"""Requests to the Hub, with time limits, retries and readable errors."""

import contextlib
import functools
import json
import re
import traceback
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
TIMEOUT = 60  # seconds without a byte until a request counts as lost
WAITS = (1, 2, 4, 8, 16, 32)  # seconds between attempts, where the Hub names none
_OUT_OF_REACH = 20  # seconds to wait for the answer that tells whether the Hub can be reached
_TRANSIENT = {408, 412, 429}  # besides 5xx; 412: the branch has moved, look again


def patiently(what: str, call: Callable[[], _T]) -> _T:
    """The result of a call to the Hub, which is repeated after pauses if it fails.

    what: the subject of the call, for messages. Only temporary failures are retried: too many
    requests, server errors, lost connections and time-outs. Raises what the library raises.
    """

    waits = tenacity.wait_chain(*map(tenacity.wait_fixed, WAITS))

    def wait(state: tenacity.RetryCallState) -> float:
        return retry_after(state.outcome.exception()) or waits(state)

    def announce(state: tenacity.RetryCallState) -> None:
        error, pause = state.outcome.exception(), state.next_action.sleep
        print(f"{what}: {text_of(error)}; trying again in {pause:g} s", flush=True)

    limit_time()
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(len(WAITS) + 1),
        wait=wait,
        before_sleep=announce,
        reraise=True,
    )
    return attempts(call)


def ask(what: str, call: Callable[[], _T], advice: str, *kinds: type[Exception]) -> _T:
    """The result of `patiently`, for a call that reads from the Hub.

    Raises UserError with the reason and the advice if the call fails or raises an error of `kinds`.
    An OSError of the local disk is raised as it is.
    """
    try:
        return patiently(what, call)
    except (*ERRORS, *kinds) as error:
        if is_of_disk(error):
            raise
        raise UserError(f"{what} could not be read from the Hub ({text_of(error)}). {advice}")


def dataset_folder(
    repo: str, commit: str, patterns: list[str], is_complete: Callable[[Path], bool]
) -> Path:
    """The folder of a Hub dataset in the local cache; only missing files are downloaded.

    is_complete: whether a folder of the cache has all files (not after an interrupted download).
    Raises what the library raises.
    """
    options = {"repo_type": "dataset", "revision": commit, "allow_patterns": patterns}
    fetch = functools.partial(huggingface_hub.snapshot_download, repo, **options)
    with contextlib.suppress(LocalEntryNotFoundError):
        if is_complete(folder := Path(fetch(local_files_only=True))):
            return folder
    limit_time()
    # First a request with a short time limit: the library repeats the listing that follows.
    huggingface_hub.dataset_info(repo, revision=commit, timeout=_OUT_OF_REACH)
    return Path(fetch())


@functools.cache
def limit_time() -> None:
    """Give every request a time limit.

    The library's own limits are for downloads alone; everything else waits forever.
    """

    def limit(request: httpx.Request) -> None:
        limits = request.extensions["timeout"]
        request.extensions["timeout"] = {kind: limits[kind] or TIMEOUT for kind in limits}

    hooks = {"request": [*huggingface_hub.get_session().event_hooks["request"], limit]}
    # A factory, because the library makes a new client after a connection error.
    huggingface_hub.set_client_factory(
        lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=None)
    )


def is_transient(error: BaseException) -> bool:
    """Whether a failure may be temporary."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in _TRANSIENT
    if isinstance(error, OfflineModeIsEnabled) or is_of_disk(error):
        return False
    # An answer that is not JSON may be the page of a server in trouble.
    kinds = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)
    return any(isinstance(cause, kinds) or _is_by_library(cause) for cause in _causes(error))


def _is_by_library(error: BaseException) -> bool:
    """Whether huggingface_hub or httpx raised a RuntimeError, as happens when hf_xet fails."""
    names = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    libraries = (huggingface_hub.__name__, httpx.__name__)
    return isinstance(error, RuntimeError) and bool(names) and names[-1].startswith(libraries)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer, if known; hf_xet reports it only in its message."""
    if (http_error := _http_error(error)) is not None:
        return http_error.response.status_code
    messages = "\n".join(map(str, _causes(error)))
    match = re.search(r"HTTP status (?:client|server) error \((\d{3})", messages)
    return int(match[1]) if match else None


def is_of_disk(error: BaseException) -> bool:
    """Whether the error comes from the local disk rather than the network."""
    kinds = (HfHubHTTPError, ConnectionError, TimeoutError)
    return isinstance(error, OSError) and bool(error.filename) and not isinstance(error, kinds)


def retry_after(error: BaseException) -> float | None:
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
        return max(0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def text_of(error: BaseException) -> str:
    """The error in one line, including the Hub's message but without the access token."""
    http_error = _http_error(error)
    lines = [line.strip() for line in str(http_error or error).splitlines() if line.strip()]
    if http_error is not None and http_error.server_message:
        lines = [lines[0], http_error.server_message]
    text = " ".join(lines) or type(error).__name__
    token = huggingface_hub.get_token()
    return text.replace(token, "(the token)") if token else text


def _http_error(error: BaseException) -> HfHubHTTPError | None:
    return next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__
