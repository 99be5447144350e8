# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whenever a host stops, what a move has made can be told from what others have: it goes, and nothing else does."""

from __future__ import annotations

import errno
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import arriving, disks, files

MOVE = "m1"


class Killed(BaseException):
    """The process ends here."""


def make(path: Path) -> Path:
    beside = Path(arriving.beside(MOVE, str(path)))
    beside.write_bytes(b"ours")
    return beside


def come_and_go(path: Path) -> None:
    arriving.publish(MOVE, str(path))
    arriving.remove(MOVE, str(path))


def names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


def test_a_file_has_two_names_until_the_move_is_over(tmp_path: Path) -> None:
    path = tmp_path / "vda.raw"
    make(path)
    assert not arriving.is_of(MOVE, str(path))
    arriving.check_new(MOVE, str(path))
    arriving.publish(MOVE, str(path))
    assert arriving.is_of(MOVE, str(path))
    assert not arriving.is_of("m2", str(path))
    with pytest.raises(PeerError, match="has come already"):
        arriving.check_new(MOVE, str(path))
    arriving.keep(MOVE, str(path))
    arriving.remove(MOVE, str(path))
    assert path.read_bytes() == b"ours"
    assert names(tmp_path) == ["vda.raw"]


@pytest.mark.parametrize("other", [False, True])
def test_what_is_there_is_neither_replaced_nor_removed(tmp_path: Path, other: bool) -> None:
    """Be it that it was put in the place of what the move had made."""
    path = tmp_path / "vda.raw"
    make(path)
    if other:
        arriving.publish(MOVE, str(path))
        path.unlink()
    path.write_bytes(b"precious")
    with pytest.raises(Refused, match="is not overwritten"):
        arriving.publish(MOVE, str(path))
    arriving.remove(MOVE, str(path))
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == ["vda.raw"]


@pytest.mark.parametrize("steps", range(8))
def test_a_kill_at_any_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Of what is made, and of what is removed; the next run removes it."""
    path, left = tmp_path / "vda.raw", [steps]
    beside = make(path)
    # Who made it was killed as well.
    for unfinished in (disks.temporary(str(beside)), f"{beside}.new"):
        Path(unfinished).write_bytes(b"half")

    def dies(call: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def work(*args: t.Any) -> t.Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return call(*args)

        return work

    with monkeypatch.context() as patch:
        for name in ("link", "unlink", "fsync"):
            patch.setattr(os, name, dies(getattr(os, name)))
        with pytest.raises(Killed):
            come_and_go(path)
    arriving.remove(MOVE, str(path))
    assert names(tmp_path) == []


def test_the_order_in_which_it_is_made_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, too, nothing has the path alone that could not be told from another's."""
    path, beside = tmp_path / "vda.raw", make(tmp_path / "vda.raw")
    done: list[tuple[str, str]] = []

    def noted(name: str) -> t.Callable[..., None]:
        call = getattr(os, name)

        def work(*args: str) -> None:
            done.append((name, args[-1]))
            call(*args)

        return work

    for name in ("link", "unlink"):
        monkeypatch.setattr(os, name, noted(name))
    monkeypatch.setattr(files, "sync_dir", lambda directory: done.append(("sync", directory)))
    come_and_go(path)
    sync, alone = ("sync", str(tmp_path)), ("unlink", str(beside))
    assert [one for one in done if one[1] in (str(path), str(tmp_path), str(beside))] == [
        ("link", str(path)), sync, ("unlink", str(path)), sync, alone, sync,
    ]  # fmt: skip
    make(path)
    done.clear()
    arriving.keep(MOVE, str(path))
    assert done == [alone, sync]


@pytest.mark.parametrize("how", [arriving.publish, arriving.check_publish])
@pytest.mark.parametrize(
    ("number", "said", "hint"),
    [
        (errno.EPERM, "has no hard links", "Have the disk on another one"),
        (errno.ENOTSUP, "has no hard links", "Have the disk on another one"),
        (errno.ENOSPC, "No space left on device", "Make room"),
        (errno.EIO, "Input/output error", ""),
    ],
)
def test_why_a_file_cannot_get_its_name_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: t.Callable[[str, str], None],
    number: int,
    said: str,
    hint: str,
) -> None:
    def link(made: str, path: str) -> None:
        raise OSError(number, os.strerror(number), made, None, path)

    monkeypatch.setattr(os, "link", link)
    make(tmp_path / "vda.raw")
    with pytest.raises(HostError, match=said) as caught:
        how(MOVE, str(tmp_path / "vda.raw"))
    assert str(tmp_path) in caught.value.message
    assert (hint in caught.value.hint) if hint else not caught.value.hint


def test_whether_a_file_can_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    beside = make(tmp_path / "vda.raw")
    for _time in range(2):
        arriving.check_publish(MOVE, str(tmp_path / "vda.raw"))
    assert names(tmp_path) == [beside.name]


def test_a_path_is_claimed_by_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called. A move from this host makes nothing here."""
    for name in ("WORKLOADS", "RUN"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to("pool")
    files.write_json(paths.journal_file("a"), {"name": "a", "role": "source", "own": [str(tmp_path / "pool/x")]})
    for name in ("b", "b"):
        arriving.claim({"name": name, "role": "target"}, [str(tmp_path / "pool/x")])
    journal: dict[str, t.Any] = {"name": "c", "role": "target"}
    with pytest.raises(Refused, match="a file of b"):
        arriving.claim(journal, [str(tmp_path / "pool/y"), str(tmp_path / "link/x")])
    assert journal == {"name": "c", "role": "target"}
    assert files.read_json(paths.journal_file("c")) is None
    arriving.claim(journal, [str(tmp_path / "pool/y")])
    assert (files.read_json(paths.journal_file("c")) or {})["own"] == [str(tmp_path / "pool/y")]
