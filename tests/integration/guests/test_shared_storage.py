# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest with a disk on storage that both hosts have, and one that is its host's own.

The storage is GlusterFS: one brick on the third host, mounted by both.
"""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.guest import Guest, sound
from ansible_collections.cnvm.platform.tests.integration.hosts import (
    CONT,
    MOVER,
    SERVE,
    STOP,
    Fleet,
    Host,
    Move,
    call,
    eventually,
    kill,
)

NAME = "shared"
PLACE = "/srv/shared"
DISK = f"{PLACE}/{NAME}-vda.qcow2"
# A brick needs the attributes of a plain file system, which this is.
BRICK = "/var/lib/libvirt/images/brick"
MORE = {"disks": [{"pool": "shared", "template": "base", "size_mib": 32}, {"size_mib": 8, "format": "raw"}]}
FORGET = ("tcp-user-timeout", "keepalive-time", "keepalive-interval", "keepalive-count")
# A host that is a container has no device of its own for it.
FUSE = "[ -e /dev/fuse ] || mknod /dev/fuse c 10 229"
UNMOUNT = f"! mountpoint -q {PLACE} || umount -l {PLACE}"


@contextlib.contextmanager
def gluster(server: Host, hosts: t.Sequence[Host]) -> t.Iterator[None]:
    """Storage that these hosts have, as a pool."""

    def clear() -> None:
        for host in hosts:
            # Of what an earlier run has left some may be gone.
            host.sh(f"set +e; virsh pool-destroy shared; virsh pool-undefine shared; {UNMOUNT}")
        gone = "set +e; for word in 'stop shared force' 'delete shared'; do gluster --mode=script volume $word; done"
        server.sh(f"{gone}; rm -rf {BRICK}")

    server.run("systemctl", "start", "glusterd")
    clear()
    # A host that has lost power holds no lock for longer than this.
    options = "".join(f" gluster volume set shared server.{name} 2;" for name in FORGET)
    server.sh(
        f"mkdir {BRICK}; gluster --mode=script volume create shared {server.address}:{BRICK} force;{options}"
        " gluster volume start shared"
    )
    pool = {"name": "shared", "type": "netfs", "format": "glusterfs", "host": server.address, "export": "/shared"}
    for host in hosts:
        host.sh(FUSE)
        made, again = [call(host, "pool", pools=[{**pool, "path": PLACE}]) for dummy in range(2)]
        assert made["pools"][0]["actions"] == ["define", "start", "enable"]
        assert not again["changed"]
    try:
        yield
    finally:
        clear()
        server.run("systemctl", "stop", "glusterd")


@pytest.fixture(scope="module")
def deployed_shared(fleet: Fleet) -> t.Iterator[Guest]:
    """The guest, on hosts that both have the storage."""
    guest = Guest(fleet, NAME, "10.100.101.123", more=MORE, files=("disks/vdb.raw",), disk=DISK)
    with gluster(fleet["host3"], guest.movers):
        guest.deploy()
        yield guest
        guest.remove()
        for host in guest.movers:
            assert host.sh(f"ls -A {PLACE}") == ""


@pytest.fixture
def shared(deployed_shared: Guest) -> t.Iterator[Guest]:
    """The guest as a test finds it."""
    deployed_shared.watch()
    yield deployed_shared
    deployed_shared.dismiss()


def disk(host: Host) -> str:
    """What there is in the storage: the disk alone, and whose it is."""
    return host.sh(f"cd {PLACE}; stat -c '%n %i %U' $(ls -A)")


def test_it_stays_where_it_is(shared: Guest) -> None:
    """There and back; the other disk goes with it."""
    home = shared.source()
    away = shared.fleet.other(home)
    had = disk(home)
    assert had.split()[::2] == [DISK.rpartition("/")[2], "libvirt-qemu"]
    move = shared.start()
    result = move.result()
    assert result["outcome"] == "target", result
    reasons = result["plan"]["reasons"]
    assert "vdb is copied" in reasons, reasons
    assert "vda is on storage that both hosts have, and is not copied" in reasons, reasons
    assert result["libvirt"]["disk_bytes"] == 8 * 2**20
    shared.check(away, [home, away])
    assert disk(away) == disk(home) == had
    shared.move()
    shared.check(home, [home, away, home])
    assert disk(away) == disk(home) == had


def test_a_copy_that_is_given_up_leaves_it(shared: Guest) -> None:
    """Before the target may have it: when the move has begun, and when the guest stands still."""
    home = shared.source()
    had = disk(home)
    for state in ("begun", "frozen"):
        move = shared.stopped(state)
        kill(move.source, MOVER)
        shared.check(home, [home])
        assert disk(home) == disk(move.target) == had


def test_what_stood_still_at_the_source_leaves_it(shared: Guest) -> None:
    """It is ended by somebody else than libvirt's client, while the guest uses the disk at the target."""
    home = shared.source()
    had = disk(home)
    move = shared.stopped("committed")
    kill(move.source, MOVER)
    shared.check(move.target, [home, move.target])
    assert disk(home) == disk(move.target) == had


def test_off(shared: Guest) -> None:
    """What is not copied is the same afterwards."""
    home = shared.source()
    away = shared.fleet.other(home)
    home.run("virsh", "destroy", NAME)
    sound(home, DISK)
    sums = home.sh(f"sha256sum {PLACE}/*")
    result = shared.start().result()
    assert result["outcome"] == "target", result
    assert result["timeline"]["bytes"]["disks"] <= 8 * 2**20 + 2**16, result["timeline"]
    shared.settle(away, running=False)
    assert home.sh(f"sha256sum {PLACE}/*") == away.sh(f"sha256sum {PLACE}/*") == sums
    shared.starts_on(away)


def test_a_host_without_it(shared: Guest) -> None:
    """A directory of the same path is not enough."""
    home = shared.source()
    away = shared.fleet.other(home)
    away.sh(f"umount -l {PLACE}; cp /etc/hostname {DISK}")
    try:
        result = shared.start().result()
    finally:
        away.sh(f"rm {DISK}; mount -t glusterfs {shared.fleet['host3'].address}:/shared {PLACE}")
    assert (result["outcome"], result["failed_phase"]) == ("source", "preflight"), result
    assert f"does not have {DISK}, which is on shared storage" in result["error"], result
    shared.check(home, [home])


# --- when the target may have written to it ---


def comes_back(shared: Guest, host: Host) -> None:
    """A host that was off, with the storage."""
    shared.fleet.change(**{host.name: {"state": "present"}})
    host.sh(f"{FUSE}; mountpoint -q {PLACE} || virsh pool-start shared")
    shared.listen(host)


def both_had_it(shared: Guest) -> Move:
    """A move whose guest counts on the target, which has not said so, and stands still at the source."""
    move = shared.arrived()
    # Told to let it run, libvirt waits for its QEMU until nobody can say that it runs.
    kill(move.target, shared.emulator, STOP)
    kill(move.source, MOVER, CONT)
    kill(move.target, SERVE, CONT)
    record = f"cat {shared.home}/owner.json 2>/dev/null || true"
    eventually("it is the target's", lambda: f'"{move.target.name}"' in move.target.sh(record))
    kill(move.target, SERVE, STOP)
    kill(move.target, shared.emulator, CONT)
    move.target.run("virsh", "resume", NAME, check=False)
    shared.counts_on(move.target)
    assert shared.look(move.source)["state"] == "paused"
    return move


def test_copy_killed_when_it_has_run(shared: Guest) -> None:
    """What stands still at the source is older than the disk: it never goes on there, but is started anew."""
    move = both_had_it(shared)
    kill(move.target, shared.emulator)
    eventually("libvirt knows that it has died", lambda: shared.look(move.target)["state"] == "shut off")
    kill(move.target, SERVE, CONT)
    result = move.result()
    assert result["outcome"] == "source", result
    assert "started anew" in result["lost"], result
    shared.begins_anew(move.source, [move.source, move.target, move.source])


def test_target_is_dead_for_good_when_it_has_run(shared: Guest) -> None:
    """The same by the user's word. The dead may come back, and starts nothing."""
    move = both_had_it(shared)
    shared.fleet.power_cut(move.target)
    result = move.result()
    assert result["outcome"] == "waiting", result
    assert shared.look(move.source)["state"] == "paused"
    (result,) = move.source.helper("recover", "--fenced", move.target.name, NAME)["results"]
    assert (result["outcome"], "started anew" in result["message"]) == ("source", True), result
    comes_back(shared, move.target)
    shared.begins_anew(move.source, [move.source, move.target, move.source])


def test_source_loses_power_when_it_is_committed(shared: Guest) -> None:
    """The guest goes on at the target with its memory, and what comes back leaves the disk alone."""
    move = shared.stopped("committed")
    shared.fleet.power_cut(move.source)
    (result,) = move.target.helper("recover", "--fenced", move.source.name, NAME)["results"]
    assert result["outcome"] == "target", result
    had = disk(move.target)
    comes_back(shared, move.source)
    shared.check(move.target, [move.source, move.target])
    assert disk(move.target) == disk(move.source) == had
