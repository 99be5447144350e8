# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Whether KVM can run a guest. The device file alone says little: in some virtual machines it is there and of no use.

A child makes a virtual machine with one page of memory and lets a virtual CPU halt in it; it is killed when it hangs.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import select
import signal
import struct
import time
import typing as t

DEVICE = "/dev/kvm"

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_EXIT_HLT = 5
_CODE_AT = 0x1000


def _try_guest(device: str) -> str:
    """Run one HLT instruction in a guest; the empty text when it did, else what went wrong."""
    import ctypes  # Only here: it is slow to load, and most hosts have no use for it.

    step = "opening it"
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        step = "KVM_GET_API_VERSION"
        if fcntl.ioctl(kvm, _GET_API_VERSION) != 12:
            return "its interface is not version 12"
        step = "KVM_CREATE_VM"
        guest = fcntl.ioctl(kvm, _CREATE_VM, 0)
        if platform.machine() != "x86_64":
            return ""
        step = "KVM_SET_USER_MEMORY_REGION"
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        memory[0] = 0xF4  # HLT
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(guest, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, _CODE_AT, mmap.PAGESIZE, address))
        step = "KVM_CREATE_VCPU"
        cpu = fcntl.ioctl(guest, _CREATE_VCPU, 0)
        state = mmap.mmap(cpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE))
        step = "setting registers"
        special = bytearray(0x138)
        fcntl.ioctl(cpu, _GET_SREGS, special)
        struct.pack_into("=Q", special, 0, 0)  # cs.base
        struct.pack_into("=H", special, 12, 0)  # cs.selector
        fcntl.ioctl(cpu, _SET_SREGS, bytes(special))
        registers = bytearray(0x90)
        struct.pack_into("=QQ", registers, 128, _CODE_AT, 2)  # rip, rflags
        fcntl.ioctl(cpu, _SET_REGS, bytes(registers))
        step = "KVM_RUN"
        fcntl.ioctl(cpu, _RUN, 0)
        reason = struct.unpack_from("=I", state, 8)[0]
        return "" if reason == _EXIT_HLT else f"a virtual CPU did not execute HLT (exit reason {reason})"
    except OSError as error:
        return f"{step} failed: {errno.errorcode.get(error.errno or 0, error.errno)}"


def probe(
    device: str = DEVICE, timeout_s: float = 1.0, attempt: t.Callable[[str], str] = _try_guest
) -> dict[str, t.Any]:
    """``device`` there; ``usable``: a guest executed an instruction; ``reason`` why not."""
    if not os.path.exists(device):
        return {"device": False, "usable": False, "reason": f"there is no {device}"}
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, (attempt(device) or "ok").encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, dummy, dummy2 = select.select([reader], [], [], timeout_s)
        said = os.read(reader, 4096).decode() if ready else "a virtual CPU hung at its first instruction"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _reap(child)
    return {"device": True, "usable": said == "ok", "reason": "" if said == "ok" else said or "the attempt crashed"}


def _reap(child: int) -> None:
    """Collect the child; one that hangs in the kernel even then is left behind rather than waited for."""
    for dummy in range(100):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
