# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes with a guest besides its first disk: its screen, its firmware's variables, its seed, a disk in a pool."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.guest import Guest
from ansible_collections.cnvm.platform.tests.integration.hosts import MOVER, Fleet, Host, kill

NAME = "parts"
POOL = "/srv/disks"
NVRAM = f"/var/lib/libvirt/qemu/nvram/{NAME}_VARS.fd"
MORE = {
    "memory_mib": 160,
    "firmware": "uefi",
    "cloud_init": {"user_data": {"hostname": NAME}},
    "disks": [
        {"template": "base", "size_mib": 32},
        {"pool": "disks", "size_mib": 8, "format": "raw", "bus": "scsi", "serial": "second"},
        {"template": "base", "read_only": True},
    ],
    "graphics": {"type": "vnc"},
    "agent": True,
    "description": "A & B <c> \"d\" 'e' ]]>",
    "tags": {"group": "<&>"},
}


@pytest.fixture(scope="module")
def deployed_parts(fleet: Fleet) -> t.Iterator[Guest]:
    """A guest that has all of that, on hosts that both have the pool."""
    guest = Guest(fleet, NAME, "10.100.101.122", more=MORE, files=("disks/vda.qcow2", "disks/vdb.qcow2", "seed.iso"))
    for host in guest.movers:
        host.sh(
            f"mkdir -p {POOL}; virsh pool-info disks >/dev/null 2>&1 || "
            f"{{ virsh pool-define-as disks dir --target {POOL}; virsh pool-start disks; }}"
        )
    guest.deploy()
    yield guest
    for host in guest.movers:
        host.sh("virsh pool-destroy disks; virsh pool-undefine disks")
    # Its disk is found without the pool.
    guest.remove()
    for host in guest.movers:
        assert beside(host) == []


@pytest.fixture
def parts(deployed_parts: Guest) -> t.Iterator[Guest]:
    """The guest as a test finds it."""
    deployed_parts.watch()
    yield deployed_parts
    deployed_parts.dismiss()


def beside(host: Host) -> list[str]:
    """What a host has of it outside its directory."""
    return host.sh(f"ls -d {POOL}/* {POOL}/.cnvm-* {NVRAM} 2>/dev/null || true").split()


def test_all_goes_with_it(parts: Guest) -> None:
    """Nothing of it stays behind; and back, where its disk had been."""
    home = parts.source()
    away = parts.fleet.other(home)
    had = beside(home)
    assert len(had) == 2
    assert beside(away) == []
    parts.move()
    parts.check(away, [home, away])
    assert (beside(home), beside(away)) == ([], had)
    parts.move()
    parts.check(home, [home, away, home])
    assert (beside(home), beside(away)) == (had, [])


@pytest.mark.parametrize("phase", ["prepare", "memory", "frozen"])
def test_nothing_stays_of_a_move_that_failed(parts: Guest, phase: str) -> None:
    home = parts.source()
    had = beside(home)
    move = parts.stopped(phase)
    kill(move.source, MOVER)
    parts.check(home, [home])
    assert (beside(home), beside(move.target)) == (had, [])


def test_off(parts: Guest) -> None:
    """The variables of its firmware are a file then, and go as they are."""
    home = parts.source()
    away = parts.fleet.other(home)
    home.run("virsh", "destroy", NAME)
    had, sums = beside(home), home.sh(f"sha256sum {NVRAM} {POOL}/*")
    assert parts.start().result()["outcome"] == "target"
    parts.settle(away, running=False)
    assert (beside(home), beside(away)) == ([], had)
    assert away.sh(f"sha256sum {NVRAM} {POOL}/*") == sums
    parts.starts_on(away)


def test_without_its_firmware(parts: Guest) -> None:
    """A target where it could not start is told before anything is touched."""
    home = parts.source()
    away = parts.fleet.other(home)
    away.run("mv", "/usr/share/OVMF", "/usr/share/OVMF.gone")
    try:
        planned = home.helper("move", "plan", json.dumps({"guest": NAME, "target": away.name}))["plan"]
    finally:
        away.run("mv", "/usr/share/OVMF.gone", "/usr/share/OVMF")
    assert {one.split(":")[0] for one in planned["blockers"]} == {"firmware"}, planned
    assert not home.helper("move", "plan", json.dumps({"guest": NAME, "target": away.name}))["plan"]["blockers"]


def test_a_disk_is_not_written_over(parts: Guest) -> None:
    """A file in its place on the target is somebody's."""
    home = parts.source()
    away = parts.fleet.other(home)
    path = next(one for one in beside(home) if one.startswith(POOL))
    away.sh(f"echo mine >{path}")
    try:
        result = parts.start().result()
        assert (result["outcome"], result["failed_phase"]) == ("source", "preflight"), result
        assert f"has a file {path} already" in result["error"], result
        assert away.sh(f"cat {path}") == "mine\n"
    finally:
        away.sh(f"rm {path}")
    parts.check(home, [home])
