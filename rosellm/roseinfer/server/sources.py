"""Settings from a TOML file and from the environment: file < ``ROSELLM_*`` < flags.

Every name is a setting's (``config.py``), and a name that is none is an error: a misspelt setting
that is passed over would be found much later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rosellm.roseinfer.errors import ConfigError, nearest, shown
from rosellm.roseinfer.server.fields import fitting, from_text, hints, is_list
from rosellm.roseinfer.server.keys import KEY_VARIABLE
from rosellm.roseinfer.toml_file import read_toml

PREFIX = "ROSELLM_"
FILE_VARIABLE = "ROSELLM_CONFIG"
OTHERS = frozenset(
    {
        FILE_VARIABLE,
        KEY_VARIABLE,
        "ROSELLM_BUILD_NATIVE",
        "ROSELLM_CPU_LEVEL",
        "ROSELLM_CPU_LIBRARY",
        "ROSELLM_CPU_THREADS",
    }
)
"""Variables that are read elsewhere."""

KUBERNETES = re.compile(
    r"ROSELLM_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""What it tells every pod about a service that is called rosellm, beside ``ROSELLM_PORT``."""
KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://.*")


def settings(file: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """What the file and the environment say, the environment's word before the file's.

    Args:
        file: its path, where the command line names one; else ``ROSELLM_CONFIG`` may.

    Raises:
        ConfigError: one line that names the file or the variable, and the setting.
    """
    file = file or environment.get(FILE_VARIABLE)
    found = dict(_of_file(file)) if file else {}
    return found | dict(_of_environment(environment))


def variable(name: str) -> str:
    """The variable that sets a setting."""
    return PREFIX + name.upper()


def _of_file(file: str) -> Iterator[tuple[str, Any]]:
    where = shown(file)
    for name, value in read_toml(file, "config file").items():
        if name not in hints():
            raise ConfigError(f"{where}: {_about_unknown(name, value)}")
        is_text_of_list = isinstance(value, str) and is_list(name)
        take = from_text if is_text_of_list else fitting
        yield name, _taken(f"{where}: {name}", take, name, value)


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    names = {variable(name): name for name in hints()}
    for spoken, text in sorted(environment.items()):
        if not spoken.startswith(PREFIX) or spoken in OTHERS or _is_kubernetes(spoken, text):
            continue
        if spoken not in names:  # its value is not shown: it may be a key
            near = nearest(spoken, [*names, *OTHERS])
            raise ConfigError(f"{shown(spoken)}: there is no such setting; did you mean {near}?")
        if text:
            yield names[spoken], _taken(spoken, from_text, names[spoken], text)


def _is_kubernetes(spoken: str, text: str) -> bool:
    if spoken == variable("port"):
        return KUBERNETES_PORT.fullmatch(text) is not None
    return KUBERNETES.fullmatch(spoken) is not None


def _about_unknown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{shown(name)!r} is a table; settings stand in the file by themselves, without one"
    return f"there is no setting {shown(name)!r}; did you mean {nearest(name, hints())!r}?"


def _taken(spoken: str, take: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    try:
        return take(name, value)
    except ValueError as error:
        raise ConfigError(f"{spoken} {error}") from None
