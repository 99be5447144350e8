# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a client waits when a container moves: the teleport against runc checkpoint, scp, runc restore.

Both sides run in turn on the same two local hosts, joined by a link of 1 Gbit/s, with the same image, process and
memory (random bytes). The teleport's client, on a third host, is sent a heartbeat every 5 ms over one connection; the
longest silence is the downtime. Over a second one it asks every 5 ms; the longest wait for an answer has its TCP's next
try in it. Both must hold. The peer's client asks every 5 ms, and opens new connections when the old one is silent.

For a fair peer: the same CRIU options and nftables lock, images in memory, its SSH connection open before, network and
file system on the other host made before.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from ansible_collections.cnvm.platform.tests.support.stage import Failed, Stage, Teller, count, counts, run

SUPPORT = Path(__file__).resolve().parent.parent / "support"
DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/benchmarks.md"
OURS, PEER = "10.100.101.20", "10.100.101.21"
PAUSE_MS = 5
BEGIN, END = "<!-- teleport: begin -->", "<!-- teleport: end -->"
COMMAND = ["python3", "/usr/local/lib/counter.py", "80"]

# Made before the move, on the host that is to have the peer's container.
PEER_PREPARE = f"""
set -e
mkdir -p /run/peer/bundle/rootfs /var/lib/cnvm/peer/upper /var/lib/cnvm/peer/work
rootfs=/var/lib/cnvm/images/sha256/$(cat /var/lib/cnvm/images/names/cnvm)/rootfs
mountpoint -q /run/peer/bundle/rootfs || mount -t overlay overlay \
  -o lowerdir=$rootfs,upperdir=/var/lib/cnvm/peer/upper,workdir=/var/lib/cnvm/peer/work /run/peer/bundle/rootfs
ip netns add peer
mtu=$(cat /sys/class/net/cnvm0/mtu)
ip link add peer0 mtu $mtu type veth peer name eth0 mtu $mtu address 02:00:00:00:00:21 netns peer
ip -n peer addr add {PEER}/24 dev eth0
ip -n peer link set lo up
ip -n peer link set eth0 up
ip link set peer0 up
criu check >/dev/null 2>&1 || true
"""
# Its link is up before: a carrier that comes late is noticed late, up to a second.
PEER_ATTACH = "ip link set peer0 master cnvm0"
# Its first frame tells the bridges on its way where the address is now. It may be lost, and the kernel would ask
# again after a second, so this does.
PEER_ANNOUNCE = (
    "for i in 1 2 3 4 5 6 7 8 9 10; do ip netns exec peer ping -c 1 -W 0.05 $(cat /run/peer/client) >/dev/null 2>&1"
    " && break; ip -n peer neigh flush dev eth0; done"
)
PEER_FLAGS = "--tcp-established --file-locks --manage-cgroups-mode ignore"
PEER_CLEAN = """
runc delete -f peer >/dev/null 2>&1
ip link del peer0 2>/dev/null; ip netns del peer 2>/dev/null
mountpoint -q /run/peer/bundle/rootfs && umount /run/peer/bundle/rootfs
rm -rf /run/peer/images /run/peer/work /run/peer/bundle /var/lib/cnvm/peer
true
"""
# What is timed, on the source.
PEER_MOVE = f"""
set -e
mkdir -p /run/peer/images /run/peer/work
begin=$(date +%s%N)
runc checkpoint {PEER_FLAGS} --tcp-skip-in-flight --image-path /run/peer/images --work-path /run/peer/work peer
dumped=$(date +%s%N)
ip link set peer0 nomaster
scp -q -r -F /run/peer/ssh_config /run/peer/images other:/run/peer/
copied=$(date +%s%N)
ssh -F /run/peer/ssh_config other 'runc restore -d {PEER_FLAGS} --image-path /run/peer/images --work-path /run/peer \
  --bundle /run/peer/bundle peer </dev/null >/dev/null 2>&1 && {PEER_ATTACH} && {{ {PEER_ANNOUNCE}; }}'
end=$(date +%s%N)
echo $(( (dumped - begin) / 1000000 )) $(( (copied - dumped) / 1000000 )) $(( (end - copied) / 1000000 ))
"""


class Heartbeat:
    """A client on the host ``client``."""

    def __init__(self, stage: Stage, address: str, *words: str) -> None:
        program = shlex.join(["python3", "-u", "/run/heartbeat.py", address, "80", str(PAUSE_MS), *words])
        self._process = stage.start(
            stage.ssh_argv("client", f"exec {program}"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._in: t.Any = self._process.stdin
        self._out: t.Any = self._process.stdout

    def report(self) -> dict[str, t.Any]:
        """What happened since the last report."""
        self._in.write("report\n")
        self._in.flush()
        line = self._out.readline()
        if not line:
            raise Failed("The client has ended.")
        return t.cast("dict[str, t.Any]", json.loads(line))

    def settle(self) -> None:
        """Until it has been answered regularly for a second."""
        for dummy in range(60):
            self.report()
            time.sleep(1)
            seen = self.report()
            if seen["requests"] > 20 and seen["silent_ms"] < 200:
                return
        raise Failed("The client gets no answers.")

    def after_move(self) -> dict[str, t.Any]:
        """What happened since the last report, once it is answered again: a wait counts when it has ended."""
        found: dict[str, t.Any] = {"worst_gap_ms": 0.0, "silence_ms": 0.0, "resets": 0, "lost": 0}
        for dummy in range(600):
            time.sleep(0.5)
            seen = self.report()
            found["worst_gap_ms"] = max(found["worst_gap_ms"], seen["worst_gap_ms"])
            found["silence_ms"] = max(found["silence_ms"], seen["silence_ms"])
            found["resets"] += seen["resets"]
            found["lost"] += seen["lost"]
            if seen["requests"] and seen["silent_ms"] < 200:
                return found
        raise Failed("The client gets no answers after the move.")

    def close(self) -> None:
        self._in.close()
        self._process.wait(20)


class Product:
    """The container that teleports."""

    def __init__(self, stage: Stage, mib: int) -> None:
        self.stage, self.on = stage, "host1"
        variables = {"bench_mib": str(mib), "bench_command": COMMAND}
        stage.play(str(SUPPORT / "bench.yml"), "-e", json.dumps(variables))
        self.client = Heartbeat(stage, OURS)
        self.client.settle()

    def move(self, mode: str) -> dict[str, float]:
        target = {"host1": "host2", "host2": "host1"}[self.on]
        self.client.settle()
        arguments = [
            "-e",
            "container=web",
            "-e",
            f"target={target}",
            "-e",
            f"mode={mode}",
            "-e",
            "allow_post_copy=true",
        ]
        results = self.stage.play("cnvm.platform.teleport", *arguments)
        moved = next(one.result for one in results if one.host == self.on and "frozen_ms" in one.result)
        seen = self.client.after_move()
        self.on = target
        return {
            "downtime_ms": seen["silence_ms"],
            "wait_ms": seen["worst_gap_ms"],
            "frozen_ms": moved["frozen_ms"],
            "total_ms": moved["timeline"]["total_ms"],
            "resets": seen["resets"],
            "lost": seen["lost"],
        }

    def close(self) -> None:
        self.client.close()
        self.stage.play(str(SUPPORT / "bench.yml"), "-e", json.dumps({"bench_state": "absent", "bench_host": self.on}))


class Peer:
    """The container that is checkpointed, copied and restored."""

    def __init__(self, stage: Stage, mib: int) -> None:
        self.stage, self.on = stage, "host1"
        spec = json.loads(stage.ssh("host1", "cd /run && rm -f config.json && runc spec && cat config.json"))
        spec["process"].update(args=[*COMMAND, str(mib)], terminal=False)
        spec["process"]["capabilities"] = {
            kind: ["CAP_NET_BIND_SERVICE", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")
        }
        next(one for one in spec["linux"]["namespaces"] if one["type"] == "network")["path"] = "/run/netns/peer"
        self.config = json.dumps(spec)
        client = json.loads(stage.ssh("client", "cat /etc/cnvm/overlay.json"))["self"]["address"]
        for host, other in (("host1", "host2"), ("host2", "host1")):
            stage.ssh(host, PEER_CLEAN)
            stage.ssh(host, "mkdir -p /run/peer; umask 077; cat > /run/peer/key", input_text=stage.key.read_text())
            stage.ssh(host, "cat > /run/peer/client", input_text=client)
            stage.ssh(host, "cat > /run/peer/known_hosts", input_text=stage.known_hosts.read_text())
            stage.ssh(host, "cat > /run/peer/ssh_config", input_text=(
                f"Host other\n HostName {stage.addresses[other]}\n User root\n IdentityFile /run/peer/key\n"
                " UserKnownHostsFile /run/peer/known_hosts\n Ciphers aes128-gcm@openssh.com\n Compression no\n"
                " ControlMaster auto\n ControlPath /run/peer/master\n ControlPersist 600\n"))  # fmt: skip
        self._prepare("host1")
        stage.ssh("host1", "runc run -d --bundle /run/peer/bundle peer </dev/null >/dev/null 2>&1 && " + PEER_ATTACH)
        time.sleep(3 + mib / 100)
        self.client = Heartbeat(stage, PEER, "reconnect")
        self.client.settle()

    def _prepare(self, host: str) -> None:
        self.stage.ssh(host, PEER_PREPARE)
        self.stage.ssh(host, "cat > /run/peer/bundle/config.json", input_text=self.config)

    def move(self, dummy_mode: str) -> dict[str, float]:
        target = {"host1": "host2", "host2": "host1"}[self.on]
        self._prepare(target)
        self.stage.ssh(self.on, "ssh -F /run/peer/ssh_config other true")
        self.client.settle()
        parts = [int(word) for word in self.stage.ssh(self.on, PEER_MOVE, timeout_s=600).split()[-3:]]
        worst = self.client.after_move()["worst_gap_ms"]
        self.stage.ssh(self.on, PEER_CLEAN)
        self.on = target
        return {"downtime_ms": worst, "total_ms": float(sum(parts)), "dump_ms": parts[0], "copy_ms": parts[1],
                "restore_ms": parts[2]}  # fmt: skip

    def close(self) -> None:
        self.client.close()
        for host in ("host1", "host2"):
            self.stage.ssh(host, PEER_CLEAN)


SIDES = ("post_copy", "stop_copy", "peer")


def measure(stage: Stage, mib: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """All sides in turn, each time with another one first."""
    teller = stage.teller
    teller.step(f"{mib} MiB: start both containers")
    product, peer = Product(stage, mib), Peer(stage, mib)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(repeats):
        for at in range(len(SIDES)):
            side = SIDES[(number + at) % len(SIDES)]
            teller.step(f"{mib} MiB, run {number + 1} of {repeats}: {side.replace('_', '-')}")
            found[side].append((peer if side == "peer" else product).move(side))
            teller.end(note=f"{found[side][-1]['downtime_ms']:,.0f} ms")
    product.close()
    peer.close()
    return found


def median(runs: t.Sequence[dict[str, float]], key: str) -> float:
    return round(statistics.median(one[key] for one in runs), 1)


def summary(found: dict[int, dict[str, list[dict[str, float]]]], repeats: int) -> dict[str, t.Any]:
    """One flat object: ratios first, then what they are made of."""
    ratios: dict[str, t.Any] = {}
    rest: dict[str, t.Any] = {"repeats": repeats, "resets": 0, "lost": 0}
    for mib, sides in found.items():
        down = {side: median(runs, "downtime_ms") for side, runs in sides.items()}
        ratios[f"downtime_ratio_{mib}"] = round(down["peer"] / down["post_copy"], 1)
        ratios[f"downtime_ratio_stop_copy_{mib}"] = round(down["peer"] / down["stop_copy"], 2)
        wait = median(sides["post_copy"], "wait_ms")
        ratios[f"wait_ratio_{mib}"] = round(down["peer"] / wait, 1)
        rest[f"teleport_downtime_ms_{mib}"] = down["post_copy"]
        rest[f"teleport_wait_ms_{mib}"] = wait
        rest[f"teleport_frozen_ms_{mib}"] = median(sides["post_copy"], "frozen_ms")
        rest[f"teleport_total_ms_{mib}"] = median(sides["post_copy"], "total_ms")
        rest[f"teleport_stop_copy_downtime_ms_{mib}"] = down["stop_copy"]
        rest[f"teleport_stop_copy_wait_ms_{mib}"] = median(sides["stop_copy"], "wait_ms")
        rest[f"teleport_stop_copy_frozen_ms_{mib}"] = median(sides["stop_copy"], "frozen_ms")
        rest[f"teleport_stop_copy_total_ms_{mib}"] = median(sides["stop_copy"], "total_ms")
        rest[f"peer_downtime_ms_{mib}"] = down["peer"]
        rest[f"peer_total_ms_{mib}"] = median(sides["peer"], "total_ms")
        for part in ("dump", "copy", "restore"):
            rest[f"peer_{part}_ms_{mib}"] = median(sides["peer"], f"{part}_ms")
        for runs in (sides["post_copy"], sides["stop_copy"]):
            rest["resets"] += sum(int(one["resets"]) for one in runs)
            rest["lost"] += sum(int(one["lost"]) for one in runs)
    return {**ratios, **rest}


def rows(result: dict[str, t.Any], sizes: t.Sequence[int]) -> list[list[str]]:
    head = ["memory", "peer / post-copy", "peer / its longest wait"]
    head += ["post-copy", "its frozen time", "its longest wait", "stop-copy", "peer"]
    head += ["total: post-copy", "stop-copy", "peer"]
    made = [head]
    for mib in sizes:
        cells = [f"{mib} MiB", *(f"{result[f'{key}_ratio_{mib}']:g} times" for key in ("downtime", "wait"))]
        for key in (
            "teleport_downtime",
            "teleport_frozen",
            "teleport_wait",
            "teleport_stop_copy_downtime",
            "peer_downtime",
        ):
            cells.append(f"{result[f'{key}_ms_{mib}']:,.0f} ms")
        for key in ("teleport_total", "teleport_stop_copy_total", "peer_total"):
            cells.append(f"{result[f'{key}_ms_{mib}'] / 1000:.1f} s")
        made.append(cells)
    return made


def write_document(result: dict[str, t.Any], sizes: t.Sequence[int]) -> None:
    """Put the table between the two marks of docs/benchmarks.md."""
    head, *body = rows(result, sizes)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *body)]
    lines.append(f"\nMedians of {result['repeats']}. Connections reset: {result['resets']}. "
                 f"Requests lost or answered twice: {result['lost']}.")  # fmt: skip
    text = DOCUMENT.read_text(encoding="utf-8")
    before, dummy, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def main(stage: Stage, options: argparse.Namespace) -> int:
    teller = stage.teller
    sizes = options.sizes
    teller.step("Look for what an earlier run left")
    stage.down()
    stage.play(str(SUPPORT / "stage.yml"), "-e", f"stage_set={stage.name}", steps=True)
    stage.read_addresses()
    stage.ssh("client", "cat > /run/heartbeat.py", input_text=(SUPPORT / "heartbeat.py").read_text())
    result = summary({mib: measure(stage, mib, options.repeats) for mib in sizes}, options.repeats)
    teller.end()
    if options.write:
        write_document(result, sizes)
    if options.json:
        print(json.dumps(result))
    else:
        table = rows(result, sizes)
        widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
        teller.line("\nDowntime seen by the client, medians:")
        for row in table:
            teller.line("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        teller.line(f"\n{result['resets']} resets, {result['lost']} requests lost.")
    return int(bool(result["resets"] or result["lost"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="./dev bench teleport", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--sizes", type=counts, default="64,256,1024", help="MiB of memory, separated by commas")
    parser.add_argument("--repeats", type=count, default=3, help="moves of each kind; the median counts")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--keep", action="store_true", help="leave the hosts up")
    arguments = parser.parse_args()
    the_stage = Stage("dev-bench", Teller(sys.stderr if arguments.json else sys.stdout))
    sys.exit(run(lambda: main(the_stage, arguments), the_stage, lambda: arguments.keep))
