# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt on this host. The only file that imports its Python binding; everything above gets its objects from here.

    with libvirt.connect() as connection:
        domain = libvirt.domain(connection, "web")      # None where there is none
        with libvirt.doing("start the guest 'web'"):    # libvirtError becomes LibvirtError, which says what was tried
            domain.create()

Constants (VIR_…) are those of ``library()``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import typing as t

from .._core.errors import HostError
from .._libvirt import errors
from .._libvirt import pool as pool_description
from . import distribution

URI = "qemu:///system"
# A connection, a domain, a network, a pool: objects of the binding, which carries no types.
Connection = t.Any
Domain = t.Any
Network = t.Any
Pool = t.Any
# How long the daemon may take for what takes it no time. It starts when it is asked for the first time.
_ANSWER_S = 60.0
# So long a connection that was good is taken for good: a guest that stands still waits for each question.
_GOOD_S = 1.0
# Said in check mode, where a task before may be about to install it.
_NOT_YET = "This host has no libvirt. Unless a task before installs it, this fails"


class LibvirtError(HostError):
    """libvirt refused. ``code`` is its number, one of those in ``_libvirt/errors.py``."""

    def __init__(self, message: str, *, hint: str = "", code: int = 0, **details: t.Any) -> None:
        super().__init__(message, hint=hint, code=code, **details)
        self.code = code


# -- The binding


@functools.cache
def library() -> t.Any:
    """The binding. HostError where it is not installed for this Python."""
    try:
        with distribution.libraries():
            import libvirt

            with contextlib.suppress(ImportError):
                import libvirt_qemu  # noqa: F401 - found by others later, when these places are not looked at any more
    except ImportError as error:
        raise HostError(
            f"This host's Python ({sys.executable or 'unknown'}) has no libvirt: {error}.",
            hint="Run the role cnvm.platform.host_bootstrap with host_bootstrap_guests: true, or install the "
            "distribution's python3-libvirt and use the distribution's Python (ansible_python_interpreter for modules, "
            "host_bootstrap_python for the helper).",
        ) from None
    # By default it writes every error to stderr, where nobody expects it: we raise them.
    libvirt.registerErrorHandler(_silent, None)
    return libvirt


def _silent(_context: object, _error: object) -> None:
    pass


def available() -> bool:
    """Whether the binding is there (not whether a daemon answers)."""
    try:
        library()
    except HostError:
        return False
    return True


def not_yet(key: str, items: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """What a module returns in check mode where a task before would have installed libvirt: all that is wanted is new,
    and nothing more can be said. ``key``: where its result has the list."""
    names = ", ".join(str(item["name"]) for item in items)
    return {
        "changed": any(item["state"] != "absent" for item in items),
        key: [],
        "diff": {"before": {}, "after": {}},
        "warnings": [f"{_NOT_YET}; what would change is not known: {names}."],
    }


def none_yet(key: str) -> dict[str, t.Any]:
    """The same of a module that only tells what there is."""
    return {"changed": False, key: [], "warnings": [f"{_NOT_YET}; what there would be then is not known."]}


@functools.cache
def _code_names() -> dict[int, str]:
    found = library()
    return {
        value: name
        for name, value in sorted(vars(found).items(), reverse=True)
        if name.startswith("VIR_ERR_") and isinstance(value, int) and name not in _LEVELS
    }


# virErrorLevel shares the prefix of the codes.
_LEVELS = ("VIR_ERR_NONE", "VIR_ERR_WARNING", "VIR_ERR_ERROR", "VIR_ERR_NUMBER_LAST")


def translate(error: t.Any, what: str) -> LibvirtError:
    """A libvirtError as ours. ``what``: what was tried, as the end of a sentence ("start the network 'lan'")."""
    code = int(error.get_error_code() or 0)
    said = str(error.get_error_message() or error).strip()
    return LibvirtError(
        f"libvirt could not {what}: {said}{'' if said.endswith('.') else '.'}",
        hint=errors.hint_for(code, said),
        code=code,
        code_name=_code_names().get(code, ""),
    )


@contextlib.contextmanager
def doing(what: str) -> t.Iterator[None]:
    """Let what libvirt says inside come out as LibvirtError. ``what``: as for translate()."""
    error_class = library().libvirtError
    try:
        yield
    except error_class as error:
        raise translate(error, what) from error


# -- The connection


class _Mine(threading.local):
    """A thread's connection to this host's daemon. A child that a process forks shares the socket, and must not ask."""

    connection: Connection = None
    good_until = 0.0

    def answers(self) -> bool:
        """Whether there is one that is still good; the daemon may have been started anew meanwhile."""
        if self.connection is None:
            return False
        if time.monotonic() < self.good_until:
            return True
        connection, self.connection = self.connection, None
        try:
            _in_time(connection.getLibVersion, "say its version")
        except library().libvirtError:
            return False
        self.connection = connection
        return True


_mine = _Mine()


def _in_time(work: t.Callable[[], t.Any], what: str) -> t.Any:
    """What ``work`` returns. LibvirtError when nothing comes for long: to a daemon that hangs one can still connect.

    It is left to its thread, then, with the connection: to close that would hang, too.
    """
    found: list[tuple[t.Any, t.Optional[BaseException]]] = []

    def wait() -> None:
        try:
            found.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised by who waits
            found.append((None, error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if not found:
        raise LibvirtError(
            f"libvirt's daemon on this host did not {what} within {_ANSWER_S:.0f} s.",
            hint="Start it anew, guests go on meanwhile: 'systemctl restart libvirtd' (or virtqemud).",
            code=errors.OPERATION_TIMEOUT,
        )
    value, error = found[0]
    if error is not None:
        raise error
    return value


def answers() -> bool:
    """Whether this host's daemon says anything, be it that it has ended."""
    try:
        with connect():
            return True
    except HostError as error:
        return error.details.get("code") != errors.OPERATION_TIMEOUT


@contextlib.contextmanager
def connect(uri: str = URI) -> t.Iterator[Connection]:
    """A connection (virConnect). That to this host's daemon stays open for the next use by this thread: to open one
    takes longer than most of what is asked, and a guest that moves waits for it. Others (``test:///default``, libvirt's
    own fake, which needs no daemon) are closed at the end.

    A libvirtError that nobody translated inside comes out as LibvirtError, too: nothing of the binding gets past here.
    """
    found = library()
    if uri == URI and _mine.answers():
        connection = _mine.connection
    else:
        with doing(f"be reached at {uri}"):
            connection = _in_time(lambda: found.open(uri), "open a connection")
    if uri == URI:
        _mine.connection = connection
    good = False
    try:
        with doing("do what it was asked to"):
            yield connection
        good = True
    finally:
        if uri == URI:
            _mine.good_until = time.monotonic() + _GOOD_S if good else 0.0
        else:
            try:
                connection.close()
            except found.libvirtError:
                pass  # the daemon has gone; what was done with it has been told already


# -- Looking up: None where there is nothing of that name


def _found(look: t.Callable[[t.Any], t.Any], key: object, absent: int, what: str) -> t.Any:
    found = library()
    try:
        return look(key)
    except found.libvirtError as error:
        if error.get_error_code() == absent:
            return None
        raise translate(error, f"look for {what}") from error


def domain(connection: Connection, name: str) -> t.Optional[Domain]:
    """The domain of that name, running or not."""
    return _found(connection.lookupByName, name, errors.NO_DOMAIN, f"the guest {name!r}")


def network(connection: Connection, name: str) -> t.Optional[Network]:
    """The network of that name, active or not."""
    return _found(connection.networkLookupByName, name, errors.NO_NETWORK, f"the network {name!r}")


def pool(connection: Connection, name: str) -> t.Optional[Pool]:
    """The storage pool of that name, active or not."""
    return _found(connection.storagePoolLookupByName, name, errors.NO_STORAGE_POOL, f"the pool {name!r}")


def volume_path(connection: Connection, pool_name: str, name: str) -> str:
    """Where a volume of a pool is on this host; '' where there is no such pool, or nobody can say."""
    error_class = library().libvirtError
    try:
        found = connection.storagePoolLookupByName(pool_name)
        try:
            path = str(found.storageVolLookupByName(name).path())
        except error_class:
            # A pool that is not active, or was not refreshed since, does not know its volumes, but where they lie.
            known = pool_description.parse(found.XMLDesc(0))
            path = f"{known['path']}/{name}" if known["type"] in (*pool_description.WITH_FILES, "logical") else ""
    except error_class:
        # One guest whose pool cannot be asked does not hide all others. A daemon that has gone says nothing of any.
        if not connection.isAlive():
            raise
        return ""
    # What lies behind a network has no path here.
    return path if path.startswith("/") else ""


# -- All of a kind: one round trip


def domains(connection: Connection) -> dict[str, Domain]:
    """All domains by name, sorted."""
    with doing("list the guests"):
        return _by_name(connection.listAllDomains(0))


def networks(connection: Connection) -> dict[str, Network]:
    """All networks by name, sorted."""
    with doing("list the networks"):
        return _by_name(connection.listAllNetworks(0))


def pools(connection: Connection) -> dict[str, Pool]:
    """All storage pools by name, sorted."""
    with doing("list the pools"):
        return _by_name(connection.listAllStoragePools(0))


def pool_directories(connection: Connection) -> dict[str, str]:
    """Where the pools keep files, by name; those that have no directory are left out."""
    with doing("list the pools"):
        found = {name: pool_description.parse(each.XMLDesc(0)) for name, each in pools(connection).items()}
    return {name: one["path"] for name, one in found.items() if one["type"] in pool_description.WITH_FILES}


def running_xml(connection: Connection) -> list[str]:
    """The live XML of all running domains; those that end meanwhile are left out."""
    found = library()
    texts = []
    with doing("list the running guests"):
        for each in connection.listAllDomains(found.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                texts.append(str(each.XMLDesc(0)))
            except found.libvirtError as error:
                if error.get_error_code() != errors.NO_DOMAIN:
                    raise
    return texts


def _by_name(objects: t.Iterable[t.Any]) -> dict[str, t.Any]:
    # The name is in the object; asking for it is no round trip.
    return dict(sorted(((each.name(), each) for each in objects), key=lambda pair: pair[0]))


def domain_states(connection: Connection) -> dict[str, tuple[int, int]]:
    """State and reason (VIR_DOMAIN_…) of all domains by name: one round trip, where the driver can."""
    found = library()
    try:
        stats = connection.getAllDomainStats(found.VIR_DOMAIN_STATS_STATE, 0)
    except found.libvirtError as error:
        if error.get_error_code() != errors.NO_SUPPORT:
            raise translate(error, "tell the states of the guests") from error
        each_state = {name: state_of(each) for name, each in domains(connection).items()}
        return {name: state for name, state in each_state.items() if state is not None}
    return {
        each.name(): (int(values.get("state.state", 0)), int(values.get("state.reason", 0)))
        for each, values in sorted(stats, key=lambda pair: str(pair[0].name()))
    }


def undefine(each: Domain) -> None:
    """Let the daemon forget a domain, with all that it keeps of it; its disks stay."""
    found = library()
    each.undefineFlags(
        found.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | found.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | found.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | found.VIR_DOMAIN_UNDEFINE_NVRAM
    )


def state_of(each: Domain) -> t.Optional[tuple[int, int]]:
    """State and reason of a domain; None when it has gone since it was looked up."""
    found = library()
    try:
        state, reason = each.state(0)
    except found.libvirtError as error:
        if error.get_error_code() == errors.NO_DOMAIN:
            return None
        raise translate(error, f"tell the state of the guest {each.name()!r}") from error
    return int(state), int(reason)
