"""Which layers see a window only, as configs say it."""

from __future__ import annotations

from collections.abc import Callable

from rosellm.roseinfer.models.spec import ConfigReader

_KINDS = ("full_attention", "sliding_attention")


def read_window(config: ConfigReader) -> int | None:
    """``sliding_window``: how many latest positions a token sees; None where it is null."""
    if not config.has("sliding_window"):
        return None
    window = config.integer("sliding_window")
    if window < 1:
        raise config.unexpected("sliding_window", "an integer from 1 on, or null")
    return window


def read_windows(
    config: ConfigReader,
    num_layers: int,
    window: int | None,
    slides: Callable[[int], bool] = lambda layer: True,
) -> tuple[int | None, ...]:
    """Each layer's window, by ``layer_types`` where the config has them, else by the rule.

    Args:
        window: of the layers that have one; None if the model has none.
        slides: whether a layer has the window.
    """
    sliding = _read_types(config, num_layers) if config.has("layer_types") else None
    if sliding is None:
        return tuple(window if slides(layer) else None for layer in range(num_layers))
    if window is None and any(sliding):
        raise config.unexpected("layer_types", "full_attention only, for want of a window")
    return tuple(window if own else None for own in sliding)


def _read_types(config: ConfigReader, num_layers: int) -> list[bool]:
    kinds = config.sequence("layer_types")
    if len(kinds) != num_layers or any(kind not in _KINDS for kind in kinds):
        raise config.unexpected("layer_types", f"{num_layers} times one of {', '.join(_KINDS)}")
    return [kind == "sliding_attention" for kind in kinds]
