"""Finds and loads the native kernels, or says why there are none.

Functions are called straight through C pointers, and let go of the GIL while they run. This
module imports no torch: what crosses the border is numbers and addresses.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.build import LEVELS, LIBRARY, interface
from rosellm.roseinfer.kernels.cpu.cores import usable_cores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Library", "Unavailable", "address", "load"]

PATH_VARIABLE = "ROSELLM_CPU_LIBRARY"
LEVEL_VARIABLE = "ROSELLM_CPU_LEVEL"
THREADS_VARIABLE = "ROSELLM_CPU_THREADS"
REBUILD = "run: python -m rosellm.roseinfer.kernels.cpu.build"
COST = "plain torch serves, several times slower"

BODY = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_int)

_ROWS = POINTER(structs.Activations)
_STEP = POINTER(structs.Sequences)
_CACHE = POINTER(structs.KvCache)
_MATRIX = POINTER(structs.Matrix)

# Result and arguments of every function of api.cpp.
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rose_interface": (c_char_p, []),
    "rose_level": (c_char_p, []),
    "rose_set_level": (c_int, [c_char_p]),
    "rose_threads": (c_int, []),
    "rose_set_threads": (None, [c_int]),
    "rose_run_tiles": (None, [c_int64, BODY, c_void_p]),
    "rose_packed_bytes": (c_int64, [_MATRIX]),
    "rose_pack": (None, [_MATRIX, c_int64, c_int64, POINTER(structs.Plain)]),
    "rose_pack_codes": (None, [_MATRIX, c_int64, c_int64, POINTER(structs.Codes)]),
    "rose_search4": (None, [POINTER(structs.Plain), c_void_p, POINTER(structs.Searched)]),
    "rose_linear": (None, [POINTER(structs.Rows), _MATRIX, c_int32, c_void_p, c_int64]),
    "rose_logits": (None, [POINTER(structs.Rows), _MATRIX, POINTER(structs.Logits)]),
    "rose_lookup": (None, [_MATRIX, c_void_p, c_int64, c_void_p, c_int64]),
    "rose_rms_norm": (None, [_ROWS, _ROWS, c_void_p, c_float, _ROWS]),
    "rose_layer_norm": (None, [_ROWS, _ROWS, c_void_p, c_void_p, c_float]),
    "rose_add": (None, [_ROWS, _ROWS, _ROWS]),
    "rose_qkv_to_cache": (None, [POINTER(structs.QkvToCache), _CACHE]),
    "rose_slots": (None, [_STEP, c_void_p]),
    "rose_draw": (
        None,
        [_ROWS, c_void_p, POINTER(structs.Allowed), POINTER(structs.Sampling), c_void_p],
    ),
    "rose_logprobs": (None, [_ROWS, c_void_p, c_void_p, POINTER(structs.Likeliest)]),
    "rose_run": (None, [c_void_p, c_void_p, c_void_p]),
    "rose_attention": (None, [POINTER(structs.Attention), _STEP, _CACHE]),
}


@dataclass(frozen=True)
class Library:
    """The loaded kernels.

    Attributes:
        c: every function of ``SIGNATURES``, by its name.
    """

    c: ctypes.CDLL

    @property
    def level(self) -> str:
        """The instructions that the kernels use: a key of ``build.LEVELS``."""
        return str(self.c.rose_level().decode())

    @property
    def threads(self) -> int:
        """How many threads share an operation, the caller's included."""
        return int(self.c.rose_threads())

    def set_level(self, name: str | None) -> bool:
        """Use the level of that name, or the best one; whether this processor has it."""
        return bool(self.c.rose_set_level(None if name is None else name.encode()))

    def set_threads(self, count: int) -> None:
        """Let count threads share each operation, the caller's included."""
        self.c.rose_set_threads(count)

    @property
    def identity(self) -> str:
        """What results depend on beside their inputs: the level, and the compiled file."""
        built = hashlib.sha256(Path(self.c._name).read_bytes()).hexdigest()
        return f"{self.level} {built}"

    def describe(self) -> str:
        """What start-up says of it.

        >>> load().describe()  # doctest: +SKIP
        'native avx512, 2 threads'
        """
        count = self.threads
        return f"native {self.level}, {count} thread{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Unavailable:
    """There are no native kernels.

    Attributes:
        reason: why, what that costs, and how to get them, in one line.
    """

    reason: str


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's first element is, as a pointer argument or field takes it."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def load() -> Library | Unavailable:
    """The kernels of this process, at the level and with the threads that the environment says.

    Raises:
        ConfigError: an environment variable of ours has a value that cannot be.
    """
    named = os.environ.get(PATH_VARIABLE)
    library = open_library(Path(named or LIBRARY))
    if isinstance(library, Library):
        _set_level(library)
        library.set_threads(_chosen_threads())
    elif named:
        raise ConfigError(f"{PATH_VARIABLE}={named}: {library.reason}")
    return library


def open_library(path: Path) -> Library | Unavailable:
    """Load a file, if it is a library that this version of rosellm can use."""
    if not path.exists():
        return Unavailable(
            f"native CPU kernels are not built: {COST}; install g++ or clang++ and {REBUILD}"
        )
    try:
        return Library(_typed(ctypes.CDLL(str(path))))
    except OSError as error:
        return Unavailable(f"native CPU kernels cannot be loaded ({error}): {COST}; {REBUILD}")
    except AttributeError as error:
        return Unavailable(f"native CPU kernels are out of date ({error}): {COST}; {REBUILD}")


def _typed(c: ctypes.CDLL) -> ctypes.CDLL:
    """Give every function its types.

    Raises:
        AttributeError: the library was built from other sources.
    """
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    if c.rose_interface() != interface().encode():
        raise AttributeError(f"{c._name} was built from other sources")
    return c


def _set_level(library: Library) -> None:
    name = os.environ.get(LEVEL_VARIABLE) or None
    if name is not None and name not in LEVELS:
        raise ConfigError(f"{LEVEL_VARIABLE}: no level is called {name!r}: {', '.join(LEVELS)}")
    if not library.set_level(name):
        raise ConfigError(
            f"{LEVEL_VARIABLE}: this processor has no {name}, or the compiler of the kernels does"
            f" not know it; there is {library.level}"
        )


def _chosen_threads() -> int:
    """``ROSELLM_CPU_THREADS``, or as many as there are cores."""
    value = os.environ.get(THREADS_VARIABLE)
    if not value:
        return usable_cores()
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 1024:
        raise ConfigError(f"{THREADS_VARIABLE} must be a number from 1 to 1024, not {value!r}")
    return int(value)
