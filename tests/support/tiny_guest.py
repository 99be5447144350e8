# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the tiny guest: Debian's kernel for clouds and busybox, in a directory: ``tiny_guest.py DIRECTORY [KERNEL]``.

The packages are fetched with apt and unpacked, nothing is installed. The guest boots in 1.5 to 2 seconds without KVM,
with 96 MiB of memory. It has the files ``vmlinuz`` and ``initrd``; a disk is for its data only. With another package
for its KERNEL (``linux-image-amd64``) that takes more than twice as long.

On its console (``console=ttyS0`` on the kernel's command line) it says:

``ready``         once it is up
``tick N``        a count that is in its memory only, every 0.1 s (``tiny.tick=SECONDS``)
``see KEY=VALUE`` its disks, cards, CPUs, memory and CD, whenever they change (``tiny.look=N``: at each Nth tick)
``sum HASH``      of MiBs of its first disk, which it fills when it starts for the first time (``tiny.fill=MIB``, from
                  ``tiny.fill_at=MIB`` on)
``wrong N M``     where its first disk does not have the number that it wrote to it a second ago (``tiny.write=1``)
``button``        when the power button was pressed; then it turns itself off, but with ``tiny.deaf=1`` it goes on

A line that is written to its console is run by its shell (the host's end, ``virsh ttyconsole``, must be held open for
more than a second: QEMU looks no more often). With ``tiny.net=dhcp`` or ``tiny.net=ADDRESS/PREFIX`` its first card has
an address; at port 7 it echoes, at port 22 it greets as SSH does. ``tiny.dirty=MIB`` writes over as much of its memory
in one go, says ``dirtied``, rests for a second, and so on.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

KERNEL, BUSYBOX = "linux-image-cloud-amd64", "busybox-static"
# What the guests' devices need, in the order in which they are loaded; those that are built in, or that the kernel does
# not have, are left out.
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_balloon", "virtio_rng", "virtio_console",
    "evdev", "button", "ahci", "sr_mod", "isofs", "virtiofs", "9p", "9pnet_virtio",
)  # fmt: skip

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /tmp /mnt /run
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
exec </dev/console >/dev/console 2>&1
stty -echo 2>/dev/null
echo 1 >/proc/sys/kernel/printk
word() {
  for each in $(cat /proc/cmdline); do
    case $each in tiny.$1=*) echo "${each#*=}" ;; esac
  done
}
for module in $(cat /modules); do insmod "/lib/$module"; done
# The disks are found a moment later.
sleep 0.1

ip link set lo up
net=$(word net)
first=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
for card in /sys/class/net/*; do ip link set "${card##*/}" up; done
case $net in
  dhcp) udhcpc -i "$first" -b -t 20 -T 1 -s /dhcp >/dev/null ;;
  ?*) ip addr add "$net" dev "$first" && ip route add default dev "$first" ;;
esac
nc -ll -p 7 -e /bin/cat &
nc -ll -p 22 -e /greet &

if [ -n "$(word fill)" ]; then
  at=$(word fill_at)
  # A start that is not the first finds it filled: its second sector says so.
  if [ "$(dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | head -n 1)" != filled ]; then
    dd if=/dev/urandom of=/dev/vda bs=1M "seek=${at:-0}" "count=$(word fill)" conv=fsync 2>/dev/null
    echo filled | dd of=/dev/vda bs=512 seek=1 conv=fsync 2>/dev/null
  fi
  echo 3 >/proc/sys/vm/drop_caches
  echo "sum $(dd if=/dev/vda bs=1M "skip=${at:-0}" "count=$(word fill)" 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
fi

if [ -n "$(word write)" ]; then
  mkfifo /run/second
  exec 8<>/run/second
  written=0
  while :; do
    written=$((written + 1))
    echo "$written" >/dev/vda
    sync
    echo 1 >/proc/sys/vm/drop_caches
    read -r -t 1 -u 8 dummy
    read -r found </dev/vda
    [ "$found" = "$written" ] || echo "wrong $found $written"
  done &
fi

if [ -n "$(word dirty)" ]; then
  dd if=/dev/urandom of=/tmp/a bs=1M count=2 2>/dev/null
  dd if=/dev/urandom of=/tmp/b bs=1M count=2 2>/dev/null
  a= b=
  at=0
  while [ "$at" -lt "$(word dirty)" ]; do
    a="$a /tmp/a" b="$b /tmp/b"
    at=$((at + 2))
  done
  # One program a time: to start one takes as long as to write some MiB. What is there is written over.
  while :; do
    cat $a 1<>/tmp/dirty
    echo dirtied
    sleep 1
    cat $b 1<>/tmp/dirty
    echo dirtied
    sleep 1
  done &
fi

for each in /sys/class/input/event*; do
  read -r name <"$each/device/name"
  [ "$name" = "Power Button" ] || continue
  while dd "if=/dev/input/${each##*/}" of=/dev/null bs=24 count=1 2>/dev/null; do
    echo button
    [ -n "$(word deaf)" ] || { sync; poweroff -f; }
  done &
done

while read -r line; do eval "$line"; done </dev/console &
echo ready

tick=$(word tick)
tick=${tick:-0.1}
look=$(word look)
look=${look:-1}
# A pause of the shell itself: without KVM a program that sleeps costs 20 ms to start.
mkfifo /run/silence
exec 9<>/run/silence
number=0
while :; do
  number=$((number + 1))
  echo "tick $number"
  read -r -t "$tick" -u 9 dummy
  [ $((number % look)) = 0 ] || continue
  for each in /sys/devices/system/cpu/cpu*/online; do
    [ -e "$each" ] || continue
    read -r online <"$each"
    [ "$online" = 1 ] || echo 1 >"$each"
  done
  disks= cards= cd=
  for each in /sys/block/[vs]d*; do
    [ -e "$each" ] || continue
    read -r size <"$each/size"
    disks="$disks,${each##*/}:$((size / 2048))"
  done
  for each in /sys/block/sr*; do
    [ -e "$each" ] || continue
    read -r size <"$each/size"
    cd="$cd,${each##*/}:$size"
  done
  for each in /sys/class/net/*; do
    [ "${each##*/}" = lo ] && continue
    read -r address <"$each/address"
    cards="$cards,$address"
  done
  read -r cpus </sys/devices/system/cpu/online
  read -r dummy kib dummy </proc/meminfo
  seen="disks=${disks#,} cards=${cards#,} cpus=$cpus memory=$((kib / 1024)) cd=${cd#,}"
  if [ "$seen" != "$before" ]; then
    for each in $seen; do echo "see $each"; done
    before=$seen
  fi
done
"""

DHCP = """#!/bin/busybox sh
case $1 in
  bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}"
    ;;
esac
"""

GREET = """#!/bin/busybox sh
echo SSH-2.0-tiny
sleep 2
"""


def run(*argv: str, cwd: Path) -> str:
    """A command to its end; what it said."""
    return subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def fetch(folder: Path, kernel: str) -> Path:
    """Get and unpack the packages below ``folder``; where they were unpacked to."""
    depends = run("apt-cache", "depends", "--important", kernel, cwd=folder)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if not found:
        raise SystemExit(f"apt knows no package {kernel}; run 'apt-get update'.")
    run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", found[1], BUSYBOX, cwd=folder)
    root = folder / "root"
    for package in folder.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(root), cwd=folder)
    return root


def module_bytes(path: Path) -> bytes:
    """A module as the kernel takes it."""
    raw = path.read_bytes()
    return lzma.decompress(raw) if path.suffix == ".xz" else gzip.decompress(raw) if path.suffix == ".gz" else raw


def modules_in(library: Path) -> dict[str, bytes]:
    """The modules by name, each after those that it needs. What is no module is built in."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in library.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in found or name not in files:
            return
        content = module_bytes(files[name])
        needed = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in needed[1].decode().split(",") if needed and needed[1] else ():
            add(other)
        found[name] = content

    for name in MODULES:
        add(name)
    return found


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive (newc) of {path: (mode, content)}, in the order given."""
    parts = []
    for number, (path, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def make(directory: Path, package: str = KERNEL) -> None:
    """Make ``vmlinuz`` and ``initrd`` there; each appears whole."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = hashlib.sha256(Path(__file__).read_bytes() + package.encode()).hexdigest()
    if (directory / "stamp").exists() and (directory / "stamp").read_text() == stamp:
        return
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as temporary:
        folder = Path(temporary)
        root = fetch(folder, package)
        kernel = next((root / "boot").glob("vmlinuz-*"))
        library = next(path for base in ("usr/lib/modules", "lib/modules") for path in root.glob(f"{base}/*"))
        busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
        modules = {
            f"{number:02d}-{name}.ko": content for number, (name, content) in enumerate(modules_in(library).items())
        }
        program, plain = stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
        files = dict.fromkeys(("bin", "lib", "dev"), (stat.S_IFDIR | 0o755, b""))
        files["bin/busybox"] = (program, busybox.read_bytes())
        for name, text in (("init", INIT), ("dhcp", DHCP), ("greet", GREET)):
            files[name] = (program, text.encode())
        files["modules"] = (plain, "".join(f"{name}\n" for name in modules).encode())
        files.update({f"lib/{name}": (plain, content) for name, content in modules.items()})
        (folder / "initrd").write_bytes(gzip.compress(archive(files), 6, mtime=0))
        shutil.copyfile(kernel, folder / "vmlinuz")
        (folder / "stamp").write_text(stamp)
        for name in ("vmlinuz", "initrd", "stamp"):
            os.replace(folder / name, directory / name)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    make(Path(sys.argv[1]).absolute(), *sys.argv[2:])
