"""Requests and their sequences as the scheduler keeps them. No tensors, no text, no decisions."""

from __future__ import annotations

from dataclasses import dataclass, field

from rosellm.roseinfer.cache.manager import SequenceKV
from rosellm.roseinfer.grammar.constraint import Constraint
from rosellm.roseinfer.messages import Want
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.scheduling.fairness import Tenant
from rosellm.roseinfer.scheduling.phases import Phases
from rosellm.roseinfer.speculation.drafter import Drafter

Rank = tuple[float, int]


@dataclass(eq=False, slots=True)
class Request:
    """One Add and its choices. Followers wait until the first choice's prompt is cached.

    ``held`` until its grammar is compiled.
    """

    id: int
    tenant: Tenant
    unfinished: int
    held: bool = False
    sequences: list[Sequence] = field(default_factory=list)
    followers: list[Sequence] = field(default_factory=list)

    def let_go(self) -> None:
        """All have ended. They refer to the request: what refers back would leave them, and the
        states of their grammars, to a collector that knows nothing of what those weigh."""
        self.sequences.clear()
        self.followers.clear()


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of a request: its tokens, and how far they are computed.

    ``num_scheduled`` counts what submitted plans cover, ``num_computed`` what has come
    back; they differ only while a plan is in flight. ``rank`` orders by virtual arrival
    time: a level of priority is worth a fixed number of seconds, so that everything that
    waits overtakes, in time, all that arrives later. It ends at ``longest`` tokens.
    ``num_scored`` prompt positions have been reported; the last one has nothing to be scored
    against. What waits counts for ``queued`` tokens, and is ``ready`` if it could be admitted.
    All before position ``charged`` has been charged to its tenant. The next token is ``awaited``
    from that row of the newest submitted plan, if it may be computed before it is known.
    """

    number: int
    request: Request
    choice: int
    params: SamplingParams
    prompt_len: int
    longest: int
    tokens: list[int]
    rank: Rank
    kv: SequenceKV
    phases: Phases
    drafter: Drafter | None = None
    want: Want = "tokens"
    num_scored: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    in_flight: int = 0
    cached: int | None = None
    finished: bool = False
    constraint: Constraint | None = None
    queued: int = 0
    ready: bool = False
    charged: int = 0
    awaited: int | None = None

    @property
    def tenant(self) -> Tenant:
        return self.request.tenant

    @property
    def urgency(self) -> tuple[float, Rank]:
        """Smaller is more urgent: what its tenant has been served, then its rank."""
        return self.tenant.served, self.rank

    @property
    def pending(self) -> int:
        """Tokens that no plan covers yet: those that are known, or the one that is awaited."""
        known = len(self.tokens) - self.num_scheduled
        return 1 if known == 0 and self.awaited is not None else max(0, known)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.longest - len(self.tokens)

    @property
    def samples(self) -> bool:
        """Whether tokens follow the known ones; otherwise the sequence ends with them."""
        return self.want == "tokens" and self.params.max_tokens > 0

    @property
    def unscored(self) -> bool:
        """Whether prompt positions are still to be scored. Siblings leave it to the first."""
        wanted = self.params.prompt_logprobs is not None and self.choice == 0
        return wanted and self.want == "tokens" and self.num_scored < self.prompt_len - 1

    @property
    def tells_spares(self) -> bool:
        """Whether a token may take the sampled one's place, and its score has to be told then."""
        return self.constraint is not None and self.params.logprobs is not None
