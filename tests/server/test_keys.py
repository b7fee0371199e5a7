"""The file of keys: what a line may be, when it is read again, and what never stands in it."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from sie_core.errors import InvalidRequestError
from sie_core.server.keys import Keys, make_key, read_keys


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *lines: object) -> None:
    """Write a key file that only its owner reads."""
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)


def test_a_key_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    """The file holds SHA-256 of the key, so any tool can check a line."""
    key, line = make_key("search-team")
    write(tmp_path / "keys", "# comment", "", line)
    assert str(line) == f"search-team:{hashlib.sha256(key.encode()).hexdigest()}"
    assert Keys(tmp_path / "keys").find(key) == line
    assert key not in (tmp_path / "keys").read_text()


def test_keys_are_random_and_long() -> None:
    """256 bits each, so that the hash needs to be no slow one."""
    keys = {make_key("a")[0] for _ in range(50)}
    assert len(keys) == 50
    assert all(key.startswith("sie_") and len(key) == 4 + 43 for key in keys)


@pytest.mark.parametrize("wrong", ["", "sie_", "x", "ключ", "\udcff", "a" * 100_000])
def test_what_is_no_key_is_not_found(tmp_path: Path, wrong: str) -> None:
    """Whatever a header may hold."""
    key, line = make_key("a")
    write(tmp_path / "keys", line)
    keys = Keys(tmp_path / "keys")
    assert keys.find(wrong) is None
    assert keys.find(key + " ") is None
    assert keys.find(line.digest.hex()) is None


def test_a_line_may_make_its_key_an_admin(tmp_path: Path) -> None:
    """By a third field."""
    admin, admin_line = make_key("root", is_admin=True)
    plain, plain_line = make_key("app")
    write(tmp_path / "keys", admin_line, plain_line)
    keys = Keys(tmp_path / "keys")
    found = [keys.find(admin), keys.find(plain)]
    assert [key and key.is_admin for key in found] == [True, False]


HASH = "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        "sie_secret-pasted-by-mistake",
        "name:sie_secret-pasted-by-mistake",
        f":{HASH}",
        f"two words:{HASH}",
        f"name:{HASH[1:]}",
        f"name:{HASH}:root",
        f"name:{HASH}:admin:admin",
    ],
)
def test_a_wrong_line_is_named_by_its_number_only(line: str) -> None:
    """What stands in it may be a key."""
    with pytest.raises(InvalidRequestError, match="line 2 of keys is not name:sha256-hex") as error:
        read_keys(f"# first\n{line}\n", "keys")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("second", [f"a:{'1' * 64}", f"b:{HASH}"])
def test_a_name_and_a_key_stand_once(second: str) -> None:
    """So that a line that was taken out is out."""
    with pytest.raises(InvalidRequestError, match="line 2 of keys has the name or the key"):
        read_keys(f"a:{HASH}\n{second}\n", "keys")


@pytest.mark.parametrize("name", ["", "two words", "-a", "a:b", "a\nb", "a" * 65])
def test_a_name_is_one_word(name: str) -> None:
    """It stands in logs, and before a colon."""
    with pytest.raises(InvalidRequestError, match="a key's name must be"):
        make_key(name)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Within a second, so that a revoked key is out."""
    path, clock = tmp_path / "keys", Clock()
    old, old_line = make_key("old")
    new, new_line = make_key("new")
    write(path, old_line)
    keys = Keys(path, clock=clock)
    write(path, new_line)
    os.utime(path, ns=(1, 1))
    assert keys.find(old) == old_line  # too soon to look
    clock.now += 1
    assert keys.find(old) is None
    assert keys.find(new) == new_line


def test_reload_reads_a_file_that_looks_the_same(tmp_path: Path) -> None:
    """SIGHUP does it; some file systems keep times by the second."""
    path, clock = tmp_path / "keys", Clock()
    old, old_line = make_key("a")
    new, new_line = make_key("b")
    write(path, old_line)
    stamp = path.stat()
    keys = Keys(path, clock=clock)
    path.write_text(f"{new_line}\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    keys.reload()
    assert keys.find(old) is None
    assert keys.find(new) == new_line


@pytest.mark.parametrize("change", ["spoil", "remove"])
def test_a_file_that_breaks_leaves_the_keys_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """And says so once; when it is whole again, it counts again."""
    path, clock = tmp_path / "keys", Clock()
    key, line = make_key("a")
    write(path, line)
    keys = Keys(path, clock=clock)
    if change == "spoil":
        write(path, "sie_oops")
    else:
        path.unlink()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now += 1
            assert keys.find(key) == line
    assert len(caplog.records) == 1
    assert "what was read before stays (keys: 1)" in caplog.text
    assert "oops" not in caplog.text
    write(path, "# nobody")
    clock.now += 1
    assert keys.find(key) is None


def test_a_missing_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Or a typing error would leave the server open."""
    with pytest.raises(InvalidRequestError, match="keys cannot be read: No such file"):
        Keys(tmp_path / "keys")


@pytest.mark.parametrize(("mode", "is_loose"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_others_may_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_loose: bool
) -> None:
    """The owner's group may: that is how a service is given its file."""
    write(tmp_path / "keys", make_key("a")[1])
    (tmp_path / "keys").chmod(mode)
    Keys(tmp_path / "keys")
    assert ("can be read or written by others" in caplog.text) is is_loose


def test_a_repr_and_a_log_hold_no_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor, of course, a key."""
    key, line = make_key("a")
    write(tmp_path / "keys", line)
    with caplog.at_level(logging.DEBUG):
        keys = Keys(tmp_path / "keys")
        keys.find(key)
    for text in (repr(keys), caplog.text):
        assert key not in text
        assert line.digest.hex() not in text
