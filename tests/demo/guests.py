# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A template, five clones of it on two hosts on this machine, and one of them moves to the other host while it runs.

The guests are tiny ones that need no KVM. Exit code 0: all five run, each in one place, and a connection into the one
that moved was kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import typing as t

from ansible_collections.cnvm.platform.tests.support.guests import Pings, Stream, boot, guest
from ansible_collections.cnvm.platform.tests.support.stage import BOLD, GREEN, RED, Outcome, Stage, Teller, run

FIRST = "10.100.101.121"
COUNT, TEMPLATE_MIB, MEMORY_MIB = 5, 64, 96


def timed(stage: Stage, title: str, *args: str) -> tuple[float, list[Outcome]]:
    """A playbook as a step of the demo: its seconds, and what its tasks did."""
    stage.teller.step(title)
    begin = time.monotonic()
    results = stage.play(*args)
    seconds = time.monotonic() - begin
    stage.teller.end()
    return seconds, results


def where(stage: Stage) -> dict[str, list[str]]:
    """Which guests run on which host, by libvirt's word."""
    return {host: stage.ssh(host, "virsh list --name").split() for host in ("host1", "host2")}


def main(stage: Stage, keep: bool) -> int:
    teller = stage.teller
    begin = time.monotonic()
    teller.step("Look for what an earlier demo left")
    stage.down()
    boot(stage)
    stage.ssh("host1", f"dd if=/dev/urandom of=/var/tmp/tiny.raw bs=1M count={TEMPLATE_MIB} status=none")
    both = ["-e", "cnvm_hosts=host1:host2"]
    rows: list[tuple[str, str]] = []
    seconds, _results = timed(
        stage, "Make a template on one host and bring it to the other", "cnvm.platform.vm_create", *both,
        "-e", "template=tiny", "-e", "host_file=/var/tmp/tiny.raw", "-e", "make_host=host1", "-e", "format=raw",
        "-e", "checksum=unverified",
    )  # fmt: skip
    rows.append((f"a template of {TEMPLATE_MIB} MiB on both hosts", f"{seconds:.1f} s"))
    described = guest(
        MEMORY_MIB,
        # Each finds its address by its number: the first has .121.
        "tiny.net=10.100.101.12{index}/24",
        networks=[{"type": "overlay", "address": FIRST}],
        wait_for={"port": 7},
    )
    clones = {
        "template": "tiny", "count": COUNT, "group": "demo", "type": "web", "pattern": "web%d",
        "guest_fleet_guest": described,
    }  # fmt: skip
    seconds, _results = timed(
        stage, f"Make {COUNT} clones, start them, wait until they answer", "cnvm.platform.vm_instantiate", *both,
        "-e", json.dumps(clones),
    )  # fmt: skip
    rows.append((f"{COUNT} clones made, started and answering", f"{seconds:.1f} s"))
    seconds, results = timed(
        stage, "The same again: nothing to do", "cnvm.platform.vm_instantiate", *both, "-e", json.dumps(clones)
    )
    again = sum(bool(one.result.get("changed")) for one in results)
    rows.append(("the same again, with nothing to do", f"{seconds:.1f} s"))
    spread = where(stage)
    rows += [(f"on {host}", ", ".join(sorted(names))) for host, names in spread.items()]
    source = next(host for host, names in spread.items() if "web1" in names)
    target = {"host1": "host2", "host2": "host1"}[source]
    pings, stream = Pings(stage, FIRST), Stream(stage, FIRST)
    pings.settle()
    _seconds, results = timed(
        stage, f"Migrate web1 from {source} to {target}, a connection in use", "cnvm.platform.migrate",
        "-e", "guest=web1", "-e", f"target={target}",
    )  # fmt: skip
    moved = next(one.result for one in results if one.host == source and "frozen_ms" in one.result)
    gap, resets = pings.gap_ms(), stream.check()
    rows += [
        (f"web1 from {source} to {target}", f"{moved['timeline']['total_ms'] / 1000:.1f} s"),
        ("it stood still", f"{moved['frozen_ms']:,.0f} ms"),
        ("longest time without an answer to a ping", f"{gap:,.0f} ms"),
        ("connections reset", str(resets)),
    ]
    show(teller, rows)
    bad = judge(where(stage), target, again, resets)
    stream.close()
    pings.close()
    if bad:
        teller.line(teller.paint("FAILED: ", RED) + "; ".join(bad) + ".")
    else:
        teller.line(teller.paint("0 resets.", GREEN) + f" {COUNT} guests run. {time.monotonic() - begin:.0f} s in all.")
    if keep:
        teller.line("\nThe hosts stay. What there is, and how to take all away:")
        teller.line(f"  {stage.playbook_line('-i', str(stage.inventory), 'cnvm.platform.vm_list')}")
        teller.line(f"  {stage.removal_line()}")
    return int(bool(bad))


def show(teller: Teller, rows: t.Sequence[tuple[str, str]]) -> None:
    teller.line()
    width = max(len(title) for title, _cell in rows)
    for title, cell in rows:
        teller.line(f"  {title.ljust(width)}   {teller.paint(cell, BOLD)}")
    teller.line()


def judge(spread: t.Mapping[str, t.Sequence[str]], target: str, again: int, resets: int) -> list[str]:
    """What is not as it should be."""
    bad = []
    names = sorted(name for each in spread.values() for name in each)
    if names != [f"web{number}" for number in range(1, COUNT + 1)]:
        bad.append(f"these run: {', '.join(names) or 'none'}")
    if "web1" not in spread[target]:
        bad.append(f"web1 does not run on {target}")
    if again:
        bad.append("the second run changed something")
    if resets:
        bad.append("the connection was reset")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./dev demo guests", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--keep", action="store_true", help="leave the hosts up and say how to look at them")
    options = parser.parse_args()
    the_stage = Stage("dev-demo", Teller(sys.stdout))
    sys.exit(run(lambda: main(the_stage, options.keep), the_stage, lambda: options.keep))
