"""All requests and their sequences: those that wait, those that run, and those that have ended
but for a submitted plan which still refers to them.

Knows who is where, and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.scheduling.fairness import Queue
from rosellm.roseinfer.scheduling.sequence import Request, Sequence


class Roster:
    """
    Attributes:
        requests: those that have not ended, by id.
        sequences: by number, those of them all, and those that a plan refers to.
        running: by number, those that hold a place in the batch.
        queue: the others.
    """

    def __init__(self, cache: CacheManager, queue: Queue) -> None:
        self._cache = cache
        self.queue = queue
        self.requests: dict[int, Request] = {}
        self.sequences: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}

    def enter(self, request: Request) -> None:
        """A request begins to wait, until it is offered."""
        for index, sequence in enumerate(request.sequences):
            shared = sequence.prompt_len if index else 0
            self.queue.enter(sequence, len(sequence.tokens) - shared)
            self.sequences[sequence.number] = sequence
        self.requests[request.id] = request

    def offer(self, sequences: Iterable[Sequence]) -> None:
        """These could be admitted from now on."""
        for sequence in sequences:
            self.queue.offer(sequence)

    def release_followers(self, leader: Sequence) -> None:
        """The first choice's prompt is in the cache: its siblings can share it."""
        self.offer(leader.request.followers)
        leader.request.followers = []

    def start(self, sequence: Sequence) -> None:
        """A sequence that was offered runs."""
        self.queue.leave(sequence)
        self.running[sequence.number] = sequence
        sequence.tenant.running += 1

    def stop(self, sequence: Sequence) -> None:
        """A sequence that ran waits again."""
        del self.running[sequence.number]
        sequence.tenant.running -= 1
        self.queue.enter(sequence, len(sequence.tokens))
        self.queue.offer_again(sequence)

    def end(self, request: Request) -> None:
        for sequence in list(request.sequences):
            if not sequence.finished:
                self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence. Its blocks go when no submitted plan refers to them any more."""
        sequence.finished = True
        if self.running.pop(sequence.number, None) is None:
            self.queue.leave(sequence)
        else:
            sequence.tenant.running -= 1
        sequence.request.unfinished -= 1
        if sequence.request.unfinished == 0:
            del self.requests[sequence.request.id]
            self.queue.close(sequence.tenant)
            sequence.request.let_go()
        self.forget_if_idle(sequence)

    def forget_if_idle(self, sequence: Sequence) -> None:
        """Let go of one that has ended, unless a submitted plan refers to it."""
        if sequence.in_flight == 0:
            self._cache.release(sequence.kv)
            del self.sequences[sequence.number]

    def check(self) -> None:
        """Raise AssertionError if what is said of a sequence contradicts itself."""
        unfinished = [s for s in self.sequences.values() if not s.finished]
        self.queue.check(s for s in unfinished if s.number not in self.running)
        assert not any(s.ready or s.queued for s in self.running.values())
        running = Counter(s.tenant for s in self.running.values())
        tenants = {s.tenant for s in self.sequences.values()}
        assert all(tenant.running == running[tenant] for tenant in tenants)
        for sequence in self.sequences.values():
            assert 0 <= sequence.num_computed <= sequence.num_scheduled
            awaited = sequence.in_flight > 1 or sequence.finished  # whose token is not taken in
            assert sequence.num_scheduled <= len(sequence.tokens) + awaited
            assert sequence.in_flight or sequence.num_computed == sequence.num_scheduled
            assert sequence.in_flight or not sequence.finished
            held = len(sequence.kv.tables[0]) * self._cache.block_size
            assert sequence.num_scheduled <= held
