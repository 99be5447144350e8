# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest cannot move: all reasons at once; and what libvirt is told when it does."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, migration, xml

DISK = "/var/lib/cnvm/workloads/web/disks/vda.qcow2"
BASE = "/var/lib/cnvm/templates/sha256/" + "a" * 64 + "/disk.qcow2"
NEEDS: dict[str, t.Any] = {
    "uuid": "0705aea1-1ea0-540a-967e-c710e0d8de07", "live": True, "type": "qemu", "arch": "x86_64",
    "machine": "pc-q35-10.0", "qemu": 10_000_013, "cpu": "<cpu/>", "memory": 2**30, "address": "10.1.1.5",
    "disks": [
        {
            "name": "vda", "path": DISK, "format": "qcow2", "below": BASE, "template": "a" * 64, "shared": False,
            "pool": "",
        }
    ],
    "fixed": [], "files": {"/boot/vmlinuz": {"size": 1, "sha256": "x"}}, "firmware": {}, "next_start": {},
    "brought": ["/var/lib/cnvm/workloads/web/seed.iso"],
    "networks": [["bridge", "cnvm0"]], "macs": ["52:54:00:00:00:01"], "log": "/var/log/cnvm/guests/web.log",
}  # fmt: skip
SEEN: dict[str, t.Any] = {
    "reachable": True, "reason": "", "arch": "x86_64", "machines": ["pc-q35-10.0"], "qemu": 10_000_013, "kvm": True,
    "cpu": "", "definition": [], "name_taken": False, "uuid_taken": "", "macs_taken": {}, "networks_missing": [],
    "address_holder": "",
    "files": [], "disks": [], "templates": [], "ports": [], "screen": "", "pools": {},
    "firmware": [], "uefi": True, "next_start": {},
    "space": [{"path": "/var/lib/cnvm", "free_bytes": 2**30, "needed_bytes": 2**20}],
    "memory": 2**31,
}  # fmt: skip
# What is different there, and the word that the reader must find.
WRONG: dict[str, tuple[t.Any, str]] = {
    "machines": (["pc-q35-9.0"], "machine: the QEMU of host2 has no machine pc-q35-10.0"),
    "qemu": (9_002_000, "QEMU: host2 has 9.2.0, older than 10.0.13"),
    "cpu": ("it lacks avx2", "it lacks avx2"),
    "firmware": (["/usr/share/OVMF/OVMF_CODE_4M.fd"], "firmware: host2 has no /usr/share/OVMF/OVMF_CODE_4M.fd, or"),
    "uefi": (False, "firmware: host2 has no UEFI for web. Install it there (ovmf"),
    "definition": (["gives web no vsock"], "definition: host2 gives web no vsock."),
    "name_taken": (True, "name: host2 has another domain called web"),
    "uuid_taken": ("other", "uuid: the UUID of web is that of other"),
    "macs_taken": ({"52:54:00:00:00:01": "other"}, "MAC 52:54:00:00:00:01 is that of other"),
    "networks_missing": (["bridge br9"], "networks: host2 has no bridge br9"),
    "address_holder": ("52:54:00:aa:aa:aa", "address: 10.1.1.5 is taken"),
    "files": (["has no file /boot/vmlinuz"], "files: host2 has no file"),
    "disks": (["has no directory /srv for vdb"], "disks: host2 has no directory"),
    "templates": (["x was changed"], "template: host2: x was changed"),
    "ports": (["10.1.1.2 has no two free ports"], "ports: 10.1.1.2"),
    "screen": ("cannot have its screen at 127.0.0.1 port 5901: x", "graphics: host2 cannot have its screen"),
    "space": (
        [{"path": "/var/lib/cnvm", "free_bytes": 10, "needed_bytes": 2**20}],
        "space: host2 has 10 B free in /var/lib/cnvm, 1.0 MiB and a fifth more are needed.",
    ),
    "memory": (2**20, "memory: host2"),
}


def said(needs: t.Optional[t.Mapping[str, t.Any]] = None, **seen: t.Any) -> list[str]:
    return migration.problems("web", "host2", NEEDS if needs is None else needs, {**SEEN, **seen})


def test_nothing_is_in_the_way() -> None:
    assert said() == []


@given(st.sets(st.sampled_from(sorted(WRONG)), min_size=1))
def test_every_reason_is_told_at_once(keys: set[str]) -> None:
    found = said(**{key: WRONG[key][0] for key in keys})
    assert len(found) == len(keys)
    for key in keys:
        assert any(WRONG[key][1] in one for one in found), (key, found)


def test_what_no_host_gives_to_a_guest_that_comes_is_told_with_the_rest() -> None:
    (found,) = said({**NEEDS, "log": "/etc/cron.d/x"})
    assert found == "serial: host2 lets no guest that comes write to /etc/cron.d/x."


def test_without_libvirt_there_is_one_reason() -> None:
    (found,) = said(reachable=False, reason="Failed to connect socket. Start it: 'systemctl start libvirtd'.")
    assert found.startswith("libvirt: host2 has no libvirt that answers: Failed to connect socket.")


def test_another_architecture_says_nothing_of_machines() -> None:
    (found,) = said(arch="aarch64", machines=[])
    assert found.startswith("arch:")


def test_a_guest_that_does_not_run_needs_no_memory_and_no_new_qemu() -> None:
    assert said({**NEEDS, "live": False}, memory=0, qemu=1) == []


def test_kvm_is_needed_by_those_that_run_with_it() -> None:
    assert said(kvm=False) == []
    (found,) = said({**NEEDS, "type": "kvm"}, kvm=False)
    assert found.startswith("KVM:")


# What is different there for the next start, and what is to be said of it.
LATER: dict[str, tuple[t.Any, str]] = {
    "arch": ("aarch64", "arch (from its next start on): host2 is aarch64, web is x86_64."),
    "machines": ([], "machine (from its next start on): the QEMU of host2 has no machine pc-q35-10.0. Install a"),
    "kvm": (False, "KVM (from its next start on): host2 cannot use it, and web runs with it."),
    "cpu": ("it lacks avx2", "cpu (from its next start on): host2 cannot give web its CPU: it lacks avx2"),
    "firmware": (
        ["/usr/share/OVMF/CODE.fd"],
        "firmware (from its next start on): host2 has no /usr/share/OVMF/CODE.fd",
    ),
    "uefi": (False, "firmware (from its next start on): host2 has no UEFI for web."),
    "macs_taken": (
        {"52:54:00:00:00:01": "b"},
        "networks (from its next start on): the MAC 52:54:00:00:00:01 is that of b",
    ),
    "networks_missing": (["bridge br9"], "networks (from its next start on): host2 has no bridge br9."),
    "screen": ("cannot have its screen", "graphics (from its next start on): host2 cannot have its screen."),
}


@pytest.mark.parametrize("key", sorted(LATER))
def test_what_it_could_not_start_with_the_next_time_is_told(key: str) -> None:
    """Once: what it lacks in any case is no matter of the next start."""
    value, words = LATER[key]
    needs = {**NEEDS, "type": "kvm", "next_start": {**NEEDS, "type": "kvm", "live": False}}
    assert said(needs, next_start=SEEN) == []
    (found,) = said(needs, next_start={**SEEN, key: value})
    assert found.startswith(words)
    (found,) = said(needs, next_start={**SEEN, key: value}, **{key: value})
    assert "next start" not in found


def guest(extra: str = "", disk: str = "", top: str = "", name: str = "web") -> xml.Element:
    return xml.parse(f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>{name}</name><uuid>{NEEDS["uuid"]}</uuid><memory unit='MiB'>96</memory>
      <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><kernel>/boot/vmlinuz</kernel></os>{top}
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{DISK}'/>
        <backingStore type='file'><format type='qcow2'/><source file='{BASE}'/><backingStore/></backingStore>
        <target dev='vda' bus='virtio'/></disk>{disk}{extra}</devices></domain>""")


def obstacles(root: xml.Element, state: str = "running", snapshots: t.Sequence[str] = ()) -> list[str]:
    return migration.obstacles("web", root, state, snapshots)


def test_a_plain_guest_has_no_obstacles() -> None:
    assert obstacles(guest()) == []
    assert obstacles(guest(), "stopped") == []


@pytest.mark.parametrize(
    ("root", "word"),
    [
        (guest("<hostdev mode='subsystem' type='pci'/>"), "hostdev"),
        (guest("<tpm model='tpm-crb'/>"), "tpm"),
        (
            guest(
                "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='srv'/></filesystem>"
            ),
            "folder srv",
        ),
        (guest(top="<cpu mode='host-passthrough'/>"), "host-passthrough"),
        (guest(disk="<disk type='block'><source dev='/dev/sdx'/><target dev='vdb'/></disk>"), "/dev/sdx"),
        (
            guest(disk="<disk type='volume'><source pool='p' volume='v' file='/p/v'/><target dev='vdb'/></disk>"),
            "volume v of the pool p",
        ),
        (
            guest(
                disk="<disk type='file'><driver cache='writeback'/><source file='/a'/><target dev='vdb'/></disk>",
            ),
            "writeback",
        ),
    ],
)
def test_what_belongs_to_a_host_stays_there(root: xml.Element, word: str) -> None:
    (found,) = obstacles(root)
    assert word in found


def test_all_obstacles_are_told_at_once() -> None:
    root = guest("<hostdev mode='subsystem'/><tpm model='tpm-crb'/>", top="<cpu mode='host-passthrough'/>")
    assert len(obstacles(root, "paused", ["before"])) == 5


def refused(live: t.Optional[xml.Element], stored: xml.Element, **needs: t.Any) -> list[str]:
    state = "stopped" if live is None else "running"
    return migration.refused("web", live, stored, state, [], {**NEEDS, **needs})


def test_what_the_target_would_not_let_through_is_told_before() -> None:
    """Of what runs, and of what it starts with the next time, which goes with it."""
    cd = guest("<disk type='file' device='cdrom'><source file='/srv/x.iso'/><target dev='sda'/></disk>")
    arguments = guest(top="<qemu:commandline><qemu:arg value='-drive'/></qemu:commandline>")
    assert (
        refused(guest(), guest())
        == refused(None, guest())
        == refused(guest(), cd, files={**NEEDS["files"], "/srv/x.iso": {}})
        == []
    )
    (found,) = refused(guest(), cd)
    assert found.startswith("changes: for its next start web has /srv/x.iso, which")
    for one in (refused(arguments, arguments), refused(None, arguments)):
        assert "commandline" in one[0]
        assert len(one) == 1


def test_a_disk_that_leaves_it_to_its_file_what_it_rests_on_is_told_with_what_helps() -> None:
    """So it is with guests of virt-install. To start it anew alone is of no use."""
    text = "<disk type='file'><driver type='qcow2'/><source file='/nfs/b'/>{}<target dev='vdb'/></disk>"
    left, said = (guest(disk=text.format(word)) for word in ("", "<backingStore/>"))
    shared = {**NEEDS["disks"][0], "name": "vdb", "path": "/nfs/b", "below": "", "template": "", "shared": True}
    more = {"disks": [*NEEDS["disks"], shared]}
    assert refused(None, said, **more) == refused(said, said, **more) == []
    words = "disks: web has vdb without a word on what it rests on (backingStore), and"
    for live, anew in ((None, False), (said, False), (left, True)):
        (found,) = refused(live, left, **more)
        assert found.startswith(words)
        assert "Run it once with its description (cnvm.platform.guest)" in found
        assert ("start it anew" in found) == anew
    (found,) = refused(left, said, **more)
    assert found.startswith(words)
    assert "start it anew" in found


@pytest.mark.parametrize(("state", "anew"), [("running", True), ("stopped", False)])
def test_what_makes_a_plain_disk_of_a_volume_is_told(state: str, anew: bool) -> None:
    volume = "<disk type='volume'><source pool='p' volume='v' file='/p/v'/><target dev='vdb'/></disk>"
    (found,) = obstacles(guest(disk=volume), state)
    assert "Run it with its description (cnvm.platform.guest), which makes a plain disk of that" in found
    assert ("start it anew" in found) == anew


def test_what_is_read_only_is_nobodys_to_lose() -> None:
    """A cache of the host does no harm, and it rests on a template as others do."""
    second = "<disk type='file'><driver cache='writeback'/><source file='/a'/><target dev='vdb'/><readonly/></disk>"
    fixed = {**NEEDS["disks"][0], "name": "vdb", "path": "/a", "format": "raw"}
    files = {**NEEDS["files"], "/a": {}}
    assert refused(guest(disk=second), guest(disk=second), fixed=[fixed], files=files) == []
    (found,) = refused(guest(disk=second), guest(disk=second), fixed=[{**fixed, "template": ""}], files=files)
    assert "vdb rests on" in found


def test_a_folder_is_told_once() -> None:
    root = guest(
        "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='srv'/></filesystem>"
    )
    (found,) = refused(root, root)
    assert "the folder srv" in found


def test_a_guest_is_slowed_down_only_where_that_is_wanted() -> None:
    for wanted in (False, True):
        assert ("AUTO_CONVERGE" in migration.flags(parallel=False, auto_converge=wanted, disks=True)) == wanted


def test_it_arrives_paused_whatever_is_asked_for() -> None:
    for parallel in (False, True):
        for disks in (False, True):
            flags = migration.flags(parallel=parallel, auto_converge=True, disks=disks)
            assert {"LIVE", "PAUSED", "PERSIST_DEST"} <= set(flags)
            assert ("PARALLEL" in flags, "NON_SHARED_INC" in flags) == (parallel, disks)
            # Its source is ended by us, when the copy has proven itself.
            assert "UNDEFINE_SOURCE" not in flags
            assert "UNSAFE" not in flags


@given(st.integers(1, 60_000), st.integers(1, 60_000))
def test_the_time_to_stand_still_grows_up_to_what_is_allowed(first: int, most: int) -> None:
    limit, steps = min(first, most), 0
    while limit < most:
        longer = migration.next_limit(limit, most)
        assert limit < longer <= most
        limit, steps = longer, steps + 1
    assert migration.next_limit(limit, most) == most
    assert steps <= 6


def test_what_crosses_the_network_in_the_clear_is_told() -> None:
    off = {**NEEDS, "live": False}
    (warning,) = migration.warnings("web", NEEDS, encrypted=False)
    assert "in the clear" in warning
    assert "the memory and the disks of web" in warning
    assert migration.warnings("web", NEEDS, encrypted=True) == ()
    assert migration.warnings("web", off, encrypted=False) == ()


def test_a_network_that_each_host_has_for_itself_is_told() -> None:
    (warning,) = migration.warnings("web", {**NEEDS, "live": False}, encrypted=True, private=["default"])
    assert "web is in the network default, which each host has for itself" in warning


def test_a_qemu_that_may_lose_memory_is_told() -> None:
    """Of a guest that is emulated, and runs."""
    old = {**NEEDS, "qemu": 7_002_022}
    (warning,) = migration.warnings("web", old, encrypted=True)
    assert "web is emulated, by QEMU 7.2.22." in warning
    assert migration.warnings("web", {**old, "live": False}, encrypted=True) == ()
    assert migration.warnings("web", {**old, "type": "kvm"}, encrypted=True) == ()


def test_post_copy_is_allowed_and_not_demanded() -> None:
    may, reason = migration.post_copy("host2", "")
    assert may
    assert "as fast as it is copied" in reason
    may, reason = migration.post_copy("host2", "does not let QEMU use userfaultfd")
    assert not may
    assert reason == "post-copy is allowed by the task, but host2 does not let QEMU use userfaultfd"


def test_with_post_copy_libvirt_does_not_let_it_arrive_paused() -> None:
    flags = migration.flags(parallel=False, auto_converge=True, disks=True, post_copy=True)
    assert "POSTCOPY" in flags
    assert "PAUSED" not in flags


def rounds(pace: migration.Pace, dirtied: t.Sequence[int], first: int = 1, sent: int = 100) -> list[int]:
    """The limits that were set, in rounds of which each dirtied so many pages a second."""
    found = []
    for number, pages in enumerate(dirtied, first):
        stats = {"memory_iteration": number, "memory_dirty_rate": pages, "memory_page_size": 1, "memory_bps": sent}
        for _look in range(3):
            if pace.look(stats):
                found.append(pace.limit_ms)
    return found


def test_the_limit_grows_while_it_does_not_get_on() -> None:
    pace = migration.Pace(300)
    assert rounds(pace, [500] * 15) == [2, 20, 60, 150, 300]
    assert not pace.hopeless()
    assert rounds(pace, [500] * 3, 16) == []
    assert pace.hopeless()


def test_what_was_dirtied_before_the_greatest_limit_does_not_count() -> None:
    pace = migration.Pace(20)
    assert rounds(pace, [500] * 6) == [2, 20]
    assert not pace.hopeless()
    rounds(pace, [500], 7)
    assert pace.hopeless()


@pytest.mark.parametrize("dirtied", [[500, 500, 10] * 9, [10] * 30, [79] * 30])
def test_one_that_gets_on_is_not_given_up(dirtied: list[int]) -> None:
    pace = migration.Pace(1)
    rounds(pace, dirtied)
    assert not pace.hopeless()


def test_rounds_that_nobody_saw_do_not_count() -> None:
    """Short ones, while one rate was told: most may have left less."""
    pace = migration.Pace(1)
    rounds(pace, [500] * 2)
    rounds(pace, [500], 90)
    assert not pace.hopeless()
    rounds(pace, [500], 99)
    assert pace.hopeless()


def test_what_libvirt_does_not_tell_is_no_reason() -> None:
    pace = migration.Pace(1)
    assert pace.look({})
    assert not pace.look({})
    for number in range(1, 20):
        assert not pace.look({"memory_iteration": number})
    assert not pace.hopeless()


def test_statistics_have_their_units_in_their_names() -> None:
    found = migration.statistics({"time_elapsed": 12, "downtime": 3, "memory_iteration": 2, "operation": 5})
    assert found == {"elapsed_ms": 12, "downtime_ms": 3, "memory_rounds": 2}


@pytest.mark.parametrize(("percent", "found"), [({}, {}), ({"auto_converge_throttle": 0}, {})])
def test_how_much_it_is_slowed_down(percent: dict[str, int], found: dict[str, int]) -> None:
    assert migration.slowed({"memory_iteration": 2, **percent}) == found


def test_how_much_it_is_slowed_down_is_in_the_statistics() -> None:
    slowed = migration.slowed({"memory_iteration": 2, "auto_converge_throttle": 40})
    assert migration.statistics({**slowed, "downtime": 3}) == {"throttle_percent": 40, "downtime_ms": 3}


def test_disks_that_are_read_only_are_no_data() -> None:
    root = guest(disk="<disk type='file'><source file='/iso'/><target dev='vdb'/><readonly/></disk>")
    assert list(migration.disks_of(domain.parse(root))) == ["vda"]
