# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Guests up and down: started, stopped, paused."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor

from .._core import paths
from .._core.errors import CnvmError, HostError
from .._libvirt import domain, errors, guest_plan
from . import guest_watch, libvirt
from .domains import Known
from .guest_jobs import Job

# How many guests are started at a time: each costs libvirt a process, and QEMU a moment of a CPU.
_STARTS_AT_ONCE = 4
_POLL_S = 0.1
# How many guests are asked to stop, or turned off, at a time: libvirt works on five requests of one client, and one of
# them is left to see who has stopped.
_PRESSES_AT_ONCE = 4
# A guest that has just begun to boot does not hear the power button.
_PRESS_AGAIN_S = 10


def stop(jobs: t.Sequence[Job], warn: t.Callable[[str], object]) -> dict[str, CnvmError]:
    """Stop guests, all at once, and see that they have stopped: each in its own time, by force where allowed. Those
    that have not, and why."""
    failed: dict[str, CnvmError] = {}
    with ThreadPoolExecutor(_PRESSES_AT_ONCE) as pool:
        waiting = {job.name: _Stopping(job, pool, warn) for job in jobs}
        try:
            while waiting:
                for name, one in list(waiting.items()):
                    try:
                        stopped = one.has_stopped()
                    except CnvmError as error:
                        failed[name] = error
                    if name in failed or stopped:
                        one.forget()
                        del waiting[name]
                if waiting:
                    time.sleep(_POLL_S)
        finally:
            # However this ends: the pool has its end when all that it was given is done.
            for one in waiting.values():
                one.forget()
    return failed


class _Stopping:
    """A guest that is to stop. It is asked to in ``pool``: where it has an agent libvirt waits until it goes down, or a
    minute, and those behind it would have no time left by then. Its own begins when it is asked."""

    def __init__(self, job: Job, pool: ThreadPoolExecutor, warn: t.Callable[[str], object]) -> None:
        self.job = job
        self.each = t.cast(Known, job.known).domain
        self.pool = pool
        self.warn = warn
        self.asked: t.Optional[Future[None]] = None
        self.since: t.Optional[float] = None
        self.again = 0.0

    def forget(self) -> None:
        """Ask it no more."""
        if self.asked is not None:
            self.asked.cancel()

    def has_stopped(self) -> bool:
        """Whether it has; else what is to be done for it now is done."""
        job, name, each = self.job, self.job.name, self.each
        # Before it is looked whether it is up: one that goes now does not answer because it goes.
        answered = self.asked is not None and self.asked.done()
        state = libvirt.state_of(each)
        up = state is not None and _is_up(each)
        if self.asked is not None and answered:
            asked, self.asked = self.asked, None
            with contextlib.nullcontext() if up else contextlib.suppress(CnvmError):
                asked.result()
        if state is None or not up:
            return True
        at_once = job.plan.remove and job.item["delete_disks"] and not _stays(job)
        word, timeout = guest_plan.state_of(state[0]), job.item["stop_timeout_s"]
        if at_once or word == guest_plan.CRASHED:
            # QEMU takes its time to end.
            self.asked = self.asked or self.pool.submit(_turn_off, each, name)
        elif not timeout or (self.since is not None and time.monotonic() - self.since >= timeout):
            late = f"did not stop within {timeout} s"
            if not job.item["force_stop"]:
                raise HostError(
                    f"Guest {name!r} {late}.",
                    hint="It may ignore the power button. Raise stop_timeout_s, or allow force_stop: true.",
                )
            self.warn(f"Guest {name} {late} and was turned off.")
            _turn_off(each, name)
        elif self.asked is None and time.monotonic() >= self.again:
            self.asked = self.pool.submit(self._ask, word)
        return False

    def _ask(self, word: str) -> None:
        self.since = time.monotonic() if self.since is None else self.since
        with gone_is_good(), libvirt.doing(f"stop the guest {self.job.name!r}"):
            # One that is paused or asleep hears nothing.
            if word == guest_plan.PAUSED:
                self.each.resume()
            elif word == guest_plan.SUSPENDED:
                self.each.pMWakeup(0)
            _press(self.each)
        self.again = time.monotonic() + _PRESS_AGAIN_S


def _stays(job: Job) -> bool:
    """Whether a disk that a running guest writes to outlives it: what it has not written yet is to come there first."""
    disks = (t.cast(Known, job.known).live_model or domain.EMPTY)["disks"].values()
    return any(not disk["read_only"] and disk["path"] not in job.gone_disks for disk in disks)


def _press(each: libvirt.Domain) -> None:
    """Ask a guest to shut down: by its agent where that answers, else by the power button."""
    library = libvirt.library()
    try:
        each.shutdown()
    except library.libvirtError as error:
        if error.get_error_code() not in (errors.AGENT_UNRESPONSIVE, errors.OPERATION_TIMEOUT):
            raise
        each.shutdownFlags(library.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def start(connection: libvirt.Connection, jobs: t.Sequence[Job]) -> dict[str, CnvmError]:
    """Start guests, several at once. Those that could not be, and why."""
    failed: dict[str, CnvmError] = {}
    if not jobs:
        return failed
    library = libvirt.library()

    def one(job: Job) -> None:
        flags = library.VIR_DOMAIN_START_PAUSED if job.plan.pause else 0
        if paths.guest_log(job.name):
            os.makedirs(os.path.dirname(paths.guest_log(job.name)), mode=0o750, exist_ok=True)
        guest_watch.mark_log(job.name)
        each = libvirt.domain(connection, job.name)
        if each is None:
            raise HostError(f"Guest {job.name!r} was removed while it was to be started.")
        with libvirt.doing(f"start the guest {job.name!r}"):
            each.createWithFlags(flags)

    with ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE) as pool:
        for name, future in {job.name: pool.submit(one, job) for job in jobs}.items():
            try:
                future.result()
            except CnvmError as error:
                failed[name] = error
    return failed


def pause_or_resume(job: Job) -> None:
    """Let a running guest stand still, or go on."""
    each = t.cast(Known, job.known).domain
    with libvirt.doing(f"{'resume' if job.plan.resume else 'pause'} the guest {job.name!r}"):
        if job.plan.pause:
            each.suspend()
        elif job.seen.state == guest_plan.SUSPENDED:
            each.pMWakeup(0)
        else:
            each.resume()


def _turn_off(each: libvirt.Domain, name: str) -> None:
    with gone_is_good(), libvirt.doing(f"turn the guest {name!r} off"):
        each.destroy()


def _is_up(each: libvirt.Domain) -> bool:
    library = libvirt.library()
    try:
        return bool(each.isActive())
    except library.libvirtError as error:
        if error.get_error_code() == errors.NO_DOMAIN:
            return False
        raise libvirt.translate(error, f"look at the guest {each.name()!r}") from error


@contextlib.contextmanager
def gone_is_good() -> t.Iterator[None]:
    """What is to end may have ended by itself a moment ago."""
    try:
        yield
    except libvirt.LibvirtError as error:
        if error.code not in (errors.NO_DOMAIN, errors.OPERATION_INVALID):
            raise
