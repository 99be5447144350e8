# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be seen without root; the rest is the molecule scenario local_hosts, on real hosts."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import local_hosts as lh
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import nspawn
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

MADE = lh.recipe("trixie", "bare", (), (6, 12), "x86_64")


class Builder:
    """Stands in for mmdebstrap: makes the directory that it is told to, and fails when asked."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.builds: list[str] = []

    def __call__(self, argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        if "mmdebstrap" not in argv:
            return CommandResult(tuple(argv), 0)
        target = argv[-2]
        self.builds.append(target)
        # mmdebstrap refuses a directory with something in it.
        assert not os.path.exists(target)
        os.makedirs(f"{target}/etc")
        if self.fails:
            return CommandResult(tuple(argv), 1, "", "E: no network\nE: failed\n")
        Path(target, "etc/cnvm-local-base").write_text("from forky: criu\n", encoding="utf-8")
        return CommandResult(tuple(argv), 0)


def bases(tmp_path: Path, builder: Builder) -> nspawn.Bases:
    return nspawn.Bases(Host(run=builder), str(tmp_path / "cache"))


def test_base_is_built_once(tmp_path: Path) -> None:
    builder = Builder()
    cache = bases(tmp_path, builder)
    assert cache.make(MADE)
    assert not cache.make(MADE)
    assert len(builder.builds) == 1
    assert cache.has(MADE.digest())
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert left == [MADE.digest(), f"{MADE.digest()}.json", f"{MADE.digest()}.lock"]


@pytest.mark.parametrize("remains", [".new/etc", "/etc"])
def test_base_that_was_cut_off_is_built_anew(tmp_path: Path, remains: str) -> None:
    left = Path(f"{tmp_path}/cache/{MADE.digest()}{remains}")
    left.mkdir(parents=True)
    (left / "half").write_text("", encoding="utf-8")
    builder = Builder()
    cache = bases(tmp_path, builder)
    assert not cache.has(MADE.digest())
    assert cache.make(MADE)
    assert not Path(cache.path(MADE.digest()), "etc/half").exists()


def test_base_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    cache = bases(tmp_path, Builder(fails=True))
    with pytest.raises(HostError, match=r"The base of Debian trixie, bare could not be built from .*no network"):
        cache.make(MADE)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{MADE.digest()}.lock"]


def test_base_is_not_built_twice_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "x.lock")
    with (
        nspawn.waiting_lock(path, "The base", 1),
        pytest.raises(Refused, match=r"The base: another run has been at work on it for 0 s"),
        nspawn.waiting_lock(path, "The base", 0.3),
    ):
        pass
    with nspawn.waiting_lock(path, "The base", 0.3):
        pass


def test_base_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nspawn, "_BASE_BYTES", 2**60)
    with pytest.raises(HostError, match=r"MiB left; a base needs"):
        bases(tmp_path, Builder()).make(MADE)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path=None: None if program in ("tc", "nft") else "/x")
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert nspawn.missing_packages() == ["debian-archive-keyring", "iproute2", "nftables"]


def test_user_dirs_belong_to_who_owns_what_is_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owned.update({str(path): (uid, gid)}))
    nspawn.make_user_dirs(str(tmp_path / "a/b"))
    above = tmp_path.stat()
    assert owned == {str(tmp_path / name): (above.st_uid, above.st_gid) for name in ("a", "a/b")}
    nspawn.make_user_dirs(str(tmp_path / "a/b"))


class Links:
    """Stands in for iproute2 on a machine that has the bridges of ``macs``."""

    def __init__(self, **macs: str) -> None:
        self.macs = macs
        self.commands: list[str] = []

    def __call__(self, argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        self.commands.append(" ".join(argv))
        if argv[:5] == ["ip", "-json", "link", "show", "dev"]:
            mac = self.macs.get(argv[5])
            return CommandResult(tuple(argv), int(not mac), json.dumps([{"ifname": argv[5], "address": mac}]))
        return CommandResult(tuple(argv), 0, "[]" if "-json" in argv else "")


@pytest.fixture
def set_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., nspawn.LocalHosts]:
    """The set "mine", to be on the bridge br0."""
    monkeypatch.setattr(nspawn, "RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(lh, "cgroup2_mount", lambda mountinfo: "/sys/fs/cgroup")
    settings = nspawn.Settings(
        set_name="mine",
        directory=str(tmp_path / "hosts"),
        cache_dir=str(tmp_path / "cache"),
        subnet=None,
        bridge="br0",
        internet=False,
        suite="trixie",
        flavour="bare",
        packages=(),
        ssh_key="",
        timeout_s=5,
    )
    return lambda links, **more: nspawn.LocalHosts(Host(run=links), dataclasses.replace(settings, **more))


SUBNET = ipaddress.IPv4Network("10.99.0.0/24")


def test_bridge_of_somebody_else_is_refused_and_stays(set_on: t.Callable[..., nspawn.LocalHosts]) -> None:
    links = Links(br0="52:54:00:00:00:01")
    hosts = set_on(links)
    with pytest.raises(Refused, match=r"bridge: this machine has an interface br0 that is not of the set mine"):
        hosts.network_state(SUBNET)
    hosts.remove_network()
    assert "ip link del dev br0" not in links.commands


def test_bridge_of_the_set_goes_with_it(set_on: t.Callable[..., nspawn.LocalHosts]) -> None:
    links = Links(br0=lh.bridge_mac("mine"))
    hosts = set_on(links)
    hosts.network_state(SUBNET)
    hosts.remove_network()
    assert "ip link del dev br0" in links.commands
    links.macs.clear()
    hosts.network_state(SUBNET)


def test_a_set_is_found_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_on: t.Callable[..., nspawn.LocalHosts]
) -> None:
    """In another directory there would be none of its hosts, and those that run would go on."""
    monkeypatch.setattr(lh, "file_system_of", lambda path, mountinfo: "ext4")
    links = Links()
    set_on(links).ensure_home(SUBNET)
    Path(set_on(links).own("host1")).mkdir()
    assert set_on(links, directory=None).directories() == ["host1"]
    assert set_on(links, set_name="other", directory=None).directory == nspawn.DEFAULT_DIR
    with pytest.raises(Refused, match=rf"directory: .* mine are in {tmp_path}/hosts, not in /srv/x\."):
        set_on(links, directory="/srv/x")
    set_on(links, directory=None).remove_network()
    assert set_on(links, directory="/srv/x").directory == "/srv/x"


def test_a_set_whose_directory_is_gone_may_be_made_anywhere(
    monkeypatch: pytest.MonkeyPatch, set_on: t.Callable[..., nspawn.LocalHosts]
) -> None:
    monkeypatch.setattr(lh, "file_system_of", lambda path, mountinfo: "ext4")
    hosts = set_on(Links())
    hosts.ensure_home(SUBNET)
    shutil.rmtree(hosts.home)
    assert set_on(Links(), directory="/srv/x").directory == "/srv/x"
