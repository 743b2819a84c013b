"""After a failure: try again, with how many workers, or give up. Counting and arithmetic; nothing is started here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# how the loss of another rank sounds in the rank that notices it
PEER_WORDS = ("gloo", "nccl", "connection", "connect", "broken pipe", "socket", "peer", "timed out", "timeout", "store")


@dataclass(frozen=True)
class RankFailure:
    """How training ended on one rank."""

    error: str | None  # class of the exception that training raised; None where the process was lost without a word
    message: str  # its first line

    @property
    def blames_peer(self) -> bool:
        return any(word in self.message.lower() for word in PEER_WORDS)

    def __str__(self) -> str:
        return f"{self.error}: {self.message}" if self.error else self.message


@dataclass(frozen=True)
class Failure:
    """How an attempt ended."""

    reason: str  # one line for people
    is_error: bool  # an exception of training itself, which may come again; False where processes or resources were lost
    step: int  # last step in metrics.jsonl
    checkpoint: int  # step of the last committed checkpoint; 0 = none


def cause(failures: Mapping[int, RankFailure]) -> tuple[str, bool]:
    """Which rank's failure brought the others down: (one line, whether it is an exception of training itself).

    First an exception that does not complain about a peer, then a lost process, then whatever is left.
    """

    def order(item: tuple[int, RankFailure]) -> tuple[int, int]:
        rank, failure = item
        return (2 if failure.error and failure.blames_peer else 0 if failure.error else 1, rank)

    rank, failure = min(failures.items(), key=order)
    who = f"rank {rank}: " if rank >= 0 else ""
    return f"{who}{failure}", failure.error is not None and not failure.blames_peer


class Restarts:
    """Counts failures since the last progress. Progress is a new committed checkpoint: it sets the count to zero.

    Args:
        max_failures: failures without progress after which training is tried again.
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.total = 0
        self.in_a_row = 0
        self.before: Failure | None = None

    def see(self, failure: Failure) -> bool:
        """Count a failure; whether the very same error came at the same step before, so that it would come for ever."""
        before, self.before = self.before, failure
        self.in_a_row = self.in_a_row + 1 if before is not None and failure.checkpoint <= before.checkpoint else 1
        self.total += 1
        return (
            before is not None
            and failure.is_error
            and before.is_error
            and failure.step == before.step
            and _shape(failure.reason) == _shape(before.reason)
        )

    @property
    def exhausted(self) -> bool:
        return self.in_a_row > self.max_failures

    def words(self) -> str:
        """For the last line of a job."""
        return f" after {self.total} restart{'s' if self.total > 1 else ''} (last: {self.before.reason})" if self.before else ""


def _shape(reason: str) -> str:
    """A message without what differs between two times: numbers, addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", reason.lower())


def sizes(micro_batches: int, least: int, most: int) -> list[int]:
    """Numbers of workers that can share the micro-batches of a step, largest first."""
    return [size for size in range(most, least - 1, -1) if micro_batches % size == 0]
