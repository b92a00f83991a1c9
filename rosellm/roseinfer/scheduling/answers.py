"""Which of the sampled tokens an answer takes, and why it ends.

A sample after a draft that was wrong does not follow from it; a grammar may have another token
take a sample's place, or end the answer before it.
"""

from __future__ import annotations

from rosellm.roseinfer.grammar.constraint import Constraint, GrammarError
from rosellm.roseinfer.messages import FinishReason, Output
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.step import Sample


class Answers:
    """Appends tokens, and counts.

    Attributes:
        drafts: that were made, each of a sequence in a step.
        drafted: their tokens.
        accepted: how many of them were right.
        incomplete: answers that ended where their grammar does not accept.
    """

    def __init__(self) -> None:
        self.drafts = 0
        self.drafted = 0
        self.accepted = 0
        self.incomplete = 0

    def append(
        self,
        sequence: Sequence,
        drafts: tuple[int, ...],
        samples: tuple[Sample, ...],
        row: Output,
    ) -> int:
        """Append sampled tokens until one ends the sequence, or is not what was drafted.

        What was sampled after it does not follow from it. Returns how many drafts were right.

        Raises:
            GrammarError: nothing may come, and the answer may not end.
        """
        if samples and sequence.params.logprobs is not None:
            row.logprobs = []
        accepted = 0
        for index, sample in enumerate(samples):
            taken = _under_grammar(sequence, sample, row, drafted=index > 0)
            if taken is None:
                accepted -= row.finish is None  # the position is sampled once more
                break
            sequence.tokens.append(taken.token)
            row.tokens.append(taken.token)
            if row.logprobs is not None and taken.logprobs is not None:
                row.logprobs.append(taken.logprobs)
            right = drafts[index : index + 1] == (taken.token,)
            accepted += right
            row.finish = self._finish_reason(sequence, taken.token, row)
            if row.finish is not None or not right:
                break
        self._learn(sequence, len(drafts), accepted, row)
        return accepted

    def _learn(self, sequence: Sequence, drafted: int, accepted: int, row: Output) -> None:
        if sequence.drafter:
            sequence.drafter.follow(row.tokens)
            sequence.drafter.learn(drafted, accepted)
        self.drafts += drafted > 0
        self.drafted += drafted
        self.accepted += accepted

    def _finish_reason(self, sequence: Sequence, token: int, row: Output) -> FinishReason | None:
        params, constraint = sequence.params, sequence.constraint
        if token in params.stop_token_ids and sequence.num_output > params.min_tokens:
            return "stop"
        if constraint is not None and constraint.ended(sequence.room):
            row.complete = True
            return "stop"
        if sequence.room > 0:
            return None
        self.incomplete += constraint is not None and not constraint.accepts
        return "length"


def _under_grammar(sequence: Sequence, sample: Sample, row: Output, drafted: bool) -> Sample | None:
    """What comes of a sample under the sequence's grammar; None if the answer ends before it.

    After drafts, None as well if the mask had allowed nothing: the next step will tell why.
    """
    constraint = sequence.constraint
    if constraint is None:
        return sample
    if constraint.stuck:
        _end_stuck(constraint, row)
        return None
    if drafted and not constraint.allows(sample.token):
        return None
    token = constraint.take(sample.token, sequence.room - 1)
    if token is None:
        row.finish = "length"
        return None
    return sample if token == sample.token else Sample(token, logprobs=sample.spare)


def _end_stuck(constraint: Constraint, row: Output) -> None:
    """No token may come: that is an end where the grammar accepts, and an error elsewhere."""
    if not constraint.accepts:
        raise GrammarError("the vocabulary has no token that its grammar allows here")
    row.finish, row.complete = "stop", True
