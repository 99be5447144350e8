#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest
short_description: Virtual machines of a host, each in exactly one place
version_added: 0.1.0
description:
  - Creates, changes, starts, pauses, stops and removes the guests (libvirt domains) of a host. One call takes all of
    them, and one that has nothing to do costs milliseconds for each.
  - A guest is described in full by its options; what is left out is as by default. An item that has no more than
    O(guests[].name), O(guests[].state), O(guests[].autostart) and the options of stopping and waiting changes only the
    state of a guest that is there.
  - B(Nothing is left out silently.) What differs is compared in the stored definition and in the guest that runs. What
    a running guest can take over (memory, virtual CPUs, disks, network cards, CDs, tags) it is given at once. The rest
    is stored, and RV(guests[].restart_required) and RV(guests[].restart_reasons) say so until it was restarted.
  - B(Exactly one.) A guest runs in one place. When it was moved to another host, this module does nothing for it and
    returns where it is. Before it creates one it asks all hosts of the overlay whether they have the name, the address,
    the UUID or a MAC, and refuses when one of them does, or does not answer.
  - UUID and MACs follow from the name and stay what they are.
  - Storage that does not answer (a file server that is gone) holds nobody up. A call that would describe, start or
    remove a guest with a file there is refused, and says which file; without that guest the others are made and
    changed.
extends_documentation_fragment:
  - cnvm.platform.peers
options:
  guests:
    description:
      - The guests, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      name:
        description:
          - Name of the guest. It stands for one guest or container on all hosts of the overlay.
          - 1 to 63 letters, digits, V(_), V(.) or V(-), the first one a letter or a digit; not digits alone.
        type: raw
        required: true
      state:
        description:
          - V(running) creates it if need be, starts or resumes it, and lets it start with the host.
          - V(present) creates it if need be, and leaves it running or stopped.
          - V(stopped) creates it if need be, and shuts it down, also for the next boot of the host.
          - V(paused) creates and starts it if need be, and lets it stand still.
          - V(absent) stops and removes it with its NVRAM, saved memory, snapshots and seed. Its disks are kept, see
            O(guests[].delete_disks). Refused while another guest has a file of its directory, or an image rests on one;
            also while storage that may have such an image does not answer.
          - Where a disk stays that rests on a template is remembered, as it is when a disk is taken away from a guest.
            That template cannot be removed before the file is, or is flattened.
        type: str
        choices: [present, running, stopped, paused, absent]
        default: running
      uuid:
        description: UUID of a new guest. Default is one that stands for its name on all hosts.
        type: str
      description:
        description: A text of your own.
        type: str
      tags:
        description:
          - Texts of your own by name, kept with the guest wherever it goes. C(group), C(type) and C(template) are those
            that the inventory groups by.
        type: dict
      memory_mib:
        description: Memory in MiB, a whole number from 8. Required to describe a guest.
        type: raw
      max_memory_mib:
        description:
          - Memory up to which a running guest can be given more, by a later O(guests[].memory_mib). Default is as much
            as O(guests[].memory_mib).
          - A running guest has another maximum when it is started again.
          - A guest starts with all of it, and gives back what is above O(guests[].memory_mib) when its kernel's driver
            C(virtio_balloon) is up. As long as it has more, a warning says so.
        type: raw
      vcpus:
        description: Virtual CPUs. Default is 1.
        type: raw
      max_vcpus:
        description:
          - Virtual CPUs that a running guest can be given later. Default is as many as O(guests[].vcpus).
          - A running guest has another maximum when it is started again.
        type: raw
      cpu:
        description:
          - The CPU that it sees.
        type: dict
        suboptions:
          model:
            description:
              - V(auto) is V(host-model) with KVM and V(qemu64) without; on another architecture than x86, where there
                is neither, V(host-passthrough), and without KVM V(maximum). V(host-model) is as much of the host's CPU
                as can be described, and moves to hosts that have as much. V(host-passthrough) does not move. Otherwise
                the name of a model, such as V(EPYC).
            type: str
            default: auto
          features:
            description: Features that the model lacks, or must lack.
            type: list
            elements: dict
            suboptions:
              name:
                description: Name of the feature, such as V(vmx).
                type: str
                required: true
              policy:
                description: What is demanded of it, in libvirt's words.
                type: str
                choices: [require, optional, disable, force, forbid]
                default: require
      accelerator:
        description:
          - V(auto) takes KVM when a guest really executes something with it (on x86; elsewhere, when one can be made),
            else the guest is emulated, which is slow and said in a warning. V(kvm) fails instead. V(tcg) emulates.
          - Of a guest that is there it is looked at again when it is started. One that has run with KVM, on a host
            that cannot by now, has to be described again then.
        type: str
        choices: [auto, kvm, tcg]
      machine:
        description:
          - Machine, as V(q35), V(pc), or a version of one. Default is V(q35). A guest keeps the version that it has.
        type: str
      firmware:
        description: Firmware. Default is V(bios).
        type: str
        choices: [bios, uefi]
      secure_boot:
        description:
          - Whether UEFI starts only what is signed. Default is V(false).
          - The keys are in the file with the guest's UEFI variables (NVRAM), beside its boot entries. So a change is
            refused as long as there is such a file from before. With the guest stopped, move it away; libvirt makes a
            new one at the next start.
        type: bool
      kernel:
        description: Kernel on the host that is booted instead of what is on the disks; an absolute path.
        type: str
      initrd:
        description: Initial RAM disk that goes with O(guests[].kernel).
        type: str
      cmdline:
        description: Command line that goes with O(guests[].kernel).
        type: str
      boot:
        description: What is tried in which order to boot from. Default is V(disk), then V(cdrom).
        type: list
        elements: str
        choices: [disk, cdrom, network]
      disks:
        description:
          - The disks. One that is left out of a guest that has it is taken away from it; its file is kept.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - Name of the disk in the guest, such as V(vda) on the bus V(virtio), or V(sdc) on the others. Default is
                the next free one. V(sda) and V(sdb) are the CD drives.
            type: str
          path:
            description:
              - File on the host, or a block device below C(/dev) with O(guests[].disks[].format=raw). A file that is
                there is used as it is, if it is sound and rests on no file from elsewhere, nor on one to which another
                guest writes.
              - Default is a file in the guest's own directory, or in O(guests[].disks[].pool).
            type: str
          pool:
            description:
              - Name of a libvirt pool in whose directory the file lies. See M(cnvm.platform.pool).
              - Before a disk is given another one, stop the guest and move the file into its directory.
            type: raw
          template:
            description:
              - Name or digest of a template of this host from which the disk is made. The disk stays with this template
                when the name stands for another one later. One that was made without gets none later.
            type: raw
          linked:
            description:
              - Whether the disk rests on the template and holds only what differs, or is a full copy of it.
              - It says how a disk is made. One that rests on its template, and is to be a full copy now, stays as it
                is, with a warning.
            type: bool
            default: true
          size_mib:
            description:
              - Size in MiB. A disk that is smaller grows, also while the guest runs; one that is larger is refused, and
                so is growth where libvirt keeps the guest's memory (C(virsh managedsave)).
              - Required for an empty disk. Default is the template's size.
            type: raw
          format:
            description: Format of the file.
            type: str
            choices: [qcow2, raw]
            default: qcow2
          bus:
            description:
              - Bus. Disks on V(sata) cannot be added or taken away while the guest runs.
              - A disk is known by its name, which says its bus. So one that is given another bus is refused, unless the
                guest is stopped and the disk's file is given as O(guests[].disks[].path).
            type: str
            choices: [virtio, scsi, sata]
            default: virtio
          cache:
            description: How the host caches. A guest with local disks can be moved only with V(none) or V(directsync).
            type: str
            choices: [none, writeback, writethrough, directsync, unsafe]
            default: none
          read_only:
            description: Whether the guest may not write to it. Not on the bus V(sata).
            type: bool
            default: false
          serial:
            description: Serial number that the guest sees, by which it finds the disk below C(/dev/disk/by-id).
            type: str
      cdrom:
        description:
          - ISO image in the CD drive; an absolute path. It can be changed while the guest runs. Left out it is taken
            out of the drive, which itself goes when the guest is started anew.
          - A new one must have the file system of a CD or DVD (ISO 9660 or UDF), and all of it as far as ISO 9660 says.
        type: str
      networks:
        description:
          - The network cards. One that is left out of a guest that has it is taken away from it.
        type: list
        elements: dict
        suboptions:
          type:
            description:
              - V(network) is a network of libvirt (see M(cnvm.platform.network)), V(bridge) a bridge of the host,
                V(overlay) the network that all hosts share.
            type: str
            choices: [network, bridge, overlay]
            default: network
          source:
            description: Name of the network or of the bridge. Default is the network V(default).
            type: raw
          mac:
            description:
              - MAC of the card, in quotes, unique on all hosts. Default is one that stands for the guest's name and the
                card's place in the list.
            type: raw
          model:
            description: Model of the card.
            type: str
            choices: [virtio, e1000, e1000e, rtl8139, igb]
            default: virtio
          address:
            description:
              - The guest's IPv4 address on the overlay, unique on all hosts. cloud-init is told to set it, unless
                O(guests[].cloud_init) has a C(network_config).
            type: str
      graphics:
        description:
          - The screen. Without it the guest has its serial console only.
        type: dict
        suboptions:
          type:
            description: Kind of screen.
            type: str
            choices: [none, vnc]
            default: none
          listen:
            description:
              - Address of the host at which the screen can be seen. Default is V(127.0.0.1); reach it through an SSH
                tunnel. V(0.0.0.0) shows it to everybody who reaches the host, which is said in a warning.
            type: str
          port:
            description: Port, from 5900. Default is the next free one.
            type: raw
          password:
            description: Password in quotes, of up to 8 bytes. VNC protects it and the screen badly.
            type: str
      serial:
        description:
          - The serial console. V(console) is for C(virsh console); V(log) writes it to
            C(/var/log/cnvm/guests/NAME.log), too. What a guest said before it moved away is kept with the logs of the
            move. Default is V(console).
        type: str
        choices: [console, log, none]
      shared_folders:
        description:
          - Directories of the host that the guest can mount, with C(mount -t virtiofs TAG PLACE) or
            C(mount -t 9p TAG PLACE); Debian's kernels for clouds have no 9p. A guest with one cannot be moved.
        type: list
        elements: dict
        suboptions:
          source:
            description: Absolute path on the host.
            type: str
            required: true
          tag:
            description: Name by which the guest mounts it.
            type: str
            required: true
          driver:
            description: How it is shared.
            type: str
            choices: [virtiofs, 9p]
            default: virtiofs
          read_only:
            description: Whether the guest may not write there.
            type: bool
            default: false
      cloud_init:
        description:
          - What cloud-init in the guest is told at boot, by a second CD. The guest's name and overlay address are added
            where these data do not name others.
        type: dict
        suboptions:
          type:
            description: Kind of the seed.
            type: str
            choices: [nocloud, configdrive]
            default: nocloud
          user_data:
            description: Text or mapping. Broken YAML, and what cloud-init would ignore, is said before the guest boots.
            type: raw
          meta_data:
            description: Text or mapping.
            type: raw
          network_config:
            description: Text or mapping.
            type: raw
          vendor_data:
            description: Text or mapping.
            type: raw
          check_user_data:
            description: Whether user and vendor data are looked at.
            type: bool
            default: true
          policy:
            description:
              - What happens when the data change. With V(new_instance) the guest takes itself for a new one at its next
                start, and cloud-init does everything again, also new SSH host keys. With V(keep) it does only what it
                does at every boot.
            type: str
            choices: [new_instance, keep]
            default: new_instance
      agent:
        description: Whether it has a channel for the QEMU guest agent. Default is V(true).
        type: bool
      autostart:
        description:
          - Whether it starts with the host. Default is what follows from O(guests[].state).
        type: bool
      stop_timeout_s:
        description: Seconds that it has to shut down.
        type: raw
        default: 90
      force_stop:
        description: Whether it is turned off when it has not shut down in time. Else the module fails, when all others
          are as they are wanted.
        type: bool
        default: false
      delete_disks:
        description:
          - With O(guests[].state=absent), whether the disks that this module made are removed. Files and devices that
            were there before are never removed, nor is what was written to them since a snapshot.
          - All else in the guest's own directory is kept below C(/var/lib/cnvm/kept-disks). Without this option, its
            disks are, too.
          - One that runs, and all of whose disks go, is turned off at once. Else it shuts down first.
        type: bool
        default: false
      wait_for:
        description:
          - What to wait for, with O(guests[].state=running).
        type: dict
        suboptions:
          address:
            description:
              - Wait until an address of it was really seen (a lease, by its agent, or by ARP). Of a guest that is
                started here, what was seen before does not count.
            type: bool
            default: false
          ssh:
            description: Wait until an SSH server greets on port 22.
            type: bool
            default: false
          cloud_init:
            description:
              - Wait until cloud-init is done. Needs the agent in the guest, or O(guests[].serial=log).
              - Its errors are returned as warnings where the agent may read its C(/run/cloud-init/result.json). What is
                written on the console, or known from an earlier call, says that it is done, and not how.
              - Once it was waited for, that is known until the guest is started again, wherever it is moved.
            type: bool
            default: false
          port:
            description: Wait until somebody accepts connections on this TCP port.
            type: raw
          timeout_s:
            description: Seconds after which the module fails.
            type: raw
            default: 300
  adopt:
    description:
      - Whether a domain of the same name that this module has not made is taken over. It keeps its UUID and, in their
        order, the MACs of its cards; all else that has an option becomes what is described. Look at it in check and
        diff mode first.
      - An option that is left out stands for its default, also O(guests[].machine) and O(guests[].firmware). A warning
        says where it has another one so far.
      - What has no option (limits of disks, pinned CPUs, other devices) stays as it is, unless it contradicts what is
        described. So the topology of the CPU goes with another number of them, and with a SPICE screen goes what only
        that serves (its channels, USB redirection, 3D acceleration).
      - A disk called V(sda) or V(sdb) needs another name. A guest that runs has it from its next start on.
      - What is not described is taken from a guest that runs, too, where that can be - disks, cards, and the CD in
        V(sda), be it what its cloud-init reads.
      - A disk that rests on an image from elsewhere (a linked clone) rests on it still. Such a guest cannot be moved
        before the disk was flattened; see M(cnvm.platform.disk_image).
      - Arguments that go past libvirt (C(qemu:commandline)) stay, too, and are not looked at; a warning names them. A
        guest with such cannot be moved.
    type: bool
    default: false
  restart_on_change:
    description:
      - Whether a running guest is shut down and started again for a change that it cannot take over while it runs.
      - Where that was cut off the next run starts it, also with O(guests[].state=present), unless it was stopped with
        O(guests[].state=stopped), or started by somebody else, since.
      - One that does not stop in time goes on, and the task fails. Should it still stop later, only
        O(guests[].state=running) starts it.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Says what it would do, and asks the other hosts; changes nothing.
      - What a guest lacks and a task before may be about to make (a network, a template, a file) is a warning then.
      - Where libvirt is still to be installed all would be new. A warning says so, and an empty list is returned.
    support: full
  diff_mode:
    description: Returns what differs, before and after. Passwords and user-data are not in it.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on the host with C(host_bootstrap_guests=true).
  - For the overlay, P(cnvm.platform.overlay#role).
seealso:
  - module: cnvm.platform.guest_info
  - module: cnvm.platform.guest_snapshot
  - module: cnvm.platform.network
  - module: cnvm.platform.pool
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Run a guest from a template, and wait until it can be worked with
  cnvm.platform.guest:
    guests:
      - name: web
        memory_mib: 1024
        vcpus: 2
        disks:
          - template: debian-13
            size_mib: 20480
        networks:
          - source: default
        cloud_init:
          user_data:
            users:
              - name: admin
                sudo: ALL=(ALL) NOPASSWD:ALL
                ssh_authorized_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
        tags:
          group: front
        wait_for:
          ssh: true

- name: Run an appliance from a read-only ISO with an empty disk for its cache
  cnvm.platform.guest:
    guests:
      - name: cernvm
        memory_mib: 2048
        cdrom: /srv/iso/cernvm4-micro-2020.04-1.iso
        boot: [cdrom]
        disks:
          - size_mib: 20480
        networks:
          - source: default
        graphics:
          type: vnc

- name: Stop two guests, by force if they do not listen
  cnvm.platform.guest:
    guests:
      - name: web
        state: stopped
        stop_timeout_s: 60
        force_stop: true
      - name: cernvm
        state: stopped
        force_stop: true

- name: Remove a guest with its disks
  cnvm.platform.guest:
    guests:
      - name: web
        state: absent
        delete_disks: true
"""

RETURN = r"""
guests:
  description:
    - The guests in the order in which they were given. Beside what is listed here, all that
      M(cnvm.platform.guest_info) returns of them, but for C(definition).
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      state: running
      placement: host1
      changed: true
      actions: [create, start with the host, start]
      restarted: false
      restart_required: false
      restart_reasons: []
      address: 192.168.122.50
      address_source: lease
      kept_disks: []
  contains:
    name:
      description: Name of the guest.
      type: str
      sample: web
    state:
      description: >-
        C(running), C(paused), C(stopped), C(stopping), C(crashed), C(suspended) (by itself), C(moved) (elsewhere) or
        C(absent).
      type: str
      sample: running
    placement:
      description: The host that has it; null when none has.
      type: str
      sample: host1
    changed:
      description:
        - Whether something was done to it, or would be in check mode. What only the running guest lacks, and refuses
          again, is none (see RV(guests[].restart_required)).
      type: bool
      sample: true
    actions:
      description: What was done, in order.
      type: list
      elements: str
      sample: [change memory_mib, attach disk vdb]
    restarted:
      description: Whether it was stopped and started again for a change.
      type: bool
      sample: false
    restart_required:
      description: Whether something of its description takes effect only when it is started again.
      type: bool
      sample: true
    restart_reasons:
      description: What that is, and why.
      type: list
      elements: dict
      sample:
        - option: machine
          reason: the machine is pc-q35-10.0, and is to be pc
    address:
      description: The address at which it was seen; null when none was.
      type: str
      sample: 192.168.122.50
    address_source:
      description: Who saw it there, as C(lease), C(agent) or C(arp).
      type: str
      sample: lease
    kept_disks:
      description: Where the disks of a removed guest are, and what else was in its directory.
      type: list
      elements: str
      sample: [/var/lib/cnvm/kept-disks/web/vda.qcow2]
"""

from ansible_collections.cnvm.platform.plugins.module_utils._host.guests import work
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.options import GUEST
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def main() -> None:
    """Run the module. The action plugin of the same name asks the host's helper first, which does the same."""
    run_module(work, GUEST)


if __name__ == "__main__":
    main()
