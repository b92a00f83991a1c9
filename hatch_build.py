"""Compiles the native CPU kernels when the package is built or installed from its sources.

They are optional: without a C++ compiler the package is built without them, and works. With
ROSELLM_BUILD_NATIVE=require, as releases are built, that is an error.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOM = "rosellm/roseinfer/kernels/cpu"


class NativeKernels(BuildHookInterface):
    """Hatchling finds it by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library in its place, from where an editable install loads it too."""
        build = _load(Path(self.root) / ROOM / "build.py")
        try:
            if not build.up_to_date():
                build.build()
        except (RuntimeError, OSError) as error:
            if os.environ.get("ROSELLM_BUILD_NATIVE") == "require":
                raise
            reason = str(error).splitlines()[0]
            self.app.display_warning(f"rosellm is built without native CPU kernels: {reason}")
            return
        if version != "editable":
            build_data["artifacts"].append(f"/{ROOM}/{build.LIBRARY.name}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"  # a plain C ABI: any Python's


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _load(path: Path) -> ModuleType:
    """Load a module of a package that is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
