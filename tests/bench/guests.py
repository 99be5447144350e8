# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones, reconciling and live migration of guests, against virt-clone, community.libvirt and virsh migrate.

All sides run in turn on the same two local hosts, joined by a link of 1 Gbit/s, with the same tiny guests without KVM.
A third host pings the guests every 5 ms; the longest time without an answer is the downtime.

For a fair peer: virsh goes through the same encrypted tunnel as ours; its SSH connection is open and its empty target
disk made before; virt-clone's guests are defined and started by loops in a shell of the host itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import yaml

from ansible_collections.cnvm.platform.tests.support.guests import Pings, Stream, boot, guest
from ansible_collections.cnvm.platform.tests.support.stage import Failed, Outcome, Stage, Teller, count, run

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- guests: begin -->", "<!-- guests: end -->"
OURS, PEER = "10.100.101.120", "10.100.101.130"
WORKLOADS = "/var/lib/cnvm/workloads"
CLONES, RECONCILED, MANY, MOVES = 10, 20, 50, 20
MIB = 1 << 20
TEMPLATE_MIB, SMALL_TEMPLATE_MIB, OVERLAY_MIB, MEMORY_MIB, BUSY_MIB = 2048, 400, 300, 160, 24
# Of a guest on the small template: it has room for what the guest writes.
DISK_MIB = 1024
# The peer's way from host to host: one connection that is open before.
PEER_SSH = """Host other
 HostName {address}
 HostKeyAlias {name}
 User root
 IdentityFile /run/peer/key
 UserKnownHostsFile /run/peer/known_hosts
 ControlMaster auto
 ControlPath /run/peer/master
 ControlPersist 3600
"""


# ---------------------------------------------------------------- what measures


class Tasks:
    """One module call on host1 or another host, as a play of its own: how long the task took, and its result."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.file = stage.access / "bench.yml"

    def __call__(self, module: str, options: t.Mapping[str, t.Any], host: str = "host1") -> Outcome:
        return self.all([{"name": "It", module: dict(options)}], host)[-1]

    def all(self, tasks: t.Sequence[t.Mapping[str, t.Any]], host: str = "host1") -> list[Outcome]:
        # The first task connects and finds Python; it is not measured.
        first = {"name": "Connect", "ansible.builtin.command": {"argv": ["true"]}, "changed_when": False}
        play = {"hosts": host, "gather_facts": False, "tasks": [first, *tasks]}
        self.file.write_text(yaml.safe_dump([play]), encoding="utf-8")
        return self.stage.play(str(self.file))


# ---------------------------------------------------------------- clones


def seconds_on_host(stage: Stage, script: str) -> float:
    """How long a script took on host1, by that host's clock."""
    said = stage.ssh("host1", f"set -e\nbegin=$(date +%s%N)\n{script}\nend=$(date +%s%N)\necho $((end - begin))",
                     timeout_s=3600)  # fmt: skip
    return int(said.split()[-1]) / 1e9


def disk_use(stage: Stage, pattern: str) -> int:
    """Bytes that files take up on host1."""
    return int(stage.ssh("host1", f"du -cs --block-size=1 {pattern} | tail -n 1").split()[0])


def clones(stage: Stage, tasks: Tasks, repeats: int) -> dict[str, float]:
    """Linked clones of a template, defined and started, against full copies by virt-clone."""
    one = {"template": "big", "pattern": "clone%d", "count": CLONES}
    stage.ssh(
        "host1", "qemu-img convert -O qcow2 /var/tmp/big.raw /var/lib/libvirt/images/original.qcow2", timeout_s=600
    )
    # No log: virt-clone gives all its clones the same file for that, which virtlogd refuses.
    model = {"name": "model", **guest(64), "serial": "console", "disks": [{"template": "big"}]}
    tasks("cnvm.platform.guest", {"guests": [{**model, "state": "stopped"}]})
    xml = peer_xml(inactive_xml(stage, "model"), "original", "/var/lib/libvirt/images/original.qcow2", 1)
    tasks("cnvm.platform.guest", {"guests": [{"name": "model", "state": "absent", "delete_disks": True}]})
    stage.ssh("host1", "virsh define /dev/stdin", input_text=xml)
    found: dict[str, list[float]] = {"ours": [], "ours_started": [], "peer": [], "peer_start": []}
    disk: dict[str, int] = {}
    for number in range(repeats):
        stage.teller.step(f"{CLONES} clones, run {number + 1} of {repeats}")
        found["ours"].append(
            tasks("cnvm.platform.guest_clone", {**one, "state": "present", "guest": guest(64)}).seconds
        )
        disk["ours"] = disk_use(stage, f"{WORKLOADS}/clone*")
        absent = {**one, "state": "absent", "guest": {"delete_disks": True}}
        tasks("cnvm.platform.guest_clone", absent)
        found["ours_started"].append(tasks("cnvm.platform.guest_clone", {**one, "guest": guest(64)}).seconds)
        disk["ours_started"] = disk_use(stage, f"{WORKLOADS}/clone*")
        tasks("cnvm.platform.guest_clone", absent)
        loop = f"for i in $(seq {CLONES}); do %s; done"
        found["peer"].append(seconds_on_host(
            stage, loop % "virt-clone --original original --name peer$i --auto-clone >/dev/null"))  # fmt: skip
        disk["peer"] = disk_use(
            stage, "/var/lib/libvirt/images/original-*.qcow2 /var/lib/libvirt/images/peer*.qcow2 2>/dev/null"
        )
        found["peer_start"].append(seconds_on_host(stage, loop % "virsh start peer$i >/dev/null"))
        stage.ssh("host1", loop % "virsh destroy peer$i; virsh undefine --remove-all-storage peer$i", timeout_s=600)
        stage.teller.end(note=f"{found['ours'][-1]:.1f} s, {found['peer'][-1]:.1f} s")
    stage.ssh("host1", "virsh undefine --remove-all-storage original")
    ours, peer = median(found["ours"]), median(found["peer"])
    started, peer_started = median(found["ours_started"]), peer + median(found["peer_start"])
    return {
        "clone_ratio": round(peer / ours, 1),
        "clone_start_ratio": round(peer_started / started, 1),
        "clone_disk_ratio": round(disk["peer"] / disk["ours"], 1),
        "clone_s": ours, "clone_started_s": started, "virt_clone_s": peer, "virt_clone_started_s": peer_started,
        "clone_disk_bytes": disk["ours"], "virt_clone_disk_bytes": disk["peer"],
        "clone_started_disk_bytes": disk["ours_started"],
    }  # fmt: skip


# ---------------------------------------------------------------- many guests


def reconcile(stage: Stage, tasks: Tasks, repeats: int) -> dict[str, float]:
    """Guests that are as they should be: one call, against a loop over community.libvirt.virt."""
    guests = [{"name": f"same{number}", "state": "stopped", **guest(64)} for number in range(RECONCILED)]
    stage.teller.step(f"{RECONCILED} guests, nothing to change")
    tasks("cnvm.platform.guest", {"guests": guests})
    xml = [inactive_xml(stage, one["name"]) for one in guests]
    loop = {"name": "It", "community.libvirt.virt": {"command": "define", "xml": "{{ item }}"}, "loop": xml,
            "loop_control": {"label": "it"}}  # fmt: skip
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    for dummy in range(repeats):
        ours = tasks("cnvm.platform.guest", {"guests": guests})
        if ours.result["changed"]:
            raise Failed("A guest was changed that was as it should be.")
        found["ours"].append(ours.seconds)
        found["peer"].append(tasks.all([loop])[-1].seconds)
    tasks("cnvm.platform.guest", {"guests": [
        {"name": one["name"], "state": "absent", "delete_disks": True} for one in guests]})  # fmt: skip
    return {
        "reconcile_ratio": round(median(found["peer"]) / median(found["ours"]), 1),
        "reconcile_s": median(found["ours"]), "community_libvirt_s": median(found["peer"]),
    }  # fmt: skip


def many(stage: Stage, tasks: Tasks, repeats: int) -> dict[str, float]:
    """What is known of many clones: the module, and the inventory."""
    stage.teller.step(f"{MANY} clones: guest_info and the inventory")
    one = {"template": "big", "pattern": "many%d", "count": MANY}
    tasks("cnvm.platform.guest_clone", {**one, "state": "present", "guest": guest(64)})
    info = [tasks("cnvm.platform.guest_info", {}).seconds for dummy in range(repeats)]
    inventory = [inventory_seconds(stage, MANY) for dummy in range(repeats)]
    tasks("cnvm.platform.guest_clone", {**one, "state": "absent", "guest": {"delete_disks": True}})
    return {"info_50_s": median(info), "inventory_50_s": median(inventory)}


def inventory_seconds(stage: Stage, least: int) -> float:
    """How long ``ansible-inventory`` takes with the plugin that asks all hosts; its own start is in it."""
    file = stage.access / "bench.workloads.yml"
    file.write_text(json.dumps({"plugin": "cnvm.platform.workloads", "inventory": [str(stage.inventory)]}))
    program = str(Path(sys.executable).with_name("ansible-inventory"))
    begin = time.monotonic()
    done = subprocess.run([program, "-i", str(file), "--list"], capture_output=True, text=True, check=True)
    took = time.monotonic() - begin
    found = len(json.loads(done.stdout)["_meta"]["hostvars"])
    if found < least:
        raise Failed(f"The inventory has {found} workloads instead of {least}.")
    return took


# ---------------------------------------------------------------- live migration


def inactive_xml(stage: Stage, name: str) -> str:
    """What a guest on host1 will be at its next start."""
    return stage.ssh("host1", f"virsh dumpxml --inactive {name}")


def peer_xml(xml: str, name: str, disk: str, number: int, words: str = "") -> str:
    """The domain of a guest of ours under another name, with a whole disk, for the peer. ``number``: of its UUID and
    MAC; ``words``: for its kernel's command line."""
    root = ET.fromstring(xml)
    for path, text in {"name": name, "uuid": f"6f3c1c1e-0000-4000-8000-{number:012d}"}.items():
        the(root, path).text = text
    root.remove(the(root, "metadata"))
    the(root, "os/cmdline").text = guest(0, words)["cmdline"]
    the(root, "devices/disk/source").set("file", disk)
    for each in root.findall("devices/disk"):
        for below in each.findall("backingStore"):
            each.remove(below)
    for card in root.iterfind("devices/interface/mac"):
        card.set("address", f"52:54:00:ee:00:{number:02x}")
    for log in root.iterfind("devices/*/log"):
        log.set("file", f"/var/log/libvirt/qemu/{name}.console")
    return ET.tostring(root, encoding="unicode")


def the(root: ET.Element, path: str) -> ET.Element:
    """What is there in the XML of each guest of ours."""
    found = root.find(path)
    if found is None:
        raise Failed(f"The guest has no {path} in its XML.")
    return found


# What libvirt tells of the memory of a guest that has moved; of some it tells nothing once that has ended.
TOLD = {
    "memory_sent_bytes": r"Memory processed:\s+([\d.]+) (\w+)",
    "memory_rounds": r"Iteration:\s+(\d+)()",
    "memory_dirty_pages_per_s": r"Dirty rate:\s+(\d+)()",
}
UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}


def job_info(said: str) -> dict[str, float]:
    """The same of ``virsh domjobinfo``."""
    found = {key: re.search(pattern, said) for key, pattern in TOLD.items()}
    return {key: float(one[1]) * UNITS[one[2]] for key, one in found.items() if one and one[2] in UNITS}


class Product:
    """The guest that our playbook moves."""

    name, address = "bench", OURS

    def __init__(self, stage: Stage, tasks: Tasks, words: str) -> None:
        self.stage, self.on = stage, "host1"
        described = guest(
            MEMORY_MIB, f"tiny.net={OURS}/24 {words}", disks=[{"template": "small", "size_mib": DISK_MIB}],
            networks=[{"type": "overlay", "address": OURS}], wait_for={"port": 7},
        )  # fmt: skip
        tasks("cnvm.platform.guest", {"guests": [{"name": self.name, **described}]})
        self._tasks = tasks

    def move(self) -> dict[str, float]:
        """To the other host. ``libvirt_ms``: libvirt's own word for how long it stood still; also what it has TOLD."""
        target = other(self.on)
        results = self.stage.play("cnvm.platform.migrate", "-e", f"guest={self.name}", "-e", f"target={target}")
        moved = next(one.result for one in results if one.host == self.on and "frozen_ms" in one.result)
        self.on = target
        return {"libvirt_ms": moved["libvirt"]["downtime_ms"], "frozen_ms": moved["frozen_ms"],
                "total_ms": moved["timeline"]["total_ms"],
                **{key: moved["libvirt"][key] for key in TOLD if key in moved["libvirt"]}}  # fmt: skip

    def close(self) -> None:
        options = {"guests": [{"name": self.name, "state": "absent", "delete_disks": True}]}
        self._tasks("cnvm.platform.guest", options, self.on)


class Peer:
    """The same guest, moved by virsh. ``xml``: that of ours."""

    name, address = "virsh", PEER
    disk = "/var/lib/libvirt/images/virsh.qcow2"

    def __init__(self, stage: Stage, xml: str, words: str) -> None:
        self.stage, self.on = stage, "host1"
        self._tunnel = {host: tunnel_address(stage, host) for host in ("host1", "host2")}
        for host in self._tunnel:
            settings = PEER_SSH.format(name=other(host), address=self._tunnel[other(host)])
            stage.ssh(
                host, "umask 077; mkdir -p /run/peer /root/.ssh; cat > /run/peer/key", input_text=stage.key.read_text()
            )
            stage.ssh(host, "cat > /run/peer/known_hosts", input_text=stage.known_hosts.read_text())
            stage.ssh(host, "cat > /root/.ssh/config", input_text=settings)
        stage.ssh("host1", f"cp /var/tmp/small.qcow2 {self.disk}", timeout_s=300)
        stage.ssh("host1", f"virsh define /dev/stdin && virsh start {self.name}",
                  input_text=peer_xml(xml, self.name, self.disk, 2, f"tiny.net={PEER}/24 {words}"))  # fmt: skip

    def move(self) -> dict[str, float]:
        """To the other host, with its disk."""
        target = other(self.on)
        self.stage.ssh(target, f"qemu-img create -q -f qcow2 {self.disk} {DISK_MIB}M")
        self.stage.ssh(self.on, "ssh other true")
        begin = time.monotonic()
        self.stage.ssh(
            self.on,
            f"virsh migrate --live --persistent --undefinesource --copy-storage-all {self.name}"
            f" qemu+ssh://other/system tcp://{self._tunnel[target]}",
            timeout_s=1800,
        )
        took = time.monotonic() - begin
        said = self.stage.ssh(target, f"virsh domjobinfo --completed {self.name} || true")
        found = re.search(r"Total downtime:\s+(\d+)", said)
        self.stage.ssh(self.on, f"rm {self.disk}")
        self.on = target
        return {"libvirt_ms": float(found[1]) if found else 0.0, "total_ms": took * 1000, **job_info(said)}

    def close(self) -> None:
        self.stage.ssh(self.on, f"virsh destroy {self.name}; virsh undefine --remove-all-storage {self.name}")


Side = t.Union[Product, Peer]


def other(host: str) -> str:
    return {"host1": "host2", "host2": "host1"}[host]


def tunnel_address(stage: Stage, host: str) -> str:
    """Where a host is inside the encrypted tunnel."""
    return str(json.loads(stage.ssh(host, "cat /etc/cnvm/overlay.json"))["self"]["tunnel"])


def link_bytes(stage: Stage, host: str) -> int:
    """What a host has sent, by its kernel's counter of its link."""
    return int(stage.ssh(host, "cat /sys/class/net/host0/statistics/tx_bytes"))


def used_bytes(stage: Stage, side: Side) -> int:
    """Of its memory: what its QEMU has in memory of it."""
    smaps = stage.ssh(side.on, f"cat /proc/$(cat /run/libvirt/qemu/{side.name}.pid)/smaps")
    for found in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL):
        if int(found[2], 16) - int(found[1], 16) == MEMORY_MIB * MIB:
            return int(found[3]) * 1024
    raise Failed(f"The memory of {side.name} is not to be found in its QEMU.")


def written_bytes(stage: Stage, name: str) -> int:
    """What its disk holds beside the template, once it has written what it should, and is done with that."""
    for dummy in range(600):
        if stage.ssh("host1", f"grep '^sum' /var/log/cnvm/guests/{name}.log || true"):
            return disk_use(stage, f"{WORKLOADS}/{name}/disks/vda.qcow2")
        time.sleep(1)
    raise Failed(f"{name} has not written its disk.")


def bytes_moved(stage: Stage, tasks: Tasks) -> dict[str, float]:
    """A guest that has written 300 MiB on a template of 400 MiB which the target has."""
    stage.teller.step(f"Move a guest with {OVERLAY_MIB} MiB on a template of {SMALL_TEMPLATE_MIB} MiB: ours")
    words = f"tiny.fill={OVERLAY_MIB} tiny.fill_at={SMALL_TEMPLATE_MIB}"
    product = Product(stage, tasks, words)
    written = written_bytes(stage, product.name)
    used = used_bytes(stage, product)
    # It is the peer's disk, too: the same content, whole.
    stage.ssh("host1", f"virsh suspend {product.name} && qemu-img convert -U -O qcow2"
              f" {WORKLOADS}/{product.name}/disks/vda.qcow2 /var/tmp/small.qcow2; virsh resume {product.name}",
              timeout_s=600)  # fmt: skip
    xml = inactive_xml(stage, product.name)
    before = link_bytes(stage, product.on)
    source = product.on
    product.move()
    ours = link_bytes(stage, source) - before
    product.close()
    stage.teller.end(note=f"{ours / MIB:,.0f} MiB")
    stage.teller.step("The same by virsh migrate --copy-storage-all")
    peer = Peer(stage, xml, "")
    pings = Pings(stage, PEER)
    pings.settle()
    pings.close()
    before, source = link_bytes(stage, peer.on), peer.on
    peer.move()
    theirs = link_bytes(stage, source) - before
    peer.close()
    stage.teller.end(note=f"{theirs / MIB:,.0f} MiB")
    return {
        "migrate_bytes_over_limit": round(ours / (1.1 * (used + written)), 3),
        "migrate_bytes_ratio": round(theirs / ours, 2),
        "migrate_bytes": ours, "virsh_migrate_bytes": theirs, "migrate_used_bytes": used,
        "migrate_written_bytes": written,
    }  # fmt: skip


def dirtied_mb_s(stage: Stage, side: Product, seconds: float = 20) -> float:
    """How much of its memory the busy guest writes over each second, by what it says of it."""
    stage.teller.step("Downtime, busy: how much it writes")
    log = f"/var/log/cnvm/guests/{side.name}.log"
    counts, times = [], []
    for pause in (0.0, seconds):
        time.sleep(pause)
        times.append(time.monotonic())
        counts.append(int(stage.ssh(side.on, f"grep -c ^dirtied {log} || true")))
    rate = round((counts[1] - counts[0]) * BUSY_MIB * MIB / 1e6 / (times[1] - times[0]), 1)
    stage.teller.end(note=f"{rate:,.1f} MB/s")
    return rate


def downtime(stage: Stage, tasks: Tasks, repeats: int) -> dict[str, float]:
    """How long a ping is not answered, for a guest that idles and for one that writes to its memory."""
    found: dict[str, float] = {}
    stage.ssh("host1", f"qemu-img create -q -f qcow2 /var/tmp/small.qcow2 {DISK_MIB}M")
    for kind, words in (("idle", "tiny.tick=10"), ("busy", f"tiny.dirty={BUSY_MIB}")):
        stage.teller.step(f"Downtime, {kind}: start both guests")
        product = Product(stage, tasks, words)
        peer = Peer(stage, inactive_xml(stage, product.name), words)
        sides: dict[str, Side] = {"ours": product, "peer": peer}
        if kind == "busy":
            found["guest_dirtied_mbps"] = dirtied_mb_s(stage, product)
        gaps: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for number in range(repeats):
            for key in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                stage.teller.step(f"Downtime, {kind}, run {number + 1} of {repeats}: {key}")
                # Only the one that moves is pinged: where the tunnel is a program, that is work for two cores.
                pings = Pings(stage, sides[key].address)
                pings.settle()
                moved = sides[key].move()
                gaps[key].append({**moved, "gap_ms": pings.gap_ms()})
                pings.close()
                stage.teller.end(note=f"{gaps[key][-1]['gap_ms']:,.0f} ms")
        for side in sides.values():
            side.close()
        ours, theirs = (median([one["gap_ms"] for one in gaps[key]]) for key in ("ours", "peer"))
        found[f"guest_downtime_ratio_{kind}"] = round(ours / theirs, 2)
        found[f"guest_downtime_{kind}_ms"] = ours
        found[f"virsh_downtime_{kind}_ms"] = theirs
        found[f"guest_frozen_{kind}_ms"] = median([one["frozen_ms"] for one in gaps["ours"]])
        found[f"guest_total_{kind}_ms"] = median([one["total_ms"] for one in gaps["ours"]])
        found[f"virsh_total_{kind}_ms"] = median([one["total_ms"] for one in gaps["peer"]])
        for (whose, moves), key in itertools.product(gaps.items(), TOLD):
            values = [one[key] for one in moves if key in one]
            if values:
                found[f"{'guest' if whose == 'ours' else 'virsh'}_{kind}_{key}"] = median(values)
    return found


def in_a_row(stage: Stage, tasks: Tasks, moves: int) -> dict[str, float]:
    """A ping and a TCP stream into a guest that moves again and again."""
    product = Product(stage, tasks, "")
    pings, stream = Pings(stage, OURS), Stream(stage, OURS)
    ratios, resets, gaps, waits = [], 0, [], []
    for number in range(moves):
        stage.teller.step(f"Migration {number + 1} of {moves} with a ping and a TCP stream")
        pings.settle()
        stream.gap_ms()
        moved = product.move()
        gaps.append(pings.gap_ms())
        ended = stream.check()
        waits.append(stream.gap_ms())
        if ended:
            resets += 1
            stream.close()
            stream = Stream(stage, OURS)
        ratios.append(max(gaps[-1], waits[-1]) / (1.5 * moved["libvirt_ms"] + 200))
        stage.teller.end(note=f"{gaps[-1]:,.0f} ms, {waits[-1]:,.0f} ms")
    pings.close()
    stream.close()
    product.close()
    return {
        "guest_resets": resets, "guest_gap_ratio": round(max(ratios), 2), "guest_moves": moves,
        "guest_gap_worst_ms": round(max(gaps), 1), "guest_stream_gap_worst_ms": round(max(waits), 1),
    }  # fmt: skip


# ---------------------------------------------------------------- what comes of it


def median(values: t.Sequence[float]) -> float:
    return round(statistics.median(values), 2)


ROWS: t.Sequence[tuple[str, str, str, str, str]] = (
    # what, our key, the peer's key, the ratio's key, the goal
    ("10 linked clones defined; `virt-clone` ten times", "clone_s", "virt_clone_s", "clone_ratio", "≥ 20"),
    ("the same, and started, in one call; and `virsh start` ten times", "clone_started_s", "virt_clone_started_s",
     "clone_start_ratio", ""),
    ("their disks, not started", "clone_disk_bytes", "virt_clone_disk_bytes", "clone_disk_ratio", "≥ 20"),
    ("20 guests, no change; a loop of `community.libvirt.virt`", "reconcile_s", "community_libvirt_s",
     "reconcile_ratio", "≥ 10"),
    ("bytes of a live migration; `virsh migrate --copy-storage-all`", "migrate_bytes", "virsh_migrate_bytes",
     "migrate_bytes_ratio", "≥ 1.5"),
    ("downtime, idle guest; `virsh migrate`", "guest_downtime_idle_ms", "virsh_downtime_idle_ms",
     "guest_downtime_ratio_idle", "≤ 1, and ≤ 100 ms"),
    ("downtime, busy guest; `virsh migrate`", "guest_downtime_busy_ms", "virsh_downtime_busy_ms",
     "guest_downtime_ratio_busy", "≤ 1"),
)  # fmt: skip
ALONE: t.Sequence[tuple[str, str, str]] = (
    ("bytes of it, as a part of 1.1 times (used memory + what it has written)", "migrate_bytes_over_limit",
     "≤ 1"),
    ("what the busy guest writes to its memory, in MB/s", "guest_dirtied_mbps", "≥ 20"),
    ("connections reset in 20 migrations", "guest_resets", "0"),
    ("longest gap of a ping or of the stream, as a part of 1.5 times libvirt's downtime + 200 ms", "guest_gap_ratio",
     "≤ 1"),
    ("`guest_info` of 50 clones", "info_50_s", "≤ 2 s"),
    ("the inventory with 50 clones", "inventory_50_s", "≤ 2 s"),
)  # fmt: skip


def cell(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return f"{value / MIB:,.1f} MiB"
    if key.endswith("_ms"):
        return f"{value:,.0f} ms"
    return f"{value:,.2f} s" if key.endswith("_s") else f"{value:g}"


def rows(result: t.Mapping[str, float]) -> list[list[str]]:
    made = [["what; its peer", "ours", "peer", "ratio", "goal"]]
    for what, ours, peer, ratio, goal in ROWS:
        if ours in result:
            made.append([what, cell(ours, result[ours]), cell(peer, result[peer]), f"{result[ratio]:g}", goal])
    for what, key, goal in ALONE:
        if key in result:
            made.append([what, cell(key, result[key]), "", "", goal])
    return made


def write_document(result: t.Mapping[str, float]) -> None:
    """Put the table between the two marks of docs/benchmarks.md."""
    head, *body = rows(result)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", *["---:"] * 4], *body)]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, dummy, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


PARTS: t.Sequence[str] = ("clones", "many", "reconcile", "bytes", "downtime", "row")


def main(stage: Stage, options: argparse.Namespace) -> int:
    teller = stage.teller
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        raise Failed(f"--parts: there are {', '.join(PARTS)}.")
    if options.write and set(parts) != set(PARTS):
        raise Failed(
            "--write: the table is of a whole run, and would lose the other rows. Leave --parts or --write out."
        )
    teller.step("Look for what an earlier run left")
    stage.down()
    # community.libvirt wants lxml.
    boot(stage, ["virtinst", "python3-lxml"])
    tasks = Tasks(stage)
    result: dict[str, float] = {}
    if {"clones", "many"} & set(parts):
        big_template(stage, tasks)
    if "clones" in parts:
        result |= clones(stage, tasks, options.repeats)
    if "many" in parts:
        result |= many(stage, tasks, options.repeats)
    if "reconcile" in parts:
        result |= reconcile(stage, tasks, options.repeats)
    if {"bytes", "downtime", "row"} & set(parts):
        small_template(stage, tasks)
    if "bytes" in parts:
        result |= bytes_moved(stage, tasks)
    if "downtime" in parts:
        result |= downtime(stage, tasks, options.repeats)
    if "row" in parts:
        result |= in_a_row(stage, tasks, options.moves)
    teller.end()
    if options.write:
        write_document(result)
    if options.json:
        print(json.dumps(result))
    else:
        table = rows(result)
        widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
        for row in table:
            teller.line("  " + "  ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)))
    return int(bool(result.get("guest_resets")))


def big_template(stage: Stage, tasks: Tasks) -> None:
    """On host1, which keeps what it was made from."""
    stage.teller.step(f"A template of {TEMPLATE_MIB} MiB")
    stage.ssh("host1", f"dd if=/dev/urandom of=/var/tmp/big.raw bs=1M count={TEMPLATE_MIB} status=none", timeout_s=600)
    tasks("cnvm.platform.template", {"name": "big", "source": "/var/tmp/big.raw", "format": "raw",
                                     "checksum": "unverified"})  # fmt: skip


def small_template(stage: Stage, tasks: Tasks) -> None:
    """On both hosts, with the same digest."""
    stage.teller.step(f"A template of {SMALL_TEMPLATE_MIB} MiB on both hosts")
    stage.ssh("host1", f"dd if=/dev/urandom of=/var/tmp/small.raw bs=1M count={SMALL_TEMPLATE_MIB} status=none")
    tasks("cnvm.platform.template", {"name": "small", "source": "/var/tmp/small.raw", "format": "raw",
                                     "checksum": "unverified"})  # fmt: skip
    stage.ssh("host1", "rm /var/tmp/small.raw")
    tasks("cnvm.platform.template", {"name": "small", "peer": "host1"}, "host2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./dev bench guests", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--parts", default=",".join(PARTS), help="only these, separated by commas")
    parser.add_argument("--repeats", type=count, default=3, help="measurements of each kind; the median counts")
    parser.add_argument("--moves", type=count, default=MOVES, help="migrations in a row")
    parser.add_argument("--write", action="store_true", help="put the table of a whole run into docs/benchmarks.md")
    parser.add_argument("--keep", action="store_true", help="leave the hosts up")
    arguments = parser.parse_args()
    the_stage = Stage("dev-bench", Teller(sys.stderr if arguments.json else sys.stdout))
    sys.exit(run(lambda: main(the_stage, arguments), the_stage, lambda: arguments.keep))
