# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""A disk that a machine with a BIOS boots Debian from: what is in it and where, decided before anything is made.

The disk has a partition table of the old kind (MBR) and one partition with an ext4 file system. GRUB's first sector is
that of the table, the rest of GRUB fills the gap before the partition. All of it is written into a plain file: neither
a loop device nor a mount is needed, nor GRUB on the host, as the image brings its own.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t

from .._core.errors import HostError, InputError, Refused
from .._core.mmdebstrap import Recipe
from .._core.runner import CommandResult, reason
from .._core.values import human_bytes
from .headers import SECTOR

PROGRAM = "mke2fs"
# Raise it when a template that was built by older rules is another one.
RULES = 1
KERNEL = "linux-image-cloud-amd64"
# What a guest needs to boot, to be told who it is and to be asked how it is. The kernel is the user's, if one is named.
PACKAGES = (
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "grub-pc-bin",
    "grub2-common",
    "iproute2",
    # Its own name is known without a name server.
    "libnss-myhostname",
    "openssh-server",
    "qemu-guest-agent",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "zstd",
)
# Where the partition begins, as every partitioning program has it: GRUB has a megabyte before it.
START = 2**20
BLOCK = 4096
LEAST_BYTES = 2**29
# Sectors have 32 bits in this kind of partition table.
MOST_BYTES = 2**32 * SECTOR
DEFAULT_BYTES = 3 * 2**30
# Beside the files: journal, tables of inodes, and room to work.
_OVERHEAD_BYTES = 192 * 2**20
# Named one by one, so that the host's mke2fs.conf has no say, and GRUB and older kernels can read it.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_CODE_BYTES = 440
_ENTRY = struct.Struct("<B3sB3sII")
# In place of cylinders, heads and sectors: the disk is too large for them.
_NO_CHS = b"\xfe\xff\xff"
_LINUX = 0x83

GRUB = "/boot/grub/i386-pc"
# Links that Debian's kernels keep at the newest one.
BOOTED = ("/vmlinuz", "/initrd.img")
CONSOLE = "console=tty0 console=ttyS0,115200n8"
_GRUB_CONFIG = """\
# Written by cnvm.platform. 'update-grub', which every new kernel runs, replaces it by its own.
set timeout=1
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
menuentry 'Debian' {{
  linux {kernel} root=UUID={uuid} ro {console}
  initrd {initrd}
}}
menuentry 'Debian (rescue)' {{
  linux {kernel} root=UUID={uuid} ro single {console}
  initrd {initrd}
}}
"""
_GRUB_DEFAULT = f"""\
# Written by cnvm.platform.
GRUB_CMDLINE_LINUX="{CONSOLE}"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_TIMEOUT=1
"""
# A name below those that cloud-init writes: what it says of an interface comes first.
_NETWORK = """\
# Written by cnvm.platform: what cloud-init says nothing of.
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes
"""
_WAIT_ONLINE = """\
# Written by cnvm.platform: a guest without a network boots, too.
[Service]
ExecStart=
ExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=20
"""
_CLOUD = """\
# Written by cnvm.platform: a seed says who the guest is; nobody is asked over the network.
datasource_list: [NoCloud, ConfigDrive, None]
"""
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

# Run in the root file system, after the user's own commands. Core and modules of GRUB are of one version.
FINISH = (
    "systemctl -q enable systemd-networkd.service",
    # It has no volumes of LVM.
    "systemctl -q disable e2scrub_reap.service e2scrub_all.timer",
    "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
    f"mkdir -p {GRUB} && cd /usr/lib/grub/i386-pc && cp *.mod *.lst boot.img {GRUB}",
    f"grub-mkimage -O i386-pc -o {GRUB}/core.img -p '(,msdos1)/boot/grub' biosdisk part_msdos ext2",
    "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /tmp/* /var/tmp/*",
    "find /var/log -type f -delete",
    # All is up to date: no clone has to make caches anew at its first start.
    "touch /etc/.updated /var/.updated",
)


def whole(recipe: Recipe) -> Recipe:
    """The user's recipe, with what every guest needs."""
    kernel = () if any(name.startswith("linux-image-") for name in recipe.packages) else (KERNEL,)
    packages = tuple(sorted({*PACKAGES, *kernel, *recipe.packages}))
    return dataclasses.replace(recipe, packages=packages)


def written(uuid: str) -> dict[str, str]:
    """Text files of the root file system, by path. ``uuid``: that of the file system."""
    return {
        "/boot/grub/grub.cfg": _GRUB_CONFIG.format(uuid=uuid, console=CONSOLE, kernel=BOOTED[0], initrd=BOOTED[1]),
        "/etc/cloud/cloud.cfg.d/90-cnvm.cfg": _CLOUD,
        "/etc/default/grub.d/cnvm.cfg": _GRUB_DEFAULT,
        "/etc/fstab": f"UUID={uuid} / ext4 rw,errors=remount-ro 0 1\n",
        "/etc/hostname": "localhost\n",
        "/etc/hosts": _HOSTS,
        "/etc/systemd/network/90-cnvm.network": _NETWORK,
        "/etc/systemd/system/systemd-networkd-wait-online.service.d/cnvm.conf": _WAIT_ONLINE,
    }


def disk_bytes(content: int, wanted: t.Optional[int]) -> int:
    """The size of the disk for so many bytes of files. InputError where that is wanted too small."""
    least = -(-(content + content // 8 + _OVERHEAD_BYTES) // 2**20) * 2**20
    if wanted is None:
        return max(DEFAULT_BYTES, 2 * least)
    if wanted < least:
        raise InputError(
            f"size: {human_bytes(wanted)} are too few for what is installed.",
            hint=f"Allowed: {least // 2**20}M and more, or leave it out.",
        )
    return wanted


def file_system(root: str, path: str, virtual_bytes: int, uuid: str) -> list[str]:
    """Makes the partition's file system in the file ``path``, with the files of the directory ``root``."""
    # Tables that are written now are not written by each clone at its first start.
    more = f"offset={START},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"
    return [
        *(PROGRAM, "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-I", "256", "-i", "16384", "-O", _FEATURES),
        *("-U", uuid, "-E", more, "-d", root, path, str((virtual_bytes - START) // BLOCK)),
    ]


def failure(result: CommandResult) -> Refused | HostError:
    """The exception for a file system that could not be made."""
    if "Could not allocate" in result.stderr:
        return Refused("size: what is installed does not fit into it.", hint="Give more.", stderr=result.stderr)
    return HostError(
        f"{PROGRAM} failed: {reason(result)}", hint="Is there room below /var/lib/cnvm?", stderr=result.stderr
    )


def start_of_disk(boot: bytes, core: bytes, virtual_bytes: int, signature: int) -> bytes:
    """All before the partition: the first sector with GRUB's code and the table, then the rest of GRUB.

    ``boot`` and ``core``: GRUB's boot.img, which reads what begins in the second sector, and core.img, which goes on
    there. ``signature``: a number that tells disks apart.
    """
    if len(boot) != SECTOR or boot[-2:] != b"\x55\xaa" or not SECTOR < len(core) <= START - SECTOR:
        raise HostError("GRUB in the image is not what it should be.", hint="Are grub-pc-bin and grub2-common whole?")
    first, sectors = START // SECTOR, (virtual_bytes - START) // BLOCK * BLOCK // SECTOR
    entry = _ENTRY.pack(0x80, _NO_CHS, _LINUX, _NO_CHS, first, sectors)
    table = struct.pack("<IH", signature, 0) + entry + bytes(3 * _ENTRY.size) + b"\x55\xaa"
    return boot[:_CODE_BYTES] + table + core
