# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Changing a guest that runs."""

from __future__ import annotations

import functools
import time
import typing as t

from .._core.errors import HostError
from .._libvirt import domain, errors, xml
from .._libvirt.changes import Step
from .._libvirt.xml import Element
from . import guest_disks, libvirt
from .domains import Known, set_marks, xml_of
from .guest_disks import Work
from .guest_jobs import Job
from .system import Host

_POLL_S = 0.1
# What a guest's kernel may take to let go of a device, or to give memory back: long for an emulated one on a busy host.
_UNPLUG_S = 20.0
_BALLOON_S = 20.0
# The steps that take a device away: the XML's name for it, and that of a model.
_LEAVING = {"detach_disk": ("disk", "disks"), "detach_network": ("interface", "networks")}
# Refusals of libvirt that mean: not while it runs.
_NOT_LIVE = (
    errors.CONFIG_UNSUPPORTED,
    errors.OPERATION_UNSUPPORTED,
    errors.OPERATION_INVALID,
    errors.OPERATION_FAILED,
    errors.INTERNAL_ERROR,
    errors.OPERATION_TIMEOUT,
    errors.AGENT_UNRESPONSIVE,
)


def grow(host: Host, job: Job, work: Work) -> None:
    """Let a disk of a running guest grow."""
    library = libvirt.library()
    live = (t.cast(Known, job.known).live_model or domain.EMPTY)["disks"]
    # One that gets another name has its old one until then.
    name = next((name for name, disk in live.items() if disk["path"] == work.path), "")
    if not name:
        # It has that file only when it is started again.
        guest_disks.do(host, work)
        return
    with libvirt.doing(f"let the disk {work.name} of the guest {job.name!r} grow"):
        t.cast(Known, job.known).domain.blockResize(name, work.virtual_bytes, library.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def change(job: Job, known: Known, steps: t.Sequence[Step]) -> None:
    """The changes of a running guest. What cannot be done becomes a reason to restart it.

    What is to go is asked for first, and waited for together: a guest that lets go of nothing takes its time once.
    """
    leaving = [step for step in steps if step.kind in _LEAVING]
    leaving = [step for step in leaving if _attempt(job, step, functools.partial(_let_go, known, step))]
    end = time.monotonic() + _UNPLUG_S
    done = [step for step in leaving if _attempt(job, step, functools.partial(_gone, known, step, end))]
    others = [step for step in steps if step.kind not in _LEAVING]
    done += [step for step in others if _attempt(job, step, functools.partial(_do_step, known, step))]
    job.taken_over = job.taken_over or bool(done)


def _attempt(job: Job, step: Step, do: t.Callable[[], str]) -> bool:
    """Whether a step was done; ``do`` returns what there is to say where it was not."""
    try:
        with libvirt.doing(f"change {step.key} of the running guest {job.name!r}"):
            refused = do()
    except libvirt.LibvirtError as error:
        if error.code not in _NOT_LIVE:
            raise
        refused = error.message
    if refused:
        job.reasons[step.key] = refused
    return not refused


def _let_go(known: Known, step: Step) -> str:
    tag, _dummy = _LEAVING[step.kind]
    known.domain.detachDeviceFlags(
        _device(t.cast(Element, known.live), tag, None, step.name), libvirt.library().VIR_DOMAIN_AFFECT_LIVE
    )
    return ""


def _gone(known: Known, step: Step, end: float) -> str:
    _dummy, what = _LEAVING[step.kind]
    return _until(
        lambda: step.name not in domain.parse(xml_of(known.domain))[what],
        end - time.monotonic(),
        f"the guest does not let go of {step.name}; it is gone after a restart",
    )


def _do_step(known: Known, step: Step) -> str:
    library, each = libvirt.library(), known.domain
    live = library.VIR_DOMAIN_AFFECT_LIVE
    root = t.cast(Element, known.live)
    if step.kind == "memory":
        each.setMemoryFlags(step.value * 1024, live)
        return _until(
            lambda: abs(int(each.info()[2]) // 1024 - step.value) <= 1,
            _BALLOON_S,
            "the guest's memory balloon does not answer",
        )
    if step.kind == "vcpus":
        each.setVcpusFlags(step.value, live)
        return _until(
            lambda: each.vcpusFlags(live) == step.value, _UNPLUG_S, "the guest does not let go of a virtual CPU"
        )
    if step.kind == "description":
        each.setMetadata(library.VIR_DOMAIN_METADATA_DESCRIPTION, step.value or None, None, None, live)
    elif step.kind == "marks":
        set_marks(each, step.value)
    elif step.kind == "password":
        each.updateDeviceFlags(_device(root, "graphics", step.value), live)
    elif step.kind == "media":
        each.updateDeviceFlags(xml.document(domain.cdrom_node(step.name, step.value)), live)
    elif step.kind == "update_network":
        each.updateDeviceFlags(_device(root, "interface", step.value, step.name), live)
    elif step.kind == "attach_disk":
        # Looked at again: a disk before this one may have brought it.
        if step.value["bus"] == "scsi" and not domain.has_controller(xml_of(each), "scsi"):
            each.attachDeviceFlags(xml.document(domain.SCSI_CONTROLLER), live)
        each.attachDeviceFlags(xml.document(domain.disk_node(step.name, step.value)), live)
    elif step.kind == "attach_network":
        each.attachDeviceFlags(xml.document(domain.network_node(step.name, step.value)), live)
    else:
        raise ValueError(step.kind)
    return ""


def _until(good: t.Callable[[], bool], timeout_s: float, otherwise: str) -> str:
    """Wait until it is good; what there is to say when it is not in time."""
    end = time.monotonic() + timeout_s
    while not good():
        if time.monotonic() > end:
            return otherwise
        time.sleep(_POLL_S)
    return ""


def _device(root: Element, tag: str, value: t.Any, name: str = "") -> str:
    """A device of a running domain as XML, with its address, as libvirt wants it to know which one is meant."""
    devices = t.cast(Element, root.find("devices"))
    if tag == "graphics":
        found = domain.screens(devices)[0]
        found = xml.parse(xml.document(found))
        found.set("passwd", value["password"])
        return xml.document(found)
    keys = {"disk": "target/@dev", "interface": "mac/@address"}[tag].split("/@")
    for each in devices.findall(tag):
        if xml.attribute(each, keys[0], keys[1]).lower() == name.lower():
            if value is not None:
                kind = value["type"]
                each = xml.parse(xml.document(each))
                each.set("type", kind)
                for source in each.findall("source"):
                    each.remove(source)
                each.append(xml.build(("source", {kind: value["source"]})))
            return xml.document(each)
    raise HostError(f"The running guest has no {tag} {name!r} any more.")
