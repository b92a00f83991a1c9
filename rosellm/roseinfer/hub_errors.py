"""Why the hub did not give a model, in one or two lines that say what to do.

``huggingface_hub`` raises errors of its own, of its HTTP client and of the system, with messages
of a page; everything known about them is here.
"""

from __future__ import annotations

import errno

from rosellm.roseinfer.errors import shown

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(repo: str, revision: str | None, error: Exception) -> str:
    """What went wrong with a repository, for a person who may have meant a local folder.

    Args:
        repo: as it was asked for, ``org/name``.
        revision: likewise, if any.
        error: what a function of ``huggingface_hub`` raised.
    """
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # that there is no cached copy to fall back to is not the reason
    absent = f"no folder {repo!r} here, and"
    if isinstance(error, errors.GatedRepoError):
        return _gated(repo)
    if isinstance(error, errors.RepositoryNotFoundError) or _asks_for_token(error):
        return f"{absent} the hub has no model {repo!r} (if it is a private one, set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo} on the hub has no revision {revision!r}: "
            "pass a branch, a tag or a whole commit hash"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{absent} it is no hub id either: these are org/name or org/name@revision"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{absent} not all of the hub's {repo!r} is in the cache, {constants.HF_HUB_CACHE}: "
            "unset HF_HUB_OFFLINE to download it"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo, error.response.status_code, error.server_message)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk of {constants.HF_HUB_CACHE} is full: make room, or set HF_HOME to a folder "
            f"on a larger disk; {repo} will go on where it stopped"
        )
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return (
            f"cannot write to the cache, {constants.HF_HUB_CACHE} ({error.strerror}): "
            "set HF_HOME to a folder of yours"
        )
    return (
        f"{absent} the hub at {constants.ENDPOINT} does not answer ({_reason(error)}): check the "
        "network and its proxy, or pass a local folder"
    )


def _asks_for_token(error: Exception) -> bool:
    """Whether this is the hub's answer to strangers about anything that is not public."""
    from huggingface_hub import errors, get_token

    refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    return refused and not get_token()


def _gated(repo: str) -> str:
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{repo}"
    if get_token():
        return (
            f"{repo} is gated, and the account of your token has no access to it: "
            f"accept its licence at {page}"
        )
    return (
        f"{repo} is gated: accept its licence at {page}\n"
        f"and set HF_TOKEN to a token of that account, from {constants.ENDPOINT}/settings/tokens"
    )


def _refused(repo: str, status: int, reason: str | None) -> str:
    from huggingface_hub import constants

    if status == 401:
        return (
            "the hub refuses your token as wrong or expired: set HF_TOKEN to a new one, from "
            f"{constants.ENDPOINT}/settings/tokens, or to none for a public model"
        )
    if status == 403:
        return f"the hub does not let you read {repo}: set HF_TOKEN to a token that may"
    said = f" ({shown(reason)})" if reason else ""
    return f"the hub answered {status} when asked for {repo}{said}: try again later"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0])
