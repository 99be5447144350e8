# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates that are built of packages: with the real mke2fs and debugfs, and a stand-in for what unpacks packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CommandError,
    HostError,
    InputError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.mmdebstrap import Recipe
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    containers,
    disks,
    template_building,
    template_making,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._image import bootable
from ansible_collections.cnvm.platform.tests.support.images import MIB

from .fake_qemu import Qemu

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "debugfs", "e2fsck"))), reason="e2fsprogs are not here"
)


class Debian:
    """Unpacks a few files in place of packages. ``says``: how it fails. Keeps the raw disk."""

    def __init__(self, place: Path) -> None:
        self.qemu = Qemu()
        self.place = place
        self.inside: list[str] = []
        self.says = ""
        self.kernel = True
        self.unpacked = 0

    def __call__(self, argv: t.Sequence[str], *, check: bool = True, **more: t.Any) -> CommandResult:
        words = list(argv)
        if "mmdebstrap" in words:
            result = self._unpack(words[-1])
        elif words[0] == "chroot":
            result = self._run_inside(words)
        elif "qemu-img" in words:
            if "convert" in words:
                (self.place / "raw").unlink(missing_ok=True)
                os.link(words[-2], self.place / "raw")
            return self.qemu(argv, check=check)
        else:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            result = CommandResult(tuple(argv), done.returncode, done.stdout, done.stderr)
        return checked(result) if check else result

    def _unpack(self, root: str) -> CommandResult:
        self.unpacked += 1
        if self.says:
            return CommandResult(("mmdebstrap",), 1, stderr=self.says)
        for directory in ("dev/pts", "etc/ssh", "boot", "usr/bin", "lib/systemd/system"):
            os.makedirs(f"{root}/{directory}")
        for name in ("dev/null", "etc/passwd", "etc/ssh/ssh_host_rsa_key", "lib/systemd/system/ssh.service"):
            Path(root, name).write_text("x")
        Path(root, "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        Path(root, "usr/bin/large").write_bytes(b"x" * 8 * MIB)
        for link in ("vmlinuz", "initrd.img") if self.kernel else ("vmlinuz",):
            Path(root, f"boot/{link}-6.12").write_text("x")
            Path(root, link).symlink_to(f"boot/{link}-6.12")
        return CommandResult(("mmdebstrap",), 0)

    def _run_inside(self, words: list[str]) -> CommandResult:
        root, script = words[1], words[-1]
        self.inside.append(script)
        if script.startswith("grub-mkimage"):
            home = Path(root + bootable.GRUB)
            home.mkdir(parents=True)
            (home / "boot.img").write_bytes(b"boot" + bytes(506) + b"\x55\xaa")
            (home / "core.img").write_bytes(b"core" * 8000)
        return CommandResult(tuple(words), int(script == "false"), stderr="what went wrong\nand more")


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    for name in ("WORKLOADS", "KEPT_DISKS", "RUN", "TEMPLATES"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "mmdebstrap" else found(name))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host1", "6.12", "#1", "x86_64")))

    def write_inside(root: str, wanted: t.Sequence[tuple[str, str, int, int, int]], what: str) -> None:
        for path, text, _mode, _uid, _gid in wanted:
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            if not path.endswith("/"):
                Path(root + path).write_text(text)

    # It changes its root, which only root may.
    monkeypatch.setattr(containers, "write_inside", write_inside)
    return Debian(tmp_path)


def bring(debian: Debian, **values: t.Any) -> dict[str, t.Any]:
    check_mode = bool(values.pop("check_mode", False))
    wanted = {"name": "debian", "build": {"suite": "trixie"}, "size": "512M", **values}
    return template_making.bring_to(Host(run=debian), wanted, check_mode=check_mode)


def test_a_disk_is_built_and_has_no_identity(debian: Debian, tmp_path: Path) -> None:
    made = bring(debian, build={"suite": "trixie", "customize": ["touch /srv/mine"]}, size=None)
    assert made["actions"] == ["make", "name"]
    assert "/etc/ssh/ssh_host_rsa_key" in made["reset"]
    assert made["template"]["origin"] == "built of trixie"
    assert made["template"]["virtual_bytes"] == bootable.DEFAULT_BYTES
    assert debian.inside == ["touch /srv/mine", *bootable.FINISH]
    raw = tmp_path / "raw"
    with disks.File(str(raw)) as image:
        assert image.read(0, 4) == b"boot"
        assert image.read(512, 8) == b"corecore"
    target = f"{raw}?offset={bootable.START}"

    def ask(request: str) -> str:
        return debian(["debugfs", "-R", request, target]).stdout

    fstab = ask("cat /etc/fstab")
    assert fstab.split()[0].lower() in ask("cat /boot/grub/grub.cfg").lower()
    assert fstab.split("=")[1].split()[0] in ask("stats").lower()
    assert ask("cat /etc/machine-id") == ""
    assert "null" not in ask("ls -p /dev")
    assert debian(["e2fsck", "-fn", target], check=False).rc == 0
    # Nothing is left of the making.
    assert os.listdir(f"{paths.TEMPLATES}/building") == []


def test_it_is_built_in_its_place(debian: Debian, tmp_path: Path) -> None:
    """And nowhere else: the host has files of the names that are looked for in the image."""
    made = template_building.build(Host(run=debian), Recipe("trixie"), 512 * MIB, str(tmp_path))
    assert made == f"{tmp_path}/built"
    assert os.path.getsize(made) == 512 * MIB


def test_a_second_run_unpacks_nothing(debian: Debian) -> None:
    first = bring(debian)["template"]
    assert not bring(debian)["changed"]
    assert not bring(debian, check_mode=True)["changed"]
    assert debian.unpacked == 1
    other = {"suite": "trixie", "packages": ["nginx"]}
    assert bring(debian, build=other, check_mode=True)["actions"] == ["make", "name"]
    assert debian.unpacked == 1
    assert bring(debian, refresh=True)["template"]["made_of"] == first["made_of"]
    assert bring(debian, size="600M")["template"]["virtual_bytes"] == 600 * MIB
    assert debian.unpacked == 3


def test_what_fails_leaves_nothing_and_the_old_one(debian: Debian) -> None:
    before = bring(debian)["template"]
    debian.says = "E: Unable to locate package x\nE: mmdebstrap failed to run\n"
    with pytest.raises(InputError, match=r"build\.packages: Unable to locate package x"):
        bring(debian, build={"suite": "trixie", "packages": ["x"]})
    debian.says, debian.kernel = "", False
    with pytest.raises(HostError, match=r"build\.packages: .* no /initrd.img"):
        bring(debian, refresh=True)
    debian.kernel = True
    with pytest.raises(CommandError, match=r"build\.customize: 'false' ended with code 1: what went wrong"):
        bring(debian, build={"suite": "trixie", "customize": ["false"]})
    assert os.listdir(f"{paths.TEMPLATES}/building") == []
    assert bring(debian)["template"] == before


def test_a_size_that_is_too_small(debian: Debian) -> None:
    with pytest.raises(InputError, match="size"):
        bring(debian, size="100M")
    assert debian.unpacked == 0
    with pytest.raises(InputError, match=r"size: .* too few"):
        template_building.build(Host(run=debian), Recipe("trixie"), 100 * MIB, str(debian.place))
    assert debian.unpacked == 1


def test_hosts_that_cannot_build(debian: Debian, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which
    for program, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "which", lambda name, gone=program: None if name == gone else found(name))
            with pytest.raises(HostError, match=f"Install the package {package}"):
                bring(debian)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host1", "6.12", "#1", "aarch64")))
    with pytest.raises(Refused, match="this host is aarch64"):
        bring(debian)
    assert debian.unpacked == 0
