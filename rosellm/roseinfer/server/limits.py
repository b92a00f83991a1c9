"""What each key has used up: requests and tokens per minute, and requests at one time.

Requests and tokens drip into buckets that hold a minute's worth. A request is one drop; of tokens,
a prompt's are taken when it is admitted and an answer's as they are made, so that bucket may go
into debt, and then nothing is admitted until the debt is paid. What is refused costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.keys import Key, KeyLimits, Keys

if TYPE_CHECKING:
    from rosellm.roseinfer.server.delta import Delta

Clock = Callable[[], float]
"""Seconds, from any beginning on, that never go back."""


class Bucket:
    """Fills at an even rate; what is taken may be more than it holds.

    Any thread may use it: an ``LLM`` that is served has an event loop of its own.

    Args:
        per_minute: what drips into it, and all that it holds.
    """

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._full = float(per_minute)
        self._level = self._full
        self._at = clock()
        self._lock = threading.Lock()

    def level(self) -> float:
        """What it holds now; below 0 it is in debt."""
        with self._lock:
            self._fill()
            return self._level

    def take(self, amount: float) -> None:
        """Take so much out; a negative amount is given back."""
        with self._lock:
            self._fill()
            self._level = min(self._full, self._level - amount)

    def seconds_until(self, level: float) -> float:
        """How long it takes to hold so much, if nothing more is taken."""
        return max(0.0, level - self.level()) * 60.0 / self.per_minute

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._full, self._level + (now - self._at) * self.per_minute / 60.0)
        self._at = now

    def resize(self, per_minute: int) -> None:
        """Another rate from now on. What has been taken stays taken."""
        with self._lock:
            self._fill()
            self._level = min(per_minute, self._level + per_minute - self.per_minute)
            self.per_minute, self._full = per_minute, float(per_minute)

    def headers(self, what: str) -> Iterator[tuple[str, str]]:
        """OpenAI's three, as https://platform.openai.com/docs/guides/rate-limits has them."""
        yield f"x-ratelimit-limit-{what}", str(self.per_minute)
        yield f"x-ratelimit-remaining-{what}", str(max(0, int(self.level())))
        yield f"x-ratelimit-reset-{what}", duration(self.seconds_until(self._full))


class Account:
    """What one tenant has used up.

    Args:
        key: None where nobody is asked for one: then there are no limits.
    """

    def __init__(self, key: Key | None = None, clock: Clock = time.monotonic) -> None:
        self.tenant = "" if key is None else key.name
        self._clock = clock
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._open = 0
        self.hold_to(KeyLimits() if key is None else key.limits, 1.0 if key is None else key.share)

    def hold_to(self, limits: KeyLimits, share: float) -> None:
        """What it is granted from now on; what it has used up stays used up."""
        self.share = share
        self._requests = self._bucket(self._requests, limits.requests_per_minute)
        self._tokens = self._bucket(self._tokens, limits.tokens_per_minute)
        self._most_open = limits.max_concurrent

    def _bucket(self, present: Bucket | None, per_minute: int | None) -> Bucket | None:
        if present is None or per_minute is None:
            return Bucket(per_minute, self._clock) if per_minute else None
        present.resize(per_minute)
        return present

    def enter(self, *, spends: bool) -> None:
        """Begin a request, which ``leave`` ends.

        Args:
            spends: whether it may take tokens.

        Raises:
            RequestError: a 429; then nothing has begun.
        """
        if spends:
            self.check_tokens()
        if self._most_open and self._open >= self._most_open:
            raise self._refusal("requests", f"{self._most_open} requests at one time", None)
        if self._requests and self._requests.level() < 1:
            limit = f"{self._requests.per_minute} requests per minute"
            raise self._refusal("requests", limit, self._requests.seconds_until(1))
        if self._requests:
            self._requests.take(1)
        self._open += 1

    def leave(self) -> None:
        """The end of a request that has begun."""
        self._open -= 1

    def check_tokens(self) -> None:
        """Refuse what takes tokens while there are none.

        Raises:
            RequestError: a 429.
        """
        if self._tokens and self._tokens.level() <= 0:
            limit = f"{self._tokens.per_minute} tokens per minute"
            raise self._refusal("tokens", limit, self._tokens.seconds_until(1))

    def spend(self, prompt_tokens: int) -> Spending:
        """Take a prompt's tokens; those of its answer are taken by what this returns."""
        return Spending(self._tokens, prompt_tokens)

    def headers(self) -> dict[str, str]:
        """What each answer says of the limits."""
        found: dict[str, str] = {}
        if self._requests:
            found |= self._requests.headers("requests")
        if self._tokens:
            found |= self._tokens.headers("tokens")
        return found

    def _refusal(self, what: str, limit: str, wait: float | None) -> RequestError:
        when = "later" if wait is None else f"in {duration(wait)}"
        return RequestError(
            f"the key {self.tenant!r} is limited to {limit}; try again {when}",
            status=429,
            code="rate_limit_exceeded",
            kind=what,
            retry_after_s=wait,
        )


UNLIMITED = Account()


class Spending:
    """One request's tokens; sees its answer, see ``Watcher``."""

    def __init__(self, bucket: Bucket | None, prompt_tokens: int) -> None:
        self._bucket = bucket
        self._refundable = prompt_tokens
        self._take(prompt_tokens)

    def see(self, item: Delta | Exception) -> None:
        """Take the answer's tokens; a request that is refused gets its prompt's back.

        One whose time ran out does not: its prompt may have been computed.
        """
        if isinstance(item, Exception):
            if getattr(item, "status", None) != HTTPStatus.GATEWAY_TIMEOUT:
                self._take(-self._refundable)
        else:
            self._take(len(item.ids))
        self._refundable = 0

    def end(self) -> None:
        """What was made is paid for, whoever read it."""

    def _take(self, amount: int) -> None:
        if self._bucket is not None and amount:
            self._bucket.take(amount)


class Accounts:
    """The account of each key."""

    def __init__(self, keys: Keys, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self.replace(keys)

    def __bool__(self) -> bool:
        """Whether anybody is asked for a key."""
        return bool(self._keys)

    def replace(self, keys: Keys) -> None:
        """Other keys from now on. A name that stays keeps its account, and who is inside stays."""
        kept = self._accounts
        self._keys = keys
        self._accounts = {key.name: self._account(kept.get(key.name), key) for key in keys}

    def _account(self, present: Account | None, key: Key) -> Account:
        if present is None:
            return Account(key, self._clock)
        present.hold_to(key.limits, key.share)
        return present

    def of(self, sent: bytes) -> Account | None:
        """Whose key it is that was sent, if anybody's."""
        key = self._keys.find(sent)
        return None if key is None else self._accounts[key.name]


def duration(seconds: float) -> str:
    """A time as OpenAI writes it, rounded up to the millisecond.

    >>> [duration(seconds) for seconds in (0, 0.0171, 1, 7.66, 60, 360, 3661.5)]
    ['0s', '18ms', '1s', '7.66s', '1m0s', '6m0s', '1h1m1.5s']
    """
    milliseconds = -int(-seconds * 1000 // 1)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{text}{rest / 1000:g}s"
