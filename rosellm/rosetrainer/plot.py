"""The loss curves as a picture, where matplotlib is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rosellm.rosetrainer.files import one_line_errors
from rosellm.rosetrainer.progress import read_log

HINT = "for a picture of the loss: pip install 'rosellm[train]', then the same command again"


def draw_losses(log: Path, picture: Path) -> str:
    """Draw a log. Returns the sentence that says what came of it."""
    if find_spec("matplotlib") is None:
        return HINT
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        rows = [row for row in read_log(log) if name in row]
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    with one_line_errors(f"picture {picture}"):
        figure.savefig(picture, dpi=120)
    return f"loss curves: {picture}"
