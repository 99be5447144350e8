#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: local_hosts
short_description: Boot real Debian hosts on this machine
version_added: 0.1.0
description:
  - Boots hosts that behave like bare Debian servers (systemd as PID 1, sshd, an address of their own)
    on the machine on which the module runs, with systemd-nspawn. A host costs megabytes and starts in seconds.
  - All hosts share one base, a Debian root file system that is built once and kept in O(cache_dir).
  - Hosts belong to a set. Sets have their own bridge, network and directory, and do not see each other's hosts.
  - Hosts run on the machine's kernel. The base therefore gets a CRIU that works with that kernel,
    see O(flavour).
  - The role P(cnvm.platform.local_hosts#role) makes the key, calls this module once, adds the hosts to the inventory
    and writes an inventory file.
notes:
  - A local host is no jail. Its root has all capabilities and shares the machine's kernel,
    so that it can run containers, CRIU and virtual machines as a server does. Run nothing on it that is not trusted.
  - Memory is shared. A host that idles needs about 40 MiB, a base about 350 MiB on disk.
requirements:
  - A machine with Debian 12 or 13, or Ubuntu 24.04, and root on it. On others the programs must be there.
  - A unified cgroup hierarchy and a kernel with overlayfs, bridges, veth and nftables.
attributes:
  check_mode:
    description: Says what it would do; changes nothing.
    support: full
  diff_mode:
    description: Returns the states of the hosts before and after.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
options:
  hosts:
    description:
      - The hosts, as a number (V(3), V("3")) or as a list. A number means C(host1), C(host2) and so on.
      - Hosts of the set that are not named stay as they are.
      - Left out with O(state=absent), all hosts of the set are meant.
      - Each item is a mapping with the following keys.
      - C(name) (required), a host name of small letters, digits and V(-).
      - C(address), an IPv4 address within O(subnet). Left out, a free one is chosen from the eleventh on.
      - C(state), V(present), V(powered_off) or V(absent), default O(state).
      - C(rate), the rate of the host's link in both directions, such as V(1gbit). V(null) is no limit. Default O(rate).
      - C(link), V(up) or V(down). V(down) takes the link off the bridge, packets vanish and no side is told.
    type: raw
  state:
    description:
      - The state of hosts that do not say otherwise.
      - V(present) makes a host where it is missing and boots it where it does not run.
      - V(powered_off) is a power cut. The host's PID 1 and all it started is killed at once; its disk stays as it is.
        V(present) boots it again.
      - V(absent) removes the host and its disk, and with the last host of the set everything else that is the set's.
    type: str
    choices: [present, powered_off, absent]
    default: present
  set:
    description:
      - The name of the set; 1 to 20 small letters, digits or V(-).
    type: str
    default: default
  rate:
    description:
      - The rate of links of hosts that do not say otherwise, V(64kbit) to V(100gbit). Left out, there is no limit.
    type: str
  suite:
    description:
      - The Debian release of new hosts.
    type: str
    choices: [trixie, bookworm]
    default: trixie
  flavour:
    description:
      - V(bare) has systemd, sshd, python3 and what these need.
      - V(ready) has the packages that P(cnvm.platform.host_bootstrap#role) installs, too.
      - CRIU comes from the suite where that works on the machine's kernel. CRIU 4.1 of trixie does not from Linux 6.16
        on; then C(criu), C(libcompel1), C(libcriu2) and, where it installs alone, C(runc) come from Debian's testing or
        unstable suite. That suite is known to apt only while the base is built, pinned to these packages, and its
        index may be past its date. A V(bare) base then carries the packages in a local directory that is one of its
        apt sources, so that C(apt-get install criu) takes the one that works.
    type: str
    choices: [bare, ready]
    default: ready
  packages:
    description:
      - More Debian packages in the base of new hosts.
    type: list
    elements: str
    default: []
  subnet:
    description:
      - The network between the machine and the hosts; the machine has its first address.
      - Left out, it is the /24 of the first address in O(hosts); where there is none, a free /24 is chosen by the name
        of the set, and kept.
    type: str
  bridge:
    description:
      - The name of the bridge on the machine, up to 15 characters. Left out, it is made from the name of the set.
      - The bridge is made for the set and removed with it. A name that another interface has is refused.
    type: str
  internet:
    description:
      - Whether the hosts reach what the machine reaches, by masquerading (in an nftables table of the set's own)
        and forwarding.
    type: bool
    default: true
  directory:
    description:
      - Where the hosts' disks are. It must be on a plain file system, not on overlayfs or a network.
      - Left out, it is C(/var/lib/cnvm-local-hosts). Where that is on overlayfs, as in a container, a tmpfs is mounted
        there; the hosts' disks are then in memory.
      - As long as the machine has not been booted anew, a set is found where it was made when this is left out, and
        another directory is refused.
    type: path
  cache_dir:
    description:
      - Where bases are kept. They can be removed when no host of any set is there.
    type: path
    required: true
  ssh_key:
    description:
      - The file of an SSH private key that hosts let in as root; the public key is beside it with C(.pub) added.
      - Without a passphrase, because the module logs in once to see whether a host is up.
    type: path
    required: true
  timeout_s:
    description:
      - How many seconds the hosts have to start.
    type: raw
    default: 120
  install_packages:
    description:
      - Whether to install with apt what the machine itself lacks (C(mmdebstrap), C(systemd-container), C(nftables)
        and the like). Otherwise the module fails and names it.
    type: bool
    default: true
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Two hosts with a link of 1 Gbit/s each
  cnvm.platform.local_hosts:
    hosts: 2
    rate: 1gbit
    cache_dir: /var/cache/cnvm-local-hosts
    ssh_key: /root/.ssh/id_ed25519
  become: true

- name: Cut the power of the second one, and the link of the first
  cnvm.platform.local_hosts:
    hosts:
      - name: host1
        link: down
      - name: host2
        state: powered_off
    cache_dir: /var/cache/cnvm-local-hosts
    ssh_key: /root/.ssh/id_ed25519
  become: true

- name: Remove all of them
  cnvm.platform.local_hosts:
    state: absent
    cache_dir: /var/cache/cnvm-local-hosts
    ssh_key: /root/.ssh/id_ed25519
  become: true
"""

RETURN = r"""
hosts:
  description: All hosts of the set as they are now (in check mode, as they would be).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The host's name.
      type: str
      sample: host1
    address:
      description: Its address. Null in check mode where none was chosen yet.
      type: str
      sample: 10.213.77.11
    state:
      description: V(present) when it runs, else V(powered_off).
      type: str
      sample: present
    rate:
      description: The rate of its link.
      type: str
      sample: 1gbit
    link:
      description: Whether its link is V(up) or V(down).
      type: str
      sample: up
    host_key:
      description: Its public SSH host key; null in check mode where it is not made yet.
      type: str
      sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ...
subnet:
  description: The network of the set; null when no host is left.
  returned: success
  type: str
  sample: 10.213.77.0/24
bridge:
  description: The bridge on the machine; null when no host is left.
  returned: success
  type: str
  sample: lh-default
packages:
  description: Packages that this machine lacked; installed unless in check mode.
  returned: success
  type: list
  elements: str
  sample: [mmdebstrap]
base:
  description: The base of new hosts; empty when none was made.
  returned: success
  type: str
  sample: /home/me/.cache/cnvm-platform/local-hosts/5f1d0c3e9b7a4f6a8c2d1e0f9a8b7c6d
timeline:
  description: How long the parts took, in milliseconds.
  returned: success
  type: dict
  sample: {"base_ms": 0, "create_ms": 95, "boot_ms": 2830}
"""

import os
import time
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import local_hosts as lh
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import integer
from ansible_collections.cnvm.platform.plugins.module_utils._host import nspawn
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import diff_of, run_module


def argument_spec() -> dict[str, t.Any]:
    return {
        "hosts": {"type": "raw"},
        "state": {"type": "str", "choices": ["present", "powered_off", "absent"], "default": "present"},
        "set": {"type": "str", "default": "default"},
        "rate": {"type": "str"},
        "suite": {"type": "str", "choices": ["trixie", "bookworm"], "default": "trixie"},
        "flavour": {"type": "str", "choices": ["bare", "ready"], "default": "ready"},
        "packages": {"type": "list", "elements": "str", "default": []},
        "subnet": {"type": "str"},
        "bridge": {"type": "str"},
        "internet": {"type": "bool", "default": True},
        "directory": {"type": "path"},
        "cache_dir": {"type": "path", "required": True},
        "ssh_key": {"type": "path", "required": True},
        "timeout_s": {"type": "raw", "default": 120},
        "install_packages": {"type": "bool", "default": True},
    }


def settings_of(params: t.Mapping[str, t.Any]) -> nspawn.Settings:
    """The options that hold for all hosts, checked."""
    set_name = lh.check_set(params["set"])
    return nspawn.Settings(
        set_name=set_name,
        directory=lh.check_path(params["directory"], "directory") if params["directory"] else None,
        cache_dir=lh.check_path(params["cache_dir"], "cache_dir"),
        subnet=lh.check_subnet(params["subnet"]) if params["subnet"] else None,
        bridge=lh.check_bridge(params["bridge"]) if params["bridge"] else None,
        internet=params["internet"],
        suite=params["suite"],
        flavour=params["flavour"],
        packages=lh.check_packages(params["packages"], "packages"),
        ssh_key=params["ssh_key"],
        timeout_s=integer(params["timeout_s"], "timeout_s", least=5, most=3600),
    )


class Run:
    """One run of the module: look, plan, do."""

    def __init__(self, host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> None:
        self.host = host
        self.check_mode = check_mode
        self.may_install = bool(params["install_packages"])
        self.settings = settings_of(params)
        rate = lh.rate_bits(params["rate"], "rate")
        given, state = params["hosts"], params["state"]
        if given is None and state != "absent":
            raise InputError("hosts: missing.", hint="Allowed: how many, or a list of hosts.")
        self.wanted = lh.read_hosts([] if given is None else given, state=state, rate=rate)
        self.all_absent = given is None or (state == "absent" and given == [])
        self.timeline: dict[str, int] = {}
        self.warnings: list[str] = []

    def timed(self, name: str, work: t.Callable[[], t.Any]) -> t.Any:
        began = time.monotonic()
        result = work()
        self.timeline[f"{name}_ms"] = round((time.monotonic() - began) * 1000)
        return result

    def result(self) -> dict[str, t.Any]:
        if os.geteuid() != 0:
            raise HostError("Local hosts need root on this machine.", hint="Use become: true.")
        with nspawn.waiting_lock(
            f"{nspawn.RUN_DIR}/{self.settings.set_name}.lock", f"The set {self.settings.set_name}", 1800
        ):
            return self._result()

    def _result(self) -> dict[str, t.Any]:
        check = self.check_mode
        hosts = nspawn.LocalHosts(self.host, self.settings)
        actual, leftovers = hosts.actual(), hosts.leftovers()
        wanted = self.wanted
        if self.all_absent:
            wanted = tuple(lh.Wanted(name, state="absent") for name in hosts.directories())
        staying = [host for host in wanted if host.state != "absent"]
        subnet = hosts.subnet(staying) if staying else None
        if subnet is not None:
            known = {name: str(host.address) for name, host in actual.items()}
            leaving = [host.name for host in wanted if host.state == "absent"]
            wanted = lh.assign(wanted, {n: a for n, a in known.items() if n not in leaving}, subnet)
            staying = [host for host in wanted if host.state != "absent"]
        plan = lh.plan(wanted, actual, leftovers)
        made = nspawn.machine_recipe(self.settings) if plan.create else None
        hosts.refuse_other_base([host.name for host in staying])
        running = [host.name for host in staying if host.state == "present"]
        keyless = hosts.keyless([host.name for host in staying if host.name in actual])

        after = {name: host for name, host in actual.items() if name not in plan.remove}
        after.update({host.name: host for host in staying})
        network = hosts.network_state(subnet) if subnet is not None else None
        wanted_network = None
        if subnet is not None:
            address = f"{lh.gateway(subnet)}/{subnet.prefixlen}"
            wanted_network = {"bridge": hosts.bridge, "address": address, "internet": self.settings.internet}
            in_memory = hosts.in_memory()
            if in_memory:
                self.warnings.append(
                    f"{hosts.directory} is on overlayfs, so the hosts' disks are in memory (a tmpfs). "
                    "Set local_hosts_dir to a directory on a disk to have them there."
                )
        missing = nspawn.missing_packages() if staying else []
        if missing and not self.may_install:
            raise HostError(f"This machine lacks the packages {', '.join(missing)}.", hint="Install them.")
        leave_nothing = not after and (bool(actual) or bool(leftovers) or bool(hosts.record))

        before_shown = {
            "hosts": {name: {**host.shown(), "key": name not in keyless} for name, host in sorted(actual.items())},
            "network": network,
            "missing_packages": missing,
        }
        after_shown: dict[str, t.Any] = {
            "hosts": {name: {**host.shown(), "key": True} for name, host in sorted(after.items())},
            "network": wanted_network,
            "missing_packages": [],
        }
        changed = before_shown != after_shown or plan.any() or leave_nothing
        if not check:
            if missing:
                self.timed("packages", lambda: nspawn.install_packages(self.host, missing))
            if made is not None:
                self.timed("base", lambda: hosts.bases.make(made))
            if subnet is not None:
                with hosts.shared():
                    hosts.ensure_home(subnet)
                    if network != wanted_network:
                        hosts.ensure_network(subnet)
            by_name = {host.name: host for host in wanted}
            for name in plan.remove:
                hosts.remove(name)
            for name in plan.power_off:
                hosts.power_off(name)
            if made is not None and subnet is not None:
                began = time.monotonic()
                for name in plan.create:
                    hosts.create(by_name[name], made, subnet)
                self.timeline["create_ms"] = round((time.monotonic() - began) * 1000)
            for name in keyless:
                hosts.let_in(name)

            def start() -> None:
                for name in plan.boot:
                    hosts.boot(name)
                reachable = [n for n in running if n in plan.boot or actual[n].link == "up"]
                hosts.wait(reachable, thorough=plan.boot)

            self.timed("boot", start)
            # A host that was booted anew lost its shaping, and came up with its link on the bridge.
            for host in staying:
                booted = host.name in plan.boot
                if host.name in plan.shape or (booted and host.rate is not None):
                    hosts.shape(host)
                if host.name in plan.links or (booted and host.link == "down"):
                    hosts.link(host)
            if leave_nothing:
                with hosts.shared():
                    hosts.remove_network()
        records = hosts.records()
        return {
            "changed": changed,
            "diff": diff_of(before_shown, after_shown, f"local hosts of the set {self.settings.set_name}"),
            "hosts": [
                {"name": name, **host.shown(), "host_key": records.get(name, {}).get("host_key")}
                for name, host in sorted(after.items())
            ],
            "subnet": str(subnet or hosts.record.get("subnet") or "") or None if after else None,
            "bridge": hosts.bridge if after else None,
            "base": hosts.bases.path(made.digest()) if made is not None else "",
            "packages": missing,
            "timeline": self.timeline,
            "warnings": self.warnings,
        }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the set to what is wanted."""
    return Run(host, params, check_mode).result()


def main() -> None:
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
