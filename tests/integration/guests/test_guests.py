# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest moves between hosts while it runs, and its clients stay connected."""

from __future__ import annotations

import contextlib
import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.guest import ADDRESS, LAZY, SLOW, Guest, userfaultfd
from ansible_collections.cnvm.platform.tests.integration.hosts import (
    CONT,
    MOVER,
    Fleet,
    Host,
    call,
    eventually,
    kill,
    playbook,
)

NAMES = ["a/b", "..", "", "a b", "-rf", "x" * 300, "é", "$(reboot)"]
WRONG: list[tuple[dict[str, t.Any], str]] = [
    *(({"guest": name}, "guest") for name in NAMES),
    *(({"target": name}, "target") for name in NAMES),
    ({"guest": "nobody"}, "guest"),
    ({"target": "host9"}, "target"),
    ({"bandwidth_mib_s": "1e3"}, "bandwidth_mib_s"),
    ({"bandwidth_mib_s": -1}, "bandwidth_mib_s"),
    ({"connections": True}, "connections"),
    ({"max_downtime_ms": "1_000"}, "max_downtime_ms"),
    ({"auto_converge": "perhaps"}, "auto_converge"),
    ({"timeout_s": "٣"}, "timeout_s"),
    ({"allow_post_copy": True, "connections": 2}, "allow_post_copy"),
    ({"mode": "post_copy"}, "mode"),
    ({"speed": "high"}, "speed"),
]


def test_there_and_back(guest: Guest) -> None:
    """With its memory, its disk and its client, and that cloud-init is done. The first way also brings the template."""
    home = guest.source()
    away = guest.fleet.other(home)
    waited = [{"name": guest.name, "wait_for": {"cloud_init": True, "timeout_s": 1}}]
    # The words stay here, in the log of this host.
    home.run("sh", "-c", f"echo 'Cloud-init v. 24.4 finished at noon' >>/var/log/cnvm/guests/{guest.name}.log")
    assert not call(home, "guest", guests=waited)["guests"][0]["changed"]
    move = guest.start()
    result = move.result()
    assert result["outcome"] == "target", result
    assert result["libvirt"]["memory_rounds"] >= 1, result
    # What it has written (6 MiB) and its plain disk (4 MiB), not the 8 MiB of its template.
    assert 10 << 20 <= result["timeline"]["bytes"]["disks"] < 12 << 20, result
    guest.check(away, [home, away])
    assert not call(away, "guest", guests=waited)["guests"][0]["changed"]
    assert guest.move() is home
    guest.check(home, [home, away, home])


def test_one_that_does_not_converge(guest: Guest) -> None:
    """Post-copy ends its move: it goes on there with its client before all of its memory is there."""
    home = guest.source()
    away = guest.fleet.other(home)
    with userfaultfd(guest, "1"):
        result = guest.start(**LAZY).result()
        assert (result["outcome"], result["mode"]) == ("target", "post_copy"), result
        assert result["libvirt"]["post_copy_requests"] > 0, result
        assert "drain" in [one["phase"] for one in result["timeline"]["phases"]], result
        guest.check(away, [home, away])


def test_one_that_does_not_converge_without_post_copy(guest: Guest) -> None:
    """It is given up when its time is over, and has been at home all the time."""
    home = guest.source()
    with userfaultfd(guest, "1"):
        result = guest.start(**{**LAZY, "allow_post_copy": False, "timeout_s": 20}).result()
    assert (result["outcome"], result["mode"], result["failed_phase"]) == ("source", "live", "memory"), result
    guest.check(home, [home])


def test_one_that_dirties_more_than_the_link_carries_is_slowed_down(guest: Guest) -> None:
    """Until it converges; here the link is faster by then."""
    home = guest.source()
    move = guest.start(home, **{**SLOW, "auto_converge": True, "max_downtime_ms": 300})
    asked = ("virsh", "domjobinfo", guest.name)
    eventually("it is slowed down", lambda: "Auto converge throttle" in home.run(*asked, check=False).stdout, pause=0.5)
    home.run("virsh", "migrate-setspeed", guest.name, "1000")
    guest.arrives(move)


@pytest.fixture
def another(fleet: Fleet) -> t.Iterator[Guest]:
    """One more guest, on the first host."""
    found = Guest(fleet, "another", "10.100.101.122")
    found.deploy()
    found.watch()
    yield found
    found.dismiss()
    found.remove()


def together(*guests: Guest) -> None:
    """All are on their way at the same time. Each arrives as what it is."""
    # One on a host: it stops all movers there.
    traps = [one.trap(one.source(), "memory") for one in {each.source().name: each for each in guests}.values()]
    moves = [one.start() for one in guests]
    for trap in traps:
        trap.sprung()
    for move in moves:
        kill(move.source, MOVER, CONT, check=False)
    for one, move in zip(guests, moves):
        result = move.result()
        assert result["outcome"] == "target", (one.name, result)
    for one, move in zip(guests, moves):
        one.check(move.target, [move.source, move.target])
        one.watch()


def test_two_at_once(guest: Guest, another: Guest) -> None:
    """They leave a host together, and, with one of them back, change places."""
    if guest.source() is not another.source():
        guest.move()
        guest.watch()
    together(guest, another)
    guest.move()
    guest.watch()
    together(guest, another)


def test_post_copy_is_not_done_without_need(guest: Guest) -> None:
    """One that converges has all of its memory there when it goes on."""
    home = guest.source()
    away = guest.fleet.other(home)
    with userfaultfd(guest, "1"):
        result = guest.start(allow_post_copy=True).result()
    assert (result["outcome"], result["mode"]) == ("target", "live"), result
    assert not result["libvirt"].get("post_copy_requests"), result
    guest.check(away, [home, away])


def test_where_post_copy_cannot_be_done(guest: Guest) -> None:
    """The guest is moved without it, and the plan says so."""
    home = guest.source()
    away = guest.fleet.other(home)
    with userfaultfd(guest, "0"):
        asked = {"guest": guest.name, "target": away.name, "allow_post_copy": True}
        planned = home.helper("move", "plan", json.dumps(asked))["plan"]
        assert "vm.unprivileged_userfaultfd" in str(planned["reasons"]), planned
        assert not planned["blockers"], planned
        result = guest.start(allow_post_copy=True).result()
    assert (result["outcome"], result["mode"]) == ("target", "live"), result
    guest.check(away, [home, away])


def test_by_playbook(guest: Guest) -> None:
    """What a user calls: first what it would do, then it, then nothing."""
    home = guest.source()
    away = guest.fleet.other(home)
    command = ("cnvm.platform.migrate", "-e", f"guest={guest.name}", "-e", f"target={away.name}")
    planned = playbook(*command, "--check")
    assert "vda, vdb are copied" in planned.stdout, planned.stdout
    guest.check(home, [home])
    assert "changed=1" in playbook(*command).stdout
    guest.check(away, [home, away])
    assert "changed=1" not in playbook(*command).stdout
    guest.check(away, [home, away])


def test_stopped(guest: Guest) -> None:
    """Its disks come along, it does not run there either, and starts there when it is told to."""
    home = guest.source()
    away = guest.fleet.other(home)
    home.run("virsh", "destroy", guest.name)
    before = guest.content(home)
    result = guest.start(home).result()
    assert (result["outcome"], result["mode"]) == ("target", "offline"), result
    guest.settle(away, running=False)
    assert guest.content(away) == before
    refused = home.run("cnvm-host", "guest", "may-start", guest.name, check=False)
    assert f"is at {away.name}" in refused.stderr
    guest.starts_on(away)


def test_several_connections(guest: Guest) -> None:
    """What it needs at once for its memory; where it arrives nobody can come but through the tunnel."""
    home = guest.source()
    away = guest.fleet.other(home)
    tunnel = json.loads(away.sh("cat /etc/cnvm/overlay.json"))["self"]["tunnel"]
    move = guest.start(connections=3, bandwidth_mib_s=16)
    places: set[str] = set()
    most = 0
    while (status := move.status())["phase"] != "done" and not status.get("died"):
        seen = guest.look(away)
        places |= {one.rpartition(":")[0] for one in seen["ports"]}
        most = max(most, *(seen["connected"].count(port) for port in seen["ports"]), 0)
    assert status["result"]["outcome"] == "target", status
    assert places == {tunnel}
    assert most > 3
    guest.check(away, [home, away])


@contextlib.contextmanager
def address_taken(host: Host) -> t.Iterator[None]:
    """Somebody on a host has the guest's address on the overlay, for a while."""
    host.sh(
        f"""
        ip netns add intruder; ip link add intruder type veth peer name eth0 netns intruder
        ip link set intruder master cnvm0 up
        ip -n intruder addr add {ADDRESS}/24 dev eth0; ip -n intruder link set eth0 up
        """
    )
    try:
        state = "/sys/class/net/intruder/brport/state"
        eventually("the bridge forwards what it says", lambda: host.run("cat", state).stdout.strip() == "3")
        yield
    finally:
        host.run("ip", "netns", "del", "intruder")


@pytest.mark.parametrize("post_copy", [False, True])
def test_its_address_is_taken_while_it_is_copied(guest: Guest, post_copy: bool) -> None:
    """It goes on at its source. With post-copy that is seen before it can go on nowhere but at the target."""
    home = guest.source()
    with userfaultfd(guest, "1"):
        move = guest.start(home, **LAZY) if post_copy else guest.slowly(home)
        move.wait_phase("memory")
        with address_taken(guest.fleet["host3"]):
            if not post_copy:
                home.run("virsh", "migrate-setspeed", guest.name, "1000")
                home.run("virsh", "migrate-setmaxdowntime", guest.name, "300")
            result = move.result()
    assert result["failed_phase"] == ("memory" if post_copy else "commit"), result
    assert f"address: {ADDRESS} was taken meanwhile" in result["error"], result
    guest.stays_at(home, result, client=False)


def test_its_name_is_taken_after_the_preflight(guest: Guest) -> None:
    """At the target, by a machine of somebody else. libvirt refuses what comes, and the other one is not touched."""
    home = guest.source()
    move = guest.stopped("prepare")
    uuid = "11111111-2222-4333-8444-555555555555"
    move.target.sh(
        f"""
        virsh create /dev/stdin <<END
        <domain type='qemu'><name>{guest.name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>
        <os><type arch='x86_64' machine='q35'>hvm</type></os><devices><memballoon model='none'/></devices></domain>
END
        """
    )
    try:
        kill(home, MOVER, CONT)
        result = move.result()
        assert move.target.run("virsh", "list", "--uuid").stdout.split() == [uuid]
    finally:
        move.target.run("virsh", "destroy", guest.name, check=False)
    guest.stays_at(home, result)


def test_all_that_is_in_the_way_is_told_at_once(guest: Guest) -> None:
    """In check mode, and nothing is touched."""
    home = guest.source()
    away = guest.fleet.other(home)
    described = json.loads(home.sh(f"cat {guest.home}/definition.json"))
    uuid, mac = described["uuid"], described["networks"][0]["mac"]
    away.sh(
        f"""
        define() {{
          virsh define /dev/stdin >/dev/null <<END
          <domain type='qemu'><name>$1</name>$2<memory unit='MiB'>64</memory>
          <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>$3<memballoon model='none'/></devices></domain>
END
        }}
        define {guest.name}
        define thief "<uuid>{uuid}</uuid>" "<interface type='user'><mac address='{mac}'/></interface>"
        mv /var/lib/libvirt/images/vmlinuz /var/tmp/
        """
    )
    command = ("cnvm.platform.migrate", "-e", f"guest={guest.name}", "-e", f"target={away.name}", "--check")
    try:
        with address_taken(away):
            said = playbook(*command, check=False).stdout
    finally:
        away.sh(f"virsh undefine {guest.name}; virsh undefine thief; mv /var/tmp/vmlinuz /var/lib/libvirt/images/")
    for word in ("name:", "uuid:", f"the MAC {mac} is that of thief", "files:", "vmlinuz", "address:"):
        assert word in said, said
    guest.check(home, [home], client=False)
    away.sh("mount -t tmpfs -o size=1m tmpfs /var/lib/cnvm")
    try:
        said = playbook(*command, check=False).stdout
    finally:
        away.sh("umount /var/lib/cnvm")
    assert "space:" in said, said
    guest.check(home, [home], client=False)


def test_all_that_is_in_the_way_of_another_one_is_told_at_once(guest: Guest) -> None:
    """Its folder, its snapshot, and a network and a sound template that the target does not have."""
    home = guest.source()
    away = guest.fleet.other(home)
    base = away.sh("ls /var/lib/cnvm/templates/sha256/*/disk.qcow2").split()[0]
    inner = {"name": "inner", "type": "isolated"}
    many = {
        "name": "many", "memory_mib": 64, "accelerator": "tcg", "state": "stopped", "disks": [{"template": "base"}],
        "networks": [{"source": "inner"}], "shared_folders": [{"source": "/srv", "tag": "srv", "driver": "9p"}],
    }  # fmt: skip
    call(home, "network", networks=[inner])
    try:
        call(home, "guest", guests=[many])
        call(home, "guest_snapshot", guests=["many"], name="before")
        away.sh(f"cp -a {base} /var/tmp/base; dd if=/dev/urandom of={base} bs=4k count=1 seek=9 conv=notrunc")
        command = ("cnvm.platform.migrate", "-e", "guest=many", "-e", f"target={away.name}", "--check")
        said = playbook(*command, check=False).stdout
        call(home, "guest_snapshot", guests=["many"], name="before", state="absent")
        then = playbook(*command, check=False).stdout
    finally:
        away.sh(f"mv -f /var/tmp/base {base}")
        call(home, "guest", guests=[{"name": "many", "state": "absent", "delete_disks": True}])
        call(home, "network", networks=[{**inner, "state": "absent"}])
    for word in (
        "shared_folders: many has the folder srv", "snapshots: many has before",
        f"networks: {away.name} has no network inner",
    ):  # fmt: skip
        assert word in said, said
    assert f"template: {away.name}: " in then, then
    assert f"{base} was changed" in then, then


@pytest.mark.parametrize("missing", ["target", "source"])
def test_a_limit_that_leaves_out_a_host_moves_nothing(guest: Guest, missing: str) -> None:
    home = guest.source()
    away = guest.fleet.other(home)
    limit = home if missing == "target" else away
    command = ("cnvm.platform.migrate", "-e", f"guest={guest.name}", "-e", f"target={away.name}", "--limit", limit.name)
    said = " ".join(playbook(*command, check=False).stdout.split())
    if missing == "target":
        assert f"migrate_target: {away.name} is not in this play. Hosts in it: {home.name}." in said, said
    assert "--limit is set, it must hold the source and the target" in said, said
    said = playbook("cnvm.platform.evacuate", "-e", f"host={home.name}", "--limit", away.name, check=False).stdout
    assert f"evacuate_host: {home.name} is not in this play" in " ".join(said.split()), said
    guest.check(home, [home])


def test_without_libvirt(guest: Guest) -> None:
    """Said in one line, before anything is touched."""
    home = guest.source()
    away = guest.fleet.other(home)
    away.sh("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service")
    try:
        result = guest.start(home).result()
    finally:
        away.sh("systemctl start libvirtd.socket")
    assert (result["outcome"], result["failed_phase"]) == ("source", "preflight"), result
    assert "has no libvirt that answers" in result["error"], result
    assert "systemctl start libvirtd" in result["error"], result
    guest.check(home, [home])


def test_bad_input(guest: Guest) -> None:
    """The helper itself, which trusts nobody."""
    home = guest.source()
    for given, option in WRONG:
        request = {"guest": guest.name, "target": guest.fleet.other(home).name, **given}
        said = home.helper("move", "start", json.dumps(request), check=False)
        assert option in said.get("failed", ""), (given, said)
        assert "Traceback" not in said["failed"]
    guest.check(home, [home])


@pytest.mark.parametrize("word", ["libvirt", "libvirt vm", "libvirt ../x", "libvirt vm vm"])
def test_a_peer_gets_no_way_to_libvirt_without_a_move(guest: Guest, word: str) -> None:
    """What a host's key may ask for."""
    home = guest.source()
    away = guest.fleet.other(home)
    peer = json.loads(home.sh("cat /etc/cnvm/overlay.json"))["peers"]
    tunnel = next(one["tunnel"] for one in peer if one["name"] == away.name)
    done = home.run(
        "ssh", "-F", "/etc/cnvm/ssh/config", "-o", f"HostName={tunnel}", away.name, *word.split(), check=False
    )
    assert done.returncode, done
    assert done.stdout == ""
