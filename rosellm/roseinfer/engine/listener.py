"""Who is told what an engine does, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable

from rosellm.roseinfer.messages import Outputs, Progress

OnProgress = Callable[[Progress], None]


class EngineListener:
    """Hears one engine, on the loop that it was started from. A subclass says what it heeds."""

    def on_progress(self, progress: Progress) -> None:
        """It has loaded so far."""

    def on_outputs(self, outputs: Outputs) -> None:
        """The rows of a step."""

    def on_death(self, reason: str) -> None:
        """It has ended for good without having been stopped. Told once."""

    def on_loss(self) -> int:
        """It has died, and another one is to be started.

        Returns how many deaths before this one are explained by what was sent to the engine, and
        do not speak against it.
        """
        return 0

    def on_restart(self) -> None:
        """It serves again, and knows nothing of what it was sent before."""
