# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With a stand-in for the binding; the scenario of the guests uses the real one."""

from __future__ import annotations

import builtins
import sys
import threading
import time
import types
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import distribution, libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors


class FakeError(Exception):
    def __init__(self, code: int, message: str = "it said no") -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return str(self)


class FakeDomain:
    def __init__(self, name: str, state: t.Any = (1, 1)) -> None:
        self._name = name
        self._state = state

    def name(self) -> str:
        return self._name

    def state(self, flags: int) -> t.Any:
        if isinstance(self._state, Exception):
            raise self._state
        return self._state

    def XMLDesc(self, flags: int) -> str:
        if isinstance(self._state, Exception):
            raise self._state
        return f"<domain><name>{self._name}</name></domain>"


class FakeConnection:
    def __init__(self, *domains: FakeDomain) -> None:
        self.domains = {each.name(): each for each in domains}
        self.closed = 0
        self.lost = False
        self.stats: t.Any = [(each, {"state.state": 1, "state.reason": 5}) for each in reversed(domains)]

    def close(self) -> None:
        self.closed += 1

    def getLibVersion(self) -> int:
        if self.lost:
            raise FakeError(errors.RPC)
        return 10_000_000

    def lookupByName(self, name: str) -> FakeDomain:
        if name not in self.domains:
            raise FakeError(errors.NO_DOMAIN if name != "odd" else errors.RPC)
        return self.domains[name]

    def listAllDomains(self, flags: int) -> list[FakeDomain]:
        return list(reversed(self.domains.values()))

    def getAllDomainStats(self, stats: int, flags: int) -> t.Any:
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[types.ModuleType]:
    """A module called libvirt, as python3-libvirt would be found."""
    module = types.ModuleType("libvirt")
    module.__dict__.update(
        libvirtError=FakeError,
        handlers=[],
        registerErrorHandler=lambda function, context: module.__dict__["handlers"].append(function),
        VIR_ERR_ERROR=2,
        VIR_ERR_NO_DOMAIN=42,
        VIR_ERR_NO_CONNECT=5,
        VIR_CONNECT_LIST_DOMAINS_ACTIVE=1,
        VIR_DOMAIN_STATS_STATE=1,
    )
    monkeypatch.setitem(sys.modules, "libvirt", module)
    libvirt.library.cache_clear()
    libvirt._code_names.cache_clear()
    yield module
    libvirt.library.cache_clear()
    libvirt._code_names.cache_clear()


def opened(binding: types.ModuleType, connection: FakeConnection) -> None:
    binding.__dict__["open"] = lambda uri: connection


def test_its_own_error_output_is_silenced_once(binding: types.ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert libvirt.library() is libvirt.library() is binding
    (handler,) = binding.__dict__["handlers"]
    handler(None, (38, 7, "Failed to connect"))
    assert capfd.readouterr() == ("", "")
    assert libvirt.available()


def test_missing_binding_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if name == "libvirt":
            raise ImportError("No module named 'libvirt'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "libvirt", raising=False)
    libvirt.library.cache_clear()
    before = list(sys.path)
    with pytest.raises(HostError, match="no libvirt") as error:
        libvirt.library()
    assert "host_bootstrap_guests" in error.value.hint
    assert not libvirt.available()
    assert sys.path == before
    libvirt.library.cache_clear()


def test_binding_is_found_where_the_distribution_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without the site module (the helper's) does not look there."""
    (tmp_path / "libvirt.py").write_text("def registerErrorHandler(f, c): pass\n", encoding="utf-8")
    monkeypatch.setattr(distribution, "_PLACES", (str(tmp_path / "nothing"), str(tmp_path)))
    monkeypatch.delitem(sys.modules, "libvirt", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dist-packages" not in entry])
    libvirt.library.cache_clear()
    before = list(sys.path)
    assert libvirt.library().__file__ == str(tmp_path / "libvirt.py")
    assert sys.path == before
    libvirt.library.cache_clear()
    monkeypatch.delitem(sys.modules, "libvirt")


def test_another_daemons_connection_is_closed_whatever_happens(binding: types.ModuleType) -> None:
    connection, uri = FakeConnection(), "test:///default"
    opened(binding, connection)
    with libvirt.connect(uri) as found:
        assert found is connection
    with pytest.raises(ZeroDivisionError), libvirt.connect(uri):
        raise ZeroDivisionError
    with pytest.raises(libvirt.LibvirtError, match="could not do what it was asked to: it"), libvirt.connect(uri):
        raise FakeError(1)
    assert connection.closed == 3


def test_the_connection_to_this_hosts_daemon_stays_open(
    binding: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt, "_GOOD_S", 0.0)
    made: list[FakeConnection] = []

    def one_more(uri: str) -> FakeConnection:
        made.append(FakeConnection())
        return made[-1]

    def used() -> int:
        """The number of the connection that is given out."""
        with libvirt.connect() as found:
            return made.index(found)

    binding.__dict__["open"] = one_more
    with libvirt.connect() as outer:
        assert used() == used() == 0
        made[0].lost = True
        assert used() == 1
        assert outer is made[0]
    with pytest.raises(libvirt.LibvirtError, match="could not do what it was asked to: it"), libvirt.connect():
        raise FakeError(1)
    assert used() == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(used).result() == 2
    assert used() == 1
    assert [each.closed for each in made] == [0] * 3


def test_what_was_good_a_moment_ago_is_not_asked(binding: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless what was done with it failed."""
    connection, clock, asked = FakeConnection(), [100.0], []
    opened(binding, connection)
    monkeypatch.setattr(connection, "getLibVersion", lambda: asked.append(clock[0]))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def use(after: float, error: t.Optional[Exception] = None) -> None:
        clock[0] += after
        with libvirt.connect():
            if error:
                raise error

    def all_uses() -> None:
        use(0.0)
        use(0.9)
        use(0.9)
        use(1.1)
        with pytest.raises(libvirt.LibvirtError):
            use(0.1, FakeError(1))
        use(0.1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(all_uses).result()
    assert asked == [pytest.approx(102.9), pytest.approx(103.1)]


def test_a_daemon_that_hangs_is_not_waited_for_for_ever(
    binding: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To one that was stopped by a signal one can connect; nothing comes of it. Nor on a connection that was good."""
    monkeypatch.setattr(libvirt, "_ANSWER_S", 0.05)
    monkeypatch.setattr(libvirt, "_GOOD_S", 0.0)
    good, goes_on = FakeConnection(), threading.Event()

    def hang(*args: str) -> FakeConnection:
        goes_on.wait(60)
        return good

    def used() -> FakeConnection:
        with libvirt.connect() as found:
            return t.cast("FakeConnection", found)

    with ThreadPoolExecutor(1) as pool:
        binding.__dict__["open"] = hang
        assert not pool.submit(libvirt.answers).result()
        opened(binding, good)
        assert pool.submit(libvirt.answers).result()
        monkeypatch.setattr(good, "getLibVersion", hang)
        with pytest.raises(libvirt.LibvirtError, match="did not say its version within") as error:
            pool.submit(used).result()
        assert "systemctl restart libvirtd" in error.value.hint
        assert error.value.code == errors.OPERATION_TIMEOUT
        opened(binding, FakeConnection())
        assert pool.submit(used).result() is not good
    goes_on.set()


def test_a_daemon_that_has_ended_is_an_answer(binding: types.ModuleType) -> None:
    def refuse(uri: str) -> t.NoReturn:
        raise FakeError(errors.SYSTEM_ERROR, "Failed to connect socket")

    binding.__dict__["open"] = refuse
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(libvirt.answers).result()


def test_no_daemon(binding: types.ModuleType) -> None:
    def refuse(uri: str) -> t.NoReturn:
        raise FakeError(errors.SYSTEM_ERROR, "Failed to connect socket to '/var/run/libvirt/libvirt-sock'")

    binding.__dict__["open"] = refuse
    with pytest.raises(libvirt.LibvirtError) as error, libvirt.connect():
        pass
    assert "could not be reached at qemu:///system: Failed to connect socket" in error.value.message
    assert "systemctl start" in error.value.hint
    assert error.value.code == error.value.details["code"] == errors.SYSTEM_ERROR


def test_doing_says_what_was_tried(binding: types.ModuleType) -> None:
    with pytest.raises(libvirt.LibvirtError) as error, libvirt.doing("start the guest 'web'"):
        raise FakeError(errors.NO_DOMAIN, "Domain not found.")
    assert error.value.message == "libvirt could not start the guest 'web': Domain not found."
    assert error.value.details["code_name"] == "VIR_ERR_NO_DOMAIN"
    assert isinstance(error.value.__cause__, FakeError)
    # What is no code stays without a name.
    assert libvirt.translate(FakeError(2), "x").details["code_name"] == ""


def test_looking_up(binding: types.ModuleType) -> None:
    connection = FakeConnection(FakeDomain("web"))
    found = libvirt.domain(connection, "web")
    assert found is not None
    assert found.name() == "web"
    assert libvirt.domain(connection, "nothing") is None
    with pytest.raises(libvirt.LibvirtError, match="look for the guest 'odd'"):
        libvirt.domain(connection, "odd")


def test_listing(binding: types.ModuleType) -> None:
    gone = FakeError(errors.NO_DOMAIN)
    connection = FakeConnection(FakeDomain("b"), FakeDomain("a"), FakeDomain("c", gone))
    assert list(libvirt.domains(connection)) == ["a", "b", "c"]
    assert libvirt.domain_states(connection) == {"a": (1, 5), "b": (1, 5), "c": (1, 5)}
    assert libvirt.running_xml(connection) == [f"<domain><name>{name}</name></domain>" for name in "ab"]
    connection.stats = FakeError(errors.NO_SUPPORT)
    assert libvirt.domain_states(connection) == {"a": (1, 1), "b": (1, 1)}
    connection.stats = FakeError(errors.RPC)
    with pytest.raises(libvirt.LibvirtError, match="states of the guests"):
        libvirt.domain_states(connection)
    with pytest.raises(libvirt.LibvirtError, match="state of the guest 'x'"):
        libvirt.state_of(FakeDomain("x", FakeError(errors.RPC)))
