# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest needs of its target, and what a target finds of it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disk_guests,
    disk_records,
    disks,
    domains,
    files,
    guest_disks,
    guest_preflight,
    info,
    kinds,
    kvm,
    libvirt,
    mounts,
    movedir,
    preflight,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors, xml

from . import fake_domains
from .dead_storage import Dead
from .fake_domains import FakeConnection, FakeDomain

# VIR_ERR_CPU_INCOMPATIBLE.
CPU_INCOMPATIBLE = 91


def guest(kernel: str, disk: str, bridge: str = "cnvm0") -> xml.Element:
    return xml.parse(f"""<domain type='qemu'><name>web</name><uuid>0705aea1-1ea0-540a-967e-c710e0d8de07</uuid>
      <memory unit='MiB'>96</memory>
      <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><kernel>{kernel}</kernel></os>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
        <target dev='vda' bus='virtio'/><readonly/></disk>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
      <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='{bridge}'/></interface>
      </devices></domain>""")


def test_what_it_starts_with_the_next_time_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that it only reads comes along where it is its own; its address is that of one card of several."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    own = f"{paths.guest_disks_dir('web')}/vda.qcow2"
    os.makedirs(os.path.dirname(own))
    Path(own).write_bytes(b"x")
    definition: dict[str, t.Any] = {
        "disks": [{"name": "vda", "pool": ""}],
        "networks": [
            {"mac": "52:54:00:00:00:01", "address": ""}, {"mac": "52:54:00:00:00:02", "address": "10.100.101.9"},
        ],
        "address": "10.100.101.9",
    }  # fmt: skip
    known = domains.Known(
        None, "running", "", True, False, stored=guest("/boot/new", own, "cnvm1"), live=guest("/boot/old", own)
    )
    host = t.cast("t.Any", None)
    needs = guest_preflight.needs_of("web", known, definition, host, 10_000_000, False)
    assert needs["networks"] == [("bridge", "cnvm0"), ("network", "default")]
    assert needs["next_start"]["networks"] == [("bridge", "cnvm1"), ("network", "default")]
    assert sorted(needs["files"]) == ["/boot/new", "/boot/old"]
    assert (needs["disks"], needs["brought"]) == ([], [own])
    assert [one["path"] for one in needs["fixed"]] == [own]
    assert needs["address_mac"] == "52:54:00:00:00:02"
    assert needs["memory"] == (96 + 128) * 2**20


CPU = '<cpu check="partial">\n  <model>EPYC</model>\n</cpu>\n'
SECOND = "<interface type='network'><mac address='52:54:00:00:00:02'/><source network='default'/></interface>"
LOADER = f"<loader type='pflash'>{os.devnull}</loader>"
# What libvirt makes of the CPU of one that it starts.
RUNNING = {"cpu": "<cpu check='full'><model>EPYC</model><feature policy='require' name='x2apic'/></cpu>"}


def machine(**changed: str) -> xml.Element:
    """A domain; ``changed``: what of its XML is something else."""
    has = {
        "kind": "qemu", "machine": "pc-q35-10.0", "firmware": "", "loader": "", "network": "default", "second": "",
        "cpu": CPU, "screen": "<graphics type='vnc' port='5901' listen='127.0.0.1'/>", **changed,
    }  # fmt: skip
    return xml.parse(f"""<domain type='{has["kind"]}'><name>web</name><memory unit='MiB'>96</memory>
      <os{has["firmware"]}><type arch='x86_64' machine='{has["machine"]}'>hvm</type>{has["loader"]}</os>
      {has["cpu"]}<devices>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='{has["network"]}'/></interface>
      {has["second"]}{has["screen"]}</devices></domain>""")


def next_start(live: t.Optional[xml.Element], stored: xml.Element) -> dict[str, t.Any]:
    return guest_preflight._next_start(domains.Known(None, "", "", True, False, stored=stored, live=live))


@pytest.mark.parametrize(
    ("changed", "needed"),
    [
        # Of a CPU that is emulated a host need not have anything.
        ({"kind": "kvm"}, {"type": "kvm", "cpu": CPU}),
        ({"machine": "pc-q35-11.0"}, {"machine": "pc-q35-11.0"}),
        ({"cpu": CPU.replace("EPYC", "Cascadelake")}, {"cpu": CPU.replace("EPYC", "Cascadelake")}),
        # These start anywhere.
        ({"cpu": "<cpu mode='host-passthrough'/>"}, {"cpu": ""}),
        ({"cpu": "<cpu check='none'><model>Cascadelake</model></cpu>"}, {"cpu": ""}),
        ({"loader": LOADER}, {"firmware": {os.devnull: 0}}),
        # A definition of others, which leaves it to libvirt what file that is.
        ({"firmware": " firmware='efi'"}, {"uefi": True}),
        ({"firmware": " firmware='efi'", "loader": LOADER}, {"firmware": {os.devnull: 0}}),
        ({"network": "lan"}, {"networks": [("network", "lan")]}),
        ({"second": SECOND}, {"macs": ["52:54:00:00:00:01", "52:54:00:00:00:02"]}),
        ({"screen": "<graphics type='vnc' listen='192.0.2.1'/>"}, {"screen": ["192.0.2.1", 0]}),
        ({"screen": ""}, {"screen": []}),
    ],
)
def test_what_waits_for_the_next_start_is_needed(changed: dict[str, str], needed: dict[str, t.Any]) -> None:
    """And for the rest what runs needs already."""
    now = guest_preflight._start(machine(**RUNNING), live=True)
    assert next_start(machine(**RUNNING), machine(**changed)) == {**now, "live": False, **needed}


def test_a_next_start_that_needs_nothing_else_is_not_asked_for() -> None:
    """What libvirt has made of the CPU, and the port that must be free now, are no difference."""
    assert next_start(machine(**RUNNING), machine()) == {}
    assert next_start(machine(**RUNNING), machine(cpu="<cpu mode='host-model'/>")) == {}
    assert next_start(None, machine()) == {}


def test_a_screen_needs_its_address_and_a_port_of_its_own() -> None:
    """One that does not run shows nothing yet, but must be able to."""
    assert guest_preflight._screen({"graphics": {"type": "none"}}, live=True) == []
    chosen = {"graphics": {"type": "vnc", "listen": "192.0.2.1", "port": None}}
    assert guest_preflight._screen(chosen, live=True) == ["192.0.2.1", 0]
    own = {"graphics": {"type": "vnc", "listen": "", "port": 5901}}
    assert guest_preflight._screen(own, live=True) == ["127.0.0.1", 5901]
    assert guest_preflight._screen(own, live=False) == ["127.0.0.1", 0]


def test_networks_that_each_host_has_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = {"lan": "<forward mode='bridge'/><bridge name='br0'/>", "default": "<forward mode='nat'/>", "alone": ""}

    def found(connection: object, name: str) -> t.Any:
        text = f"<network><name>{name}</name>{forward[name]}</network>" if name in forward else None
        return text and types.SimpleNamespace(XMLDesc=lambda flags: text)

    monkeypatch.setattr(libvirt, "network", found)
    monkeypatch.setattr(libvirt, "library", fake_domains.library)
    cards = [("network", "lan"), ("network", "default"), ("network", "alone"), ("network", "gone"), ("bridge", "br1")]
    model = {"networks": {str(mac): {"type": kind, "source": name} for mac, (kind, name) in enumerate(cards)}}
    seen = t.cast("t.Any", types.SimpleNamespace(live_model=None, model=model))
    assert guest_preflight._private_networks(t.cast("t.Any", None), seen) == ["alone", "default"]


# As with systemd's automount: something else is mounted at the same point, below.
MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /srv/nfs rw,relatime shared:2 - autofs systemd-1 rw,fd=60
55 40 {device} / /srv/nfs rw,relatime shared:3 master:7 - nfs4 192.0.2.1:/srv rw,vers=4.2
"""


def on_nfs(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """What the file system is that has ``path``."""
    device = os.stat(path).st_dev
    text = MOUNTINFO.format(device=f"{os.major(device)}:{os.minor(device)}")
    read = info.file_systems
    monkeypatch.setattr(info, "file_systems", lambda _text: read(text))


def test_where_a_file_lies_counts_and_not_what_its_path_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A link may lead to shared storage, or from there to a disk that only this host has."""
    shared = tempfile.NamedTemporaryFile(dir="/dev/shm")  # noqa: SIM115 - it is closed at the end of the test
    request.addfinalizer(shared.close)
    on_nfs(monkeypatch, shared.name)
    (tmp_path / "disk.raw").write_text("x")
    (tmp_path / "link.raw").symlink_to(shared.name)
    assert guest_preflight.on_shared_storage(shared.name)
    assert guest_preflight.on_shared_storage(str(tmp_path / "link.raw"))
    assert not guest_preflight.on_shared_storage(str(tmp_path / "disk.raw"))


def test_the_same_storage_is_known_by_what_the_other_host_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path and inode may be the same on the storage of two servers."""
    (tmp_path / "link").symlink_to(tmp_path)
    path = str(tmp_path / "link/disk.raw")
    Path(path).write_text("x")
    disk = {"path": path, "inode": os.stat(path).st_ino}
    assert not guest_preflight._is_same(disk, "")
    on_nfs(monkeypatch, path)
    assert guest_preflight._is_same(disk, "")
    assert not guest_preflight._is_same({**disk, "inode": 1}, "")
    assert not guest_preflight._is_same({**disk, "path": str(tmp_path / "none.raw")}, "")
    assert not guest_preflight._is_same(disk, ".cnvm-m1")
    Path(guest_preflight.mark_of(path, ".cnvm-m1")).touch()
    assert guest_preflight._is_same(disk, ".cnvm-m1")
    assert (tmp_path / ".cnvm-m1").exists()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"at 127.0.0.1 port {port}: Address already in use" in guest_preflight._lacks_screen("127.0.0.1", port)
    assert guest_preflight._lacks_screen("127.0.0.1", port) == ""
    assert "at 192.0.2.1 port 5901: Cannot assign" in guest_preflight._lacks_screen("192.0.2.1", 5901)
    # libvirt chooses the port.
    assert "at 192.0.2.1: Cannot assign" in guest_preflight._lacks_screen("192.0.2.1", 0)


# -- What libvirt itself keeps
@pytest.mark.parametrize(
    ("saved", "snapshots", "checkpoints", "ours", "said"),
    [
        (0, 0, [], [], []),
        (1, 0, [], [], ["memory: web was saved with its memory"]),
        (0, 1, [], [], ["snapshots: libvirt has snapshots or checkpoints of web"]),
        (0, 0, ["daily"], [], ["snapshots: libvirt has"]),
        # Those of the module guest_snapshot are told by another refusal.
        (0, 1, ["daily"], ["before"], []),
        (1, 1, [], [], ["memory: ", "snapshots: "]),
    ],
)
def test_what_libvirt_would_forget_keeps_a_guest_here(
    monkeypatch: pytest.MonkeyPatch,
    saved: int,
    snapshots: int,
    checkpoints: list[str],
    ours: list[str],
    said: list[str],
) -> None:
    each = types.SimpleNamespace(
        name=lambda: "web", hasManagedSaveImage=lambda: saved, snapshotNum=lambda: snapshots,
        listAllCheckpoints=lambda: checkpoints,
    )  # fmt: skip
    monkeypatch.setattr(libvirt, "library", fake_domains.library)
    found = guest_preflight._kept_by_libvirt("web", domains.Known(each, "stopped", "", True, False), ours)
    assert len(found) == len(said)
    assert all(one.startswith(words) for one, words in zip(found, said))


# -- The target
@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeConnection:
    """libvirt of a host that has one pool."""
    made = FakeConnection()
    library = fake_domains.library()
    made.pools["disks"] = str(tmp_path / "pool")
    (tmp_path / "pool").mkdir()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(libvirt, "connect", lambda: contextlib.nullcontext(made))
    for name in ("WORKLOADS", "TEMPLATES"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    return made


def needs(kernel: str, **more: t.Any) -> dict[str, t.Any]:
    """What a stopped guest needs."""
    return {
        "uuid": "0705aea1-1ea0-540a-967e-c710e0d8de07", "live": False, "post_copy": False, "type": "qemu",
        "arch": "x86_64", "machine": "pc-q35-10.0", "cpu": "", "disks": [], "fixed": [], "screen": [], "address": "",
        "files": {kernel: {"size": 1, "sha256": "x"}}, "networks": [["network", "default"]],
        "macs": ["52:54:00:00:00:01"], "firmware": {}, "uefi": False, "next_start": {}, "brought": [],
        "definition": "", "log": "", **more,
    }  # fmt: skip


def disk(name: str, path: object, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "path": str(path), "template": "", "template_bytes": 0, "bytes": 5, "shared": False, **more}


def look(wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    return guest_preflight.look(t.cast("t.Any", None), {"name": "web"}, wanted)


def test_a_target_where_all_is_well(target: FakeConnection, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"k")
    own = f"{paths.guest_disks_dir('web')}/vda.qcow2"
    stamp = guest_preflight._stamp(str(kernel))
    seen = look(
        needs(str(kernel), files={str(kernel): stamp}, disks=[disk("vda", own), disk("vdb", tmp_path / "pool/b")])
    )
    assert (seen["reachable"], seen["name_taken"], seen["uuid_taken"], seen["macs_taken"]) == (True, False, "", {})
    assert [seen[key] for key in ("networks_missing", "files", "disks", "templates", "lacks")] == [[], [], [], [], []]
    assert seen["machines"] == ["pc-q35-10.0", "q35"]
    assert seen["pools"] == {"disks": str(tmp_path / "pool")}
    # All of it is on one file system.
    assert wanted_space(seen) == {paths.STATE: 10}


def wanted_space(seen: dict[str, t.Any]) -> dict[str, int]:
    return {one["path"]: one["needed_bytes"] for one in seen["space"]}


def test_space_of_each_file_system(target: FakeConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks of one guest may be on several, with the template that is to be brought or not."""

    def space(path: str) -> dict[str, t.Any]:
        return {"device": len(path), "path": path, "free_bytes": 100, "needed_bytes": 0, "once": {}}

    monkeypatch.setattr(movedir, "space", space)
    own = disk("vda", f"{paths.guest_disks_dir('web')}/vda.qcow2", template="ab" * 32, template_bytes=7)
    seen = look(needs("", files={}, disks=[own, disk("vdb", tmp_path / "pool/b"), disk("vdc", tmp_path / "pool/c")]))
    assert wanted_space(seen) == {paths.TEMPLATES: 7, paths.STATE: 5, str(tmp_path / "pool"): 10}
    assert [one["once"] for one in seen["space"]] == [{"ab" * 32: 7}, {}, {}]


def test_a_target_where_nothing_is(target: FakeConnection, tmp_path: Path) -> None:
    """Another domain has its identity, others its files; what it is to be plugged into is not there."""
    kernel, taken = tmp_path / "vmlinuz", tmp_path / "pool/taken"
    kernel.write_bytes(b"another one")
    kernel.chmod(0o600)
    taken.write_bytes(b"x")
    target.defineXML(xml.document(guest(str(kernel), str(taken))).replace("<name>web<", "<name>old<"))
    target.defineXML(xml.document(guest("", "")).replace("0705aea1", "99999999").replace("00:00:0", "00:01:0"))
    wrong = needs(
        str(kernel),
        files={str(kernel): {"size": 1, "sha256": "x"}, "/does/not/exist": {}},
        networks=[["network", "lan"], ["bridge", "no-bridge"], ["direct", "no-card"], ["network", "default"]],
        disks=[disk("vdb", taken), disk("vdc", "/does/not/exist/c", template="ab" * 32, template_bytes=7)],
    )
    seen = look(wrong)
    assert (seen["name_taken"], seen["uuid_taken"]) == (True, "old")
    assert seen["macs_taken"] == {"52:54:00:00:00:01": "old"}
    assert seen["networks_missing"] == ["network lan", "bridge no-bridge", "interface no-card"]
    assert [words.split(" ")[:2] for words in seen["files"]] == [["gives", str(kernel)], ["has", "no"]]
    assert seen["disks"] == [
        f"has a file {taken} already; it is not overwritten", "has no directory /does/not/exist for vdc",
    ]  # fmt: skip
    assert (seen["lacks"], wanted_space(seen)) == (["ab" * 32], {paths.TEMPLATES: 7})
    kernel.chmod(0o644)
    assert look(wrong)["files"][0] == f"has another {kernel}"


def test_what_an_earlier_guest_has_left_is_in_the_way(
    target: FakeConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may need it. But not what goes as the move begins, and not the files of a guest that is in the way."""
    monkeypatch.setattr(paths, "NVRAM", str(tmp_path))
    home, pooled = Path(paths.guest_disks_dir("web")), tmp_path / "pool/b"
    home.mkdir(parents=True)
    variables = paths.guest_nvram("web")[0]
    left = [str(home / "vda.qcow2"), variables, str(pooled)]
    for path in left:
        Path(path).write_bytes(b"x")
    wanted = needs("", files={}, brought=[variables], disks=[disk("vdb", pooled)])
    for asked in (wanted, {**wanted, "brought": [], "firmware": {variables: 1}}):
        seen = look(asked)
        assert [words.split(",")[0][:30] for words in seen["files"]] == [
            f"has files in {home}"[:30], f"has a file {variables}"[:30],
        ]  # fmt: skip
        assert seen["disks"] == [f"has a file {pooled} already; it is not overwritten"]
    seen = guest_preflight.look(t.cast("t.Any", None), {"name": "web"}, wanted, left)
    assert (seen["files"], seen["disks"]) == ([], [])
    target.defineXML(xml.document(guest("", "")))
    assert look(wanted)["files"] == []


def test_nobody_looks_where_a_forged_digest_leads(target: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "record", lambda digest: pytest.fail("It was looked for."))
    look(needs("", files={}, fixed=[disk("vda", "/x", template="../../x")]))


@pytest.mark.parametrize(("live", "size", "lacks"), [(True, 3, False), (True, 4, True), (False, 4, False)])
def test_the_firmware_of_a_target(target: FakeConnection, tmp_path: Path, live: bool, size: int, lacks: bool) -> None:
    """What runs brings the code of its firmware in its memory; what is off takes up any version."""
    (tmp_path / "CODE.fd").write_bytes(b"x" * size)
    firmware = {str(tmp_path / "CODE.fd"): 3, str(tmp_path / "VARS.fd"): 1}
    connection = t.cast("t.Any", target)
    said = guest_preflight._ask(connection, "web", needs("", live=live, firmware=firmware, networks=[]))["firmware"]
    assert said == [path for path in firmware if lacks or path.endswith("VARS.fd")]


@pytest.mark.parametrize(
    ("firmware", "there"), [("<value>efi</value>", True), ("<value>bios</value>", False), ("", False)]
)
def test_the_uefi_of_a_target(
    target: FakeConnection, monkeypatch: pytest.MonkeyPatch, firmware: str, there: bool
) -> None:
    """libvirt chooses it for a guest that says no more than that it wants it."""

    def tell(*asked: t.Any) -> str:
        assert asked == (None, "x86_64", "pc-q35-10.0", None, 0)
        return f"<domainCapabilities><os><enum name='firmware'>{firmware}</enum></os></domainCapabilities>"

    monkeypatch.setattr(target, "getDomainCapabilities", tell, raising=False)
    assert look(needs("", files={}, uefi=True))["uefi"] is there
    # Another message says what is wrong there.
    monkeypatch.delattr(target, "getDomainCapabilities")
    assert look(needs("", files={}, uefi=True, machine="pc-q35-99.0"))["uefi"]
    assert look(needs("", files={}, uefi=True, arch="aarch64"))["uefi"]
    assert look(needs("", files={}))["uefi"]


def test_what_its_firmware_is_made_of(tmp_path: Path) -> None:
    """A BIOS is QEMU's own."""
    code, variables = tmp_path / "CODE.fd", tmp_path / "VARS.fd"
    code.write_bytes(b"code")
    variables.write_bytes(b"variables")
    parts = f"<loader type='pflash'>{code}</loader><nvram template='{variables}'>/x_VARS.fd</nvram>"
    root = xml.parse(f"<domain><os>{parts}</os></domain>")
    assert guest_preflight._firmware(root) == {str(code): 4, str(variables): 9}
    assert guest_preflight._firmware(xml.parse("<domain><os/></domain>")) == {}


@pytest.mark.parametrize(
    ("cpu", "kept"),
    [("<cpu>\n  <model>EPYC</model>\n</cpu>\n", True), ("<cpu mode='host-model'/>", False), ("<features/>", False)],
)
@pytest.mark.parametrize("live", [True, False])
def test_the_cpu_that_it_needs(cpu: str, kept: bool, live: bool) -> None:
    """One that is off gets that of its host, if nothing else is said."""
    assert guest_preflight._cpu(xml.parse(f"<domain>{cpu}</domain>"), live=live) == (cpu if kept else "")


def test_a_cpu_that_libvirt_does_not_check_starts_anywhere() -> None:
    """Once it runs, the guest has seen what it has."""
    cpu = '<cpu check="none">\n  <model>EPYC</model>\n</cpu>\n'
    root = xml.parse(f"<domain>{cpu}</domain>")
    assert guest_preflight._cpu(root, live=False) == ""
    assert guest_preflight._cpu(root, live=True) == cpu


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (1, ""),
        (2, ""),
        (0, "it is not a superset."),
        (CPU_INCOMPATIBLE, "the CPU lacks avx512"),
        # Of other architectures libvirt cannot tell.
        (errors.NO_SUPPORT, ""),
    ],
)
def test_the_cpu_of_a_target(target: FakeConnection, monkeypatch: pytest.MonkeyPatch, answer: int, said: str) -> None:
    """What the guest sees now is compared, for this machine."""
    cpu = "<cpu mode='custom'><model>EPYC</model></cpu>"

    def compare(*asked: t.Any) -> int:
        assert asked == (None, "x86_64", "pc-q35-10.0", "qemu", cpu, 1)
        if answer > 2:
            raise fake_domains.FakeError(answer, "the CPU lacks avx512")
        return answer

    monkeypatch.setattr(target, "compareHypervisorCPU", compare)
    assert look(needs("/boot/vmlinuz", files={}, cpu=cpu))["cpu"] == said


def test_the_cpu_of_a_target_that_lacks_the_machine(target: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that is not there libvirt knows no CPU: it is compared with what another one could have."""
    monkeypatch.setattr(target, "compareHypervisorCPU", lambda *asked: 2 if asked[2] else 0)
    assert look(needs("", files={}, cpu="<cpu/>"))["cpu"] == ""
    assert look(needs("", files={}, cpu="<cpu/>", machine="pc-q35-11.0"))["cpu"] == "it is not a superset."


def test_what_an_older_libvirt_does_not_know(target: FakeConnection) -> None:
    """What libvirt gives to each by itself stays away, the rest is told. A missing network is told elsewhere."""
    uuid = needs("")["uuid"]
    text = f"<domain type='qemu'><name>web</name><uuid>{uuid}</uuid><devices>{fake_domains.WATCHDOG}</devices></domain>"
    there = FakeConnection()
    there.defineXML(text)
    sent = xml.document(domains.portable(there.domains["web"]))
    assert look(needs("", files={}, definition=sent))["definition"] == []
    (said,) = look(needs("", files={}, definition=text))["definition"]
    assert said.startswith("has a libvirt that does not take that of web: unsupported configuration: unknown watchdog")
    # What it would say of another machine is told already.
    assert look(needs("", files={}, definition=text, machine="pc-q35-11.0"))["definition"] == []
    assert target.calls == []


def test_what_a_target_lacks_for_the_next_start(target: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of it; what it is to go on with is all there."""
    target.defineXML(xml.document(guest("", "")).replace("<name>web<", "<name>other<").replace("0705aea1", "99999999"))
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": False})
    monkeypatch.setattr(target, "compareHypervisorCPU", lambda *asked: int("EPYC" in asked[4]))
    wanted = needs("", files={}, cpu="<cpu><model>EPYC</model></cpu>", macs=[], screen=["127.0.0.1", 0])
    wanted["next_start"] = {
        "live": False, "type": "kvm", "arch": "x86_64", "machine": "pc-q35-11.0",
        "cpu": "<cpu><model>Cascadelake</model></cpu>", "firmware": {"/does/not/exist": 1}, "uefi": False,
        "networks": [["bridge", "no-bridge"]], "macs": ["52:54:00:00:00:01"], "screen": ["192.0.2.1", 0],
    }  # fmt: skip
    seen = look(wanted)
    following = seen["next_start"]
    keys = ("kvm", "cpu", "firmware", "networks_missing", "macs_taken", "screen")
    assert [seen[key] for key in keys] == [True, "", [], [], {}, ""]
    assert following.pop("screen").startswith("cannot have its screen at 192.0.2.1: ")
    assert [following[key] for key in keys[:-1]] == [
        False, "it is not a superset.", ["/does/not/exist"], ["bridge no-bridge"], {"52:54:00:00:00:01": "other"},
    ]  # fmt: skip
    assert following["machines"] == ["pc-q35-10.0", "q35"]
    assert look({**wanted, "next_start": {}})["next_start"] == {}


def test_a_target_without_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> t.Any:
        raise HostError("This host's Python has no libvirt.")

    monkeypatch.setattr(libvirt, "connect", connect)
    seen = look(needs("/boot/vmlinuz"))
    assert (seen["reachable"], seen["reason"]) == (False, "This host's Python has no libvirt.")
    # The target's answer has them in any case.
    assert [seen[key] for key in ("lacks", "space", "post_copy")] == [[], [], ""]


class Source(t.NamedTuple):
    """A guest of this host that is to leave. ``home``: its own directory."""

    connection: FakeConnection
    home: Path
    survey: t.Callable[[], kinds.Survey]

    def define(
        self, name: str, *places: object, uuid: str = "0705aea1", read_only: bool = False, kind: str = "qcow2"
    ) -> None:
        """A guest with disks at these places."""
        found = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{path}'/><backingStore/>"
            f"<target dev='vd{'abc'[number]}' bus='virtio'/>{'<readonly/>' if read_only else ''}</disk>"
            for number, path in enumerate(places)
        )
        self.connection.defineXML(f"""<domain type='qemu'><name>{name}</name>
          <uuid>{uuid}-1ea0-540a-967e-c710e0d8de07</uuid><memory unit='MiB'>96</memory>
          <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os><devices>{found}</devices></domain>""")


@pytest.fixture
def source(target: FakeConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    """``web``, which is off and has one disk. The target has no objection."""
    for name in ("KEPT_DISKS", "DISK_RECORDS", "RUN", "OVERLAY_FILE", "HOST_FILE"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    monkeypatch.setattr(libvirt, "available", lambda: True)
    monkeypatch.setattr(preflight, "ask", lambda channel, kind: {"identity": {"name": "host2"}})
    monkeypatch.setattr(FakeDomain, "snapshotNum", lambda self: 0, raising=False)
    monkeypatch.setattr(FakeDomain, "listAllCheckpoints", lambda self: [], raising=False)
    channel = types.SimpleNamespace(
        call=lambda word, **more: {"problems": [], "templates": [], "post_copy": "", "space": []}
    )

    def survey() -> kinds.Survey:
        definition = {"name": "web", "disks": [], "networks": [], "address": ""}
        return guest_preflight.survey(
            t.cast("t.Any", None), t.cast("t.Any", channel), definition, {}, {"allow_post_copy": False}
        )

    home = Path(paths.guest_disks_dir("web"))
    home.mkdir(parents=True)
    fake_domains.qcow2(home / "vda.qcow2", 2**20)
    made = Source(target, home, survey)
    made.define("web", home / "vda.qcow2")
    return made


def test_a_guest_that_nothing_keeps_here(source: Source) -> None:
    made = source.survey().plan
    assert (made.blockers, made.warnings) == ((), ())


def test_what_is_no_disk_of_it_is_said_to_stay(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken away from it, say."""
    (source.home / "vdb.raw").write_bytes(b"x")
    made = source.survey().plan
    assert made.blockers == ()
    beside = f"disks: beside what web has as its disks, vdb.raw is in {source.home}"
    assert made.warnings == (f"{beside}: that stays on host1, below {paths.KEPT_DISKS}.",)
    monkeypatch.setattr(guest_disks, "cannot_keep", lambda name: "there are two file systems")
    (said,) = source.survey().plan.blockers
    assert said.startswith(f"{beside}, and there are two file systems. Move away")


def test_what_others_need_does_not_leave_with_it(source: Source, tmp_path: Path) -> None:
    """They would be left without: another guest that reads it, or an image that rests on it. Be it only kept."""
    disk, other = source.home / "vda.qcow2", tmp_path / "pool/other.qcow2"
    source.define("reader", disk, uuid="99999999", read_only=True)
    fake_domains.qcow2(other, 2**20, str(disk), "qcow2")
    (source.home / "vdb.raw").write_bytes(b"x")
    fake_domains.qcow2(tmp_path / "pool/above.qcow2", 2**20, f"{source.home}/vdb.raw", "raw")
    (said,) = source.survey().plan.blockers
    assert said.startswith(
        f"disks: others on host1 need files that go with web: {disk} (guest reader, {other}); "
        f"{source.home}/vdb.raw ({tmp_path}/pool/above.qcow2). Remove these guests or"
    )


def test_what_a_guest_writes_into_its_raw_disk_keeps_no_other_one(source: Source, tmp_path: Path) -> None:
    """Whatever it looks like there. Not so where somebody else reads it as such, or where no guest has written it."""
    disk, raw = source.home / "vda.qcow2", tmp_path / "pool/tenant.raw"
    disk_records.note(str(raw))
    for backing in (str(disk), "x:vda.qcow2"):
        fake_domains.qcow2(raw, 2**20, backing, "qcow2")
        source.define("tenant", raw, uuid="99999999", kind="raw")
        assert source.survey().plan.blockers == ()
        source.define("tenant", raw, uuid="99999999", kind="raw", read_only=True)
        assert f"{disk} ({raw})" in source.survey().plan.blockers[0]
        source.define("tenant", raw, uuid="99999999", kind="raw")
        source.define("reader", raw, uuid="88888888", read_only=True)
        assert f"{disk} ({raw})" in source.survey().plan.blockers[0]
        source.connection.domains.pop("reader")


def test_a_file_server_that_is_gone_keeps_no_guest_that_has_nothing_there(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have all of it: disks, links that lead there, overlays, and what was written down of them."""
    pool, near, disk = Path(paths.KEPT_DISKS) / "pool", tmp_path / "near", source.home / "vda.qcow2"
    dead = pool / "dead"
    for place in (dead, near, Path(paths.WORKLOADS) / "far"):
        place.mkdir(parents=True)
    fake_domains.qcow2(dead / "base.qcow2", 2**20)
    fake_domains.qcow2(dead / "above.qcow2", 2**20, str(disk), "qcow2")
    fake_domains.qcow2(pool / "rests.qcow2", 2**20, f"{dead}/base.qcow2", "qcow2")
    fake_domains.qcow2(near / "rests.qcow2", 2**20, f"{dead}/base.qcow2", "qcow2")
    fake_domains.qcow2(near / "above.qcow2", 2**20, str(disk), "qcow2")
    (pool / "link.qcow2").symlink_to(dead / "above.qcow2")
    (pool / "links").symlink_to(dead)
    (pool / "round").symlink_to(pool / "round")
    (Path(paths.WORKLOADS) / "far/disks").symlink_to(dead)
    for name, path in enumerate((dead / "base.qcow2", pool / "links/above.qcow2", pool / "link.qcow2", pool / "x")):
        source.define(f"other{name}", path, uuid=f"{name}9999999")
    for path in (dead / "above.qcow2", pool / "links/above.qcow2", near / "rests.qcow2", near / "above.qcow2"):
        disk_records.note(str(path))
    with monkeypatch.context() as patch:
        Dead(dead, patch)
        for touched in (os.listdir, os.stat, os.path.realpath):
            with pytest.raises(AssertionError):
                touched(f"{pool}/links")
        made = source.survey().plan
    assert len(made.blockers) == 1
    assert made.blockers[0].startswith(f"disks: others on host1 need files that go with web: {disk} ({near}/above")
    assert made.warnings == ()
    # As soon as the server is there again, and for one that has a disk there.
    (near / "above.qcow2").unlink()
    assert f"{dead}/above.qcow2" in source.survey().plan.blockers[0]
    source.define("web", disk, dead / "own.qcow2")
    fake_domains.qcow2(dead / "own.qcow2", 2**20)
    mounted = f"55 22 0:42 / {dead} rw - nfs 192.0.2.1:/srv rw"
    monkeypatch.setattr(files, "read_mounts", lambda: mounted)
    assert f"{dead}/above.qcow2" in source.survey().plan.blockers[0]


def test_what_is_on_a_file_server_that_is_gone_does_not_move(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and nobody waits for it."""
    dead = tmp_path / "dead"
    dead.mkdir()
    fake_domains.qcow2(dead / "b.qcow2", 2**20)
    source.define("web", source.home / "vda.qcow2", dead / "b.qcow2")
    monkeypatch.setattr(mounts, "_answers", lambda point: point != str(dead))
    with monkeypatch.context() as patch:
        Dead(dead, patch)
        with pytest.raises(HostError, match=f"files: web: {dead}/b.qcow2 is on storage that does not answer"):
            source.survey()
    assert source.survey().plan.blockers == ()


def test_too_many_files_are_told_and_keep_no_guest(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen elsewhere counts."""
    pool, disk = tmp_path / "pool", source.home / "vda.qcow2"
    fake_domains.qcow2(pool / "a", 2**20)
    source.define("other", pool / "a", uuid="99999999")
    monkeypatch.setattr(disks, "MOST_FILES", 2)
    assert source.survey().plan.warnings == ()
    for name in "bc":
        (pool / name).touch()
    made = source.survey().plan
    assert (made.blockers, len(made.warnings)) == ((), 1)
    assert made.warnings[0].startswith(
        f"What rests on the images here is not known: There are more than 2 files in {pool}"
    )
    fake_domains.qcow2(source.home / "old.qcow2", 2**20, str(disk), "qcow2")
    assert f"{disk} ({source.home}/old.qcow2)" in source.survey().plan.blockers[0]


def test_all_domains_are_read_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, made = libvirt.connect, []

    def counted() -> t.Any:
        made.append(1)
        return connect()

    monkeypatch.setattr(libvirt, "connect", counted)
    assert disk_guests.needed({"web": [f"{source.home}/vda.qcow2"]}) == {}
    assert len(made) == 1


def test_an_old_overlay_keeps_the_disk_below_it(source: Source) -> None:
    """In its own directory, too: the disk goes, and that stays."""
    fake_domains.qcow2(source.home / "old.qcow2", 2**20, f"{source.home}/vda.qcow2", "qcow2")
    (said,) = source.survey().plan.blockers
    assert f"{source.home}/vda.qcow2 ({source.home}/old.qcow2)" in said


def test_of_shared_storage_nothing_goes(source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Others have it as before."""
    disk = tmp_path / "pool/vda.qcow2"
    fake_domains.qcow2(disk, 2**20)
    source.define("web", disk)
    source.define("reader", disk, uuid="99999999", read_only=True)
    (source.home / "vda.qcow2").unlink()
    assert "guest reader" in source.survey().plan.blockers[0]
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: True)
    assert source.survey().plan.blockers == ()


@pytest.mark.parametrize(("live", "shared", "kept"), [(True, False, True), (False, False, False), (True, True, False)])
def test_internal_snapshots_keep_what_runs_here(
    source: Source, monkeypatch: pytest.MonkeyPatch, live: bool, shared: bool, kept: bool
) -> None:
    """libvirt does not know of them, and copies what the guest sees. As a file a disk is copied with all it has."""
    with open(source.home / "vda.qcow2", "r+b") as file:
        file.seek(60)
        file.write(struct.pack(">I", 2))
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: shared)
    monkeypatch.setattr(guest_preflight, "_others_need", lambda *args: ([], []))
    if live:
        source.connection.domains["web"].createWithFlags(0)
    said = [one for one in source.survey().plan.blockers if one.startswith("snapshots: ")]
    assert len(said) == kept
    assert all(one.startswith(f"snapshots: {source.home}/vda.qcow2 has internal snapshots (2), which") for one in said)


def test_a_disk_with_its_data_in_another_file_is_kept_here(source: Source) -> None:
    """Of the two only this one would go."""
    with open(source.home / "vda.qcow2", "r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 0b100))
    (said,) = source.survey().plan.blockers
    assert said.startswith(f"disks: {source.home}/vda.qcow2 has its data in another file (")


@pytest.mark.parametrize(
    ("live", "read_only", "how"),
    [(False, False, "Run web with"), (False, True, "Run web with"), (True, True, "Stop web, then run it with"),
     (True, False, "")],
)  # fmt: skip
def test_a_disk_that_rests_on_something_else_than_libvirt_was_told_is_kept_here(
    source: Source, monkeypatch: pytest.MonkeyPatch, live: bool, read_only: bool, how: str
) -> None:
    """The target would refuse it once all of it was there. What runs libvirt itself copies, by what it was told."""
    monkeypatch.setattr(guest_preflight, "_others_need", lambda *args: ([], []))
    disk, base = source.home / "vda.qcow2", paths.template_disk("ab" * 32)
    source.define("web", disk, read_only=read_only)
    fake_domains.qcow2(disk, 2**20, base, "qcow2")
    if live:
        source.connection.domains["web"].createWithFlags(0)
    said = source.survey().plan.blockers
    assert [
        one.startswith(f"disks: {disk} rests on {base}, and libvirt was told that it rests on nothing") for one in said
    ] == ([True] if how else [])
    assert all(f"{how} its description (cnvm.platform.guest) first." in one for one in said)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_link_is_no_disk_that_can_go(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read_only: bool, shared: bool
) -> None:
    """Only the link would: where the guest runs that is all that is removed here. On shared storage nothing goes."""
    link, real = source.home / "vdb.qcow2", tmp_path / "real.qcow2"
    fake_domains.qcow2(real, 2**20)
    link.symlink_to(real)
    source.define("web", link, read_only=read_only)
    (source.home / "vda.qcow2").unlink()
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: shared)
    said = source.survey().plan.blockers
    assert len(said) == (read_only or not shared)
    assert all(one.startswith(f"disks: {link} is a link to {real}, which would stay behind. Stop web") for one in said)
