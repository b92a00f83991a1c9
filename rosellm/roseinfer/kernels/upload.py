"""How arrays that the host made get to the device that computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Upload = Callable[[np.ndarray], Tensor]
"""An array as a tensor on the device, of its shape and type. What it holds may only arrive there
after whoever uploads has sent everything off, and stays until the next step."""


def at_once(device: torch.device) -> Upload:
    """Each array goes at once; on a CPU it is not even copied."""
    return lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)
