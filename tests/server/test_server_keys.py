"""Files of keys: what they may say, and one line for what they may not."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server.keys import Key, KeyLimits, Keys, digest, exposure, load_keys

ROOT = Path(__file__).parents[2]
SECRET = "sk-secret-do-not-show"


def write(folder: Path, text: str) -> str:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_a_file_of_keys(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"other").hexdigest().upper()
    file = write(
        tmp_path,
        '[keys.alice]\nkey = "sécret"\nrequests_per_minute = 5\ntokens_per_minute = 6\n'
        f'max_concurrent = 7\nshare = 2\n[keys."b.2"]\nsha256 = "{hashed}"\n',
    )
    keys = load_keys(file, {"ROSELLM_API_KEY": "mine"})
    assert list(keys) == [
        Key("alice", digest("sécret".encode()), KeyLimits(5, 6, 7), share=2.0),
        Key("b.2", digest(b"other")),
        Key("default", digest(b"mine")),
    ]
    for sent, name in ((b"mine", "default"), ("sécret".encode(), "alice"), (b"other", "b.2")):
        found = keys.find(sent)
        assert found is not None
        assert found.name == name
    for sent in (b"", b"Mine", b"mine2", hashed.encode()):
        assert keys.find(sent) is None


def test_without_any_key() -> None:
    assert not load_keys(None, {})
    assert not load_keys(None, {"ROSELLM_API_KEY": ""})
    assert not Keys.of(None)
    assert Keys.of("x").find(b"x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("[keys]", "holds no key"),
        ("keys = 3", "holds no key"),
        (f'[alice]\nkey = "{SECRET}"', "'alice' is not known"),
        (f'[keys]\nalice = "{SECRET}"', "keys.alice must be a table"),
        (f'[keys.alice]\nkye = "{SECRET}"', "keys.alice: unknown field 'kye'; did you mean 'key'"),
        ("[keys.alice]\nrequests_per_minute = 3", "keys.alice: either key or sha256"),
        (f'[keys.alice]\nkey = "{SECRET}"\nsha256 = "{"0" * 64}"', "keys.alice: either"),
        ("[keys.alice]\nkey = 3", "keys.alice.key must be a text"),
        ('[keys.alice]\nkey = ""', "keys.alice.key must be a text"),
        (f'[keys.alice]\nkey = "{SECRET} "', "keys.alice.key has a space"),
        (f'[keys.alice]\nkey = "{SECRET}\\n"', "keys.alice.key has a space"),
        (f'[keys.alice]\nkey = "a\\u0000{SECRET}"', "control character"),
        (f'[keys.alice]\nsha256 = "{SECRET}"', "keys.alice.sha256 must be 64 hex"),
        ("[keys.alice]\nsha256 = 1", "keys.alice.sha256 must be 64 hex"),
        (f'[keys."a b"]\nkey = "{SECRET}"', "a name has 1 to 64"),
        (f'[keys.""]\nkey = "{SECRET}"', "a name has 1 to 64"),
        (f'[keys.{"a" * 65}]\nkey = "{SECRET}"', "a name has 1 to 64"),
        *(
            (f'[keys.a]\nkey = "{SECRET}"\n{name} = {value}', f"keys.a.{name} must be an integer")
            for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent")
            for value in ("0", "-1", "1.5", "true", '"9"', "1" + "0" * 30)
        ),
        *(
            (f'[keys.a]\nkey = "{SECRET}"\nshare = {value}', "keys.a.share must be a number from")
            for value in ("0", "-1", "101", "0.001", "nan", "inf", "true", '"2"')
        ),
        (f'[keys.a]\nkey = "{SECRET}"\n[keys.b]\nkey = "{SECRET}"', "keys.b is the same key as a"),
        (f'[keys.a]\nkey = "{SECRET}"\n[keys.a]\nkey = "b"', "cannot be read as TOML"),
        (f'[keys.default]\nkey = "{SECRET}"', "ROSELLM_API_KEY is set too"),
        (f'[keys.other]\nkey = "{SECRET}-of-the-environment"', "is the same key as other"),
        ("[keys.", "cannot be read as TOML"),
        ("x = " + "[" * 10_000, "cannot be read as TOML"),
        ("x = 1" + "0" * 5000, "cannot be read as TOML"),
        ("#" * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_a_bad_file_is_one_line_without_any_key(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load_keys(file, {"ROSELLM_API_KEY": f"{SECRET}-of-the-environment"})
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert "\n" not in said
    assert SECRET not in said


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file of API keys"):
        load_keys(str(tmp_path / "x"), {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_keys(str(tmp_path), {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_keys(str(tmp_path / "binary"), {})


@pytest.mark.parametrize("key", [" a", "a\n", "a\0b", " "])
def test_a_bad_key_in_the_environment(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^ROSELLM_API_KEY has a space"):
        load_keys(None, {"ROSELLM_API_KEY": key})


def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    for mode, is_exposed in ((0o600, False), (0o640, False), (0o644, True), (0o602, True)):
        Path(file).chmod(mode)
        assert bool(exposure(file)) is is_exposed
        assert not is_exposed or file in str(exposure(file))


def test_the_documents_example(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    (block,) = re.findall(r"<!-- file: keys.toml -->\n```toml\n(.*?)```", page, re.DOTALL)
    keys = load_keys(write(tmp_path, block), {})
    assert [key.name for key in keys] == ["alice", "nightly-jobs"]
    assert keys.find(b"1") is not None
