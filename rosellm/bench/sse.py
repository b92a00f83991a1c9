"""Server-sent events, as far as OpenAI's streams use them: bytes in, ``data`` payloads out.

https://html.spec.whatwg.org/multipage/server-sent-events.html, without ``id`` and ``retry``.
"""

from __future__ import annotations


class EventStream:
    """Cuts a byte stream into events, wherever the network cut it.

    >>> stream = EventStream()
    >>> stream.feed(b": a comment\\n\\ndata: on")
    []
    >>> stream.feed(b"e\\n\\ndata: two\\r\\n\\r\\n")
    [b'one', b'two']
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """Take bytes in; return the data of every event that is complete by now."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
