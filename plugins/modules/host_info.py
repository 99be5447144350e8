#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: What a host is and what it can do
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Reads in one call what matters for running containers and guests on a host and for moving them to and from it.
  - Works on a bare host, too; what is not installed is returned as not there.
  - Nothing is kept from an earlier run. CRIU itself caches what it learnt about the kernel in C(/run/criu.kdat).
extends_documentation_fragment:
  - cnvm.platform.info_module
options:
  ports:
    description: Ports about which is told who listens on them, such as V(51820/udp).
    type: list
    elements: str
    default: []
  reference_time:
    description:
      - Seconds since 1970 that the host's clock is compared with, usually the controller's.
      - The difference contains the time that it takes to start the module, about half a second.
    type: float
  guests:
    description: Whether to tell what the host can do for guests. Where libvirt is installed it is asked for that.
    type: bool
    default: true
requirements:
  - root, for RV(host_info.criu), RV(host_info.runtimes), RV(host_info.ports), RV(host_info.sshd) and
    RV(host_info.firewall)
  - python3-libvirt, for what libvirt tells in RV(host_info.guests)
seealso:
  - module: cnvm.platform.host_helper
  - module: cnvm.platform.host_trust
"""

EXAMPLES = r"""
- name: Look at the host
  cnvm.platform.host_info:
    reference_time: "{{ now(utc=true).timestamp() }}"
  register: looked

- name: Containers can be moved to and from it
  ansible.builtin.assert:
    that: "'stop_copy' in looked.host_info.modes"
    fail_msg: "{{ looked.host_info.criu.reason or looked.host_info.runtimes.runc.reason }}"
"""

RETURN = r"""
host_info:
  description: The host.
  returned: success
  type: dict
  contains:
    name:
      description: Its name among the hosts, as P(cnvm.platform.host_bootstrap#role) wrote it; empty before.
      type: str
      sample: host1
    host_id:
      description: Its identity in owner records, as the role wrote it; empty before.
      type: str
      sample: 5f0c2b7e9d1a4c3b8e6f7a0912d3c4b5
    machine_digest:
      description: The identity that the role gives a host that has none, from C(/etc/machine-id).
      type: str
      sample: 5f0c2b7e9d1a4c3b8e6f7a0912d3c4b5
    boot_id:
      description: Another one after each boot.
      type: str
      sample: 355a4501-63d8-4048-87b7-15a5f5f50163
    os:
      description: The distribution.
      type: dict
      sample:
        id: debian
        family: debian
        version: "13"
        major_version: "13"
        codename: trixie
        pretty_name: Debian GNU/Linux 13 (trixie)
    kernel:
      description: The kernel's release.
      type: str
      sample: 6.12.48+deb13-amd64
    kernel_modules:
      description: Whether this kernel's modules are installed.
      type: bool
      sample: true
    python:
      description: The Python that the module ran with.
      type: str
      sample: 3.13.5
    user_id:
      description: The effective user id that the module ran as.
      type: int
      sample: 0
    systemd:
      description: Whether the host was booted with systemd.
      type: bool
      sample: true
    sys_resource:
      description: Whether root has the capability SYS_RESOURCE (not in some containers and sandboxes).
      type: bool
      sample: true
    clock:
      description: The host's time in seconds since 1970, and how far it is from O(reference_time).
      type: dict
      sample: {epoch_s: 1795212990.431, skew_s: 0.412}
    cpu:
      description: >-
        The processor. RV(host_info.cpu.signal_frame_bytes) grows with the size of the state that the kernel saves for
        a process: a process that uses a wide state does not fit on a host with a narrow one.
      type: dict
      contains:
        model:
          description: As the processor names itself.
          type: str
          sample: AMD EPYC 7543 32-Core Processor
        vendor:
          description: Who made it.
          type: str
          sample: AuthenticAMD
        architecture:
          description: As the kernel names it.
          type: str
          sample: x86_64
        count:
          description: How many there are (threads).
          type: int
          sample: 8
        flags:
          description: What it can do, sorted.
          type: list
          elements: str
          sample: [aes, avx, avx2, fpu, sse4_2]
        signal_frame_bytes:
          description: The least stack that a signal needs; V(0) where the kernel does not tell.
          type: int
          sample: 3376
    memory:
      description: The memory in bytes.
      type: dict
      sample: {total_bytes: 25276502016, available_bytes: 24153743360}
    storage:
      description: Room and type of the file system for containers and images.
      type: dict
      sample: {path: /var/lib/cnvm, free_bytes: 83187396608, filesystem: ext4}
    cgroup:
      description: Version of the control groups (V(2) for the unified hierarchy) and the controllers of its root.
      type: dict
      sample: {version: 2, controllers: [cpu, io, memory, pids]}
    virtualization:
      description: What the host runs in, and whether guests can run in it.
      type: dict
      contains:
        container:
          description: The kind of container that the host itself is; empty when it is none.
          type: str
          sample: ""
        hypervisor:
          description: Whether the host is a virtual machine.
          type: bool
          sample: false
        cpu_extension:
          description: V(vmx), V(svm), or empty where the processor offers none.
          type: str
          sample: svm
        kvm:
          description: >-
            KVM. C(usable) says that a virtual CPU executed an instruction, which is more than that the device is there.
            A complete guest may need more than that.
          type: dict
          sample: {device: true, usable: true, reason: ""}
    criu:
      description: CRIU on this kernel.
      type: dict
      contains:
        path:
          description: The program; empty where there is none.
          type: str
          sample: /usr/sbin/criu
        version:
          description: Its version.
          type: str
          sample: 4.2.1
        usable:
          description: Whether it works on this kernel, by its own check and by what is known about the two.
          type: bool
          sample: true
        reason:
          description: Why not, and what to do.
          type: str
          sample: ""
        minimum_version:
          description: The oldest version that works on this kernel; empty when any supported one does.
          type: str
          sample: "4.2"
        features:
          description: Each feature of interest; null where this CRIU does not know it.
          type: dict
          sample:
            mem_dirty_track: true
            pagemap_scan: true
            uffd-noncoop: true
            network_lock_nftables: true
            link_nsid: true
            pidfd_store: true
            timens: true
    runtimes:
      description: The OCI runtimes, whether checkpoints work with each, and why not.
      type: dict
      sample:
        runc: {path: /usr/sbin/runc, version: 1.3.6, checkpoint: true, reason: ""}
        crun: {path: "", version: "", checkpoint: false, reason: crun is not installed.}
    modes:
      description: The modes of a move that the host can take part in, the one with the least downtime first.
      type: list
      elements: str
      sample: [pre_copy, post_copy, stop_copy, cold]
    libvirt:
      description: Version of libvirt's daemon; empty where there is none.
      type: str
      sample: 11.3.0
    qemu:
      description: Version of QEMU for this architecture; empty where there is none.
      type: str
      sample: 10.0.13
    guests:
      description: What the host can do for guests; null without O(guests).
      type: dict
      contains:
        report:
          description:
            - What guests need, one check after the other, and what to do where it is not right.
            - Without what is C(needed) there are no guests; without the rest they are slow, or lack something.
          type: list
          elements: dict
          sample:
            - {check: processor, ok: true, needed: false, found: svm, hint: ""}
            - {check: /dev/kvm, ok: true, needed: false, found: "mode 0660, owner root:kvm", hint: ""}
        report_lines:
          description: The same for people.
          type: list
          elements: str
          sample: ["processor: ok (svm)", "/dev/kvm: ok (mode 0660, owner root:kvm)"]
        reachable:
          description: Whether libvirt answers.
          type: bool
          sample: true
        reason:
          description: Why it does not.
          type: str
          sample: ""
        libvirt:
          description: As RV(host_info.libvirt).
          type: str
          sample: 11.3.0
        qemu:
          description: As RV(host_info.qemu).
          type: str
          sample: 10.0.13
        device:
          description: Mode and owner of C(/dev/kvm); null where it is not there.
          type: dict
          sample: {mode: "0660", owner: root, group: kvm}
        modules:
          description: Those modules of KVM that the kernel has, loaded or built in.
          type: list
          elements: str
          sample: [kvm, kvm_amd]
        nested:
          description: Whether guests can have guests with KVM; null where the kernel does not tell.
          type: bool
          sample: true
        programs:
          description: Where the programs are that guests need; empty where they are not.
          type: dict
          sample:
            qemu-img: /usr/bin/qemu-img
            dnsmasq: /usr/sbin/dnsmasq
            virtiofsd: /usr/libexec/virtiofsd
            xorriso: /usr/bin/xorriso
        type:
          description: >-
            How guests run, V(kvm) or V(qemu) (emulated). This and what follows is empty where libvirt does not answer.
          type: str
          sample: kvm
        host_uuid:
          description: What libvirt takes for the identity of the host; two hosts with the same do not migrate guests.
          type: str
          sample: 0d5e6f8a-6f0e-4b8e-9c69-2f9f0d6f3c11
        cpu_model:
          description: The named model that comes nearest to the processor.
          type: str
          sample: EPYC-Rome
        host_model:
          description: What libvirt makes of the CPU model V(host-model).
          type: str
          sample: EPYC-Rome
        usable_models:
          description: The named CPU models that guests can have.
          type: list
          elements: str
          sample: [EPYC, EPYC-Rome, qemu64]
        machines:
          description: The short names of machine types, and what each stands for.
          type: dict
          sample: {pc: pc-i440fx-10.0, q35: pc-q35-10.0}
        machine_types:
          description: All machine types.
          type: list
          elements: str
          sample: [pc-i440fx-10.0, pc-q35-10.0, pc-q35-9.2]
        max_vcpus:
          description: The most CPUs that a guest can have.
          type: int
          sample: 4096
        firmware:
          description: With what guests can boot. Some versions of libvirt do not name the BIOS, which x86 always has.
          type: list
          elements: str
          sample: [bios, efi]
        disk_buses:
          description: How disks can be plugged in.
          type: list
          elements: str
          sample: [fdc, sata, scsi, usb, virtio]
        graphics:
          description: How the screen can be seen.
          type: list
          elements: str
          sample: [dbus, egl-headless, rdp, sdl, vnc]
        filesystems:
          description: How folders can be shared.
          type: list
          elements: str
          sample: [handle, mtp, path, virtiofs]
        security:
          description: What confines guests.
          type: list
          elements: str
          sample: [apparmor]
        default_network:
          description: The network C(default) that many descriptions of guests name.
          type: dict
          sample: {state: active, autostart: true, type: nat, subnet: 192.168.122.0/24}
    wireguard:
      description: Whether the kernel has WireGuard, and whether C(wireguard-go) is installed.
      type: dict
      sample: {kernel: true, userspace: false}
    overlay:
      description: >-
        The overlay network as configured, and whether its bridge is up. Only C(configured) and C(reason) where there
        is none.
      type: dict
      sample:
        configured: true
        reason: ""
        subnet: 10.100.101.0/24
        bridge: cnvm0
        encryption: wireguard
        address: 10.100.101.1
        tunnel: 10.100.100.1
        peers: [host2]
        mtu: 1370
        up: true
    firewall:
      description: >-
        The firewall that drops what comes in: V(firewalld), V(ufw), V(nftables) with the chains that drop, or V(none).
      type: dict
      sample: {kind: none, chains: []}
    ports:
      description:
        - Who listens on those of O(ports) that are in use. The program is empty for sockets of the kernel.
        - The interface is that of WireGuard or VXLAN whose port it is, else empty. Of several that share a port each
          is listed.
      type: list
      elements: dict
      sample: [{port: 51820/udp, program: "", interface: wg0}]
    sshd:
      description: The SSH server's port, and what keeps peers from logging in as root with a key (empty when nothing).
      type: dict
      sample: {port: 22, problem: ""}
    helper:
      description: Version and digest of the helper's library; empty where it is not installed.
      type: dict
      sample: {version: 1.0.0, digest: 9f2b5a2d6a0c5a1df3e6f6a9a6f55c7c7a3c94f5d5f6c0c0d8d6b0a9e1c3f7a2}
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._host import info
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    return {
        "ports": {"type": "list", "elements": "str", "default": []},
        "reference_time": {"type": "float"},
        "guests": {"type": "bool", "default": True},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    found = info.gather(host, params["ports"], params["reference_time"], guests=params["guests"])
    return {"changed": False, "host_info": found}


def main() -> None:
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
