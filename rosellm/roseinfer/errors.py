"""What can go wrong in a way that a person should read.

Every error here carries one clear line that names the field or the file at
fault. Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


def shown(text: str) -> str:
    """Something from an untrusted file as a message may carry it: one line, and not a long one.

    >>> shown("lm_head.weight"), shown("new\\nline"), len(shown("x" * 1000))
    ('lm_head.weight', "'new\\\\nline'", 120)
    """
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 120 else text[:117] + "..."


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a complaint about a name that is none.

    >>> did_you_mean("prot", ["host", "port"]), did_you_mean("xyz", ["port", "host"])
    ("; did you mean 'port'?", '; there are host, port')
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that is most like this one, however little that is.

    >>> nearest("max-num-seq", ["port", "max_num_seqs"])
    'max_num_seqs'
    """
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


class RosellmError(Exception):
    """Base of all errors that are meant for people. ``str(error)`` is one clear line."""


class ConfigError(RosellmError):
    """A flag, a config field or a combination of them that cannot work."""


class ModelError(RosellmError):
    """A model folder, checkpoint or tokenizer that cannot be served."""


class EngineDeadError(RosellmError):
    """The engine process has ended; no open request can be finished."""


class RequestError(RosellmError):
    """One request that is refused; the others never notice.

    Args:
        message: what is wrong and, where it helps, what to do.
        status: the HTTP status code that says it.
        param: the request field at fault, such as ``messages[0].content``.
        code: OpenAI's machine-readable code, such as ``context_length_exceeded``.
        kind: OpenAI's ``type``, where the status does not say it.
        retry_after_s: when to try again, for a status that says "not now".
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind
        self.retry_after_s = retry_after_s
