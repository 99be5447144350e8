# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Local hosts, the doing half: bases, layers, links and systemd-nspawn. ``_core/local_hosts.py`` decides.

Of a set called S this leaves on the machine: DIR/S, one bridge, one nftables table, and per host a cgroup (or unit)
and a link. The mounts are in each host's own namespace. ``remove_network`` and ``remove_host`` take all of it away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import time
import typing as t

from .._core import local_hosts as lh
from .._core.errors import HostError, Refused
from . import debian, files
from .system import Host

DEFAULT_DIR = "/var/lib/cnvm-local-hosts"
RUN_DIR = "/run/cnvm-local-hosts"
# In a host, on a plain file system: container files, disk images, and the hosts that a host may boot itself.
PLAIN_DIRS = {"cnvm": "/var/lib/cnvm", "images": "/var/lib/libvirt/images", "nested": DEFAULT_DIR}
_BASE_BYTES = 2 * 2**30
_INOTIFY_INSTANCES = 1024
_CAP_SYS_RESOURCE = 24


@dataclasses.dataclass(frozen=True)
class Settings:
    """What holds for all hosts of a set. ``directory``, ``subnet`` and ``bridge``: None to have them chosen."""

    set_name: str
    directory: t.Optional[str]
    cache_dir: str
    subnet: t.Optional[ipaddress.IPv4Network]
    bridge: t.Optional[str]
    internet: bool
    suite: str
    flavour: str
    packages: tuple[str, ...]
    ssh_key: str
    timeout_s: int


def _wait(what: t.Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Whether ``what`` came true within ``seconds``."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


@contextlib.contextmanager
def waiting_lock(path: str, what: str, seconds: float) -> t.Iterator[None]:
    """Hold ``path`` with flock, waiting for another holder up to ``seconds``."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def taken() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not _wait(taken, seconds, 0.2):
            raise Refused(f"{what}: another run has been at work on it for {seconds:.0f} s.", hint="Try again later.")
        yield
    finally:
        os.close(fd)


def make_user_dirs(path: str) -> None:
    """Make ``path``; directories that were missing belong to the owner of the one above them.

    The cache lies in a user's home while root works in it: what root makes on the way there stays the user's.
    """
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    above = os.stat(path)
    for directory in reversed(missing):
        os.mkdir(directory, 0o755)
        os.chown(directory, above.st_uid, above.st_gid)


# --- Programs on the machine ----------------------------------------------------------------------------------


def missing_packages() -> list[str]:
    """Debian packages that have what this machine lacks."""
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = {package for program, package in lh.MACHINE_PROGRAMS.items() if not shutil.which(program, path=path)}
    missing.update(package for file, package in lh.MACHINE_FILES.items() if not os.path.exists(file))
    return sorted(missing)


def install_packages(host: Host, names: t.Sequence[str]) -> None:
    """Install ``names`` with apt."""
    if not shutil.which("apt-get"):
        raise HostError(
            f"This machine lacks what comes in Debian's packages {', '.join(names)}, and has no apt-get.",
            hint="Install the same programs, or run local hosts on Debian 12 or 13 or Ubuntu 24.04.",
        )
    # Away from the terminal that sudo or SSH may have given us: apt in the background of one would be stopped by it.
    apt = ["setsid", "--wait", "timeout", "-k", "10", "900", "env", "DEBIAN_FRONTEND=noninteractive"]
    apt += ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    # An update may complain about one of many sources; what counts is whether the packages can be had.
    updated = host.run([*apt, "update"], check=False)
    done = host.run([*apt, "-y", "install", "--no-install-recommends", *names], check=False)
    if done.rc:
        raise HostError(
            f"apt-get could not install {', '.join(names)} on this machine.",
            hint=f"The last it said: {lh.last_lines(updated.stderr + done.stderr, 3)}",
            stderr=(updated.stderr + done.stderr)[-4000:],
        )


# --- The base -------------------------------------------------------------------------------------------------


class Bases:
    """The cache: finished bases by digest, read-only by convention."""

    def __init__(self, host: Host, cache_dir: str) -> None:
        self.host = host
        self.dir = cache_dir

    def path(self, digest: str) -> str:
        return f"{self.dir}/{digest}"

    def has(self, digest: str) -> bool:
        return os.path.exists(f"{self.path(digest)}.json") and os.path.isdir(self.path(digest))

    def make(self, made: lh.Recipe) -> bool:
        """Build what ``made`` describes unless it is there; whether it was built here."""
        digest = made.digest()
        if self.has(digest):
            return False
        make_user_dirs(self.dir)
        with waiting_lock(f"{self.dir}/{digest}.lock", f"The base of {made.label()}", 1800):
            if self.has(digest):
                return False
            self._build(made, digest)
        return True

    def _build(self, made: lh.Recipe, digest: str) -> None:
        room = os.statvfs(self.dir)
        if room.f_bavail * room.f_frsize < _BASE_BYTES:
            raise HostError(
                f"{self.dir} has {room.f_bavail * room.f_frsize // 2**20} MiB left; a base needs 2048.",
                hint="Make room or set cache_dir.",
            )
        aside, finish = f"{self.path(digest)}.new", f"{self.path(digest)}.finish"
        # Remains of a build that was cut off. Its mounts went with its processes.
        for left in (aside, self.path(digest)):
            files.remove_tree(left)
        sources = {
            f"{folder}/{name}": files.text_of(f"{folder}/{name}")
            for folder in ("/etc/apt", "/etc/apt/sources.list.d")
            for name in (sorted(os.listdir(folder)) if os.path.isdir(folder) else ())
            if name.endswith((".list", ".sources"))
        }
        mirror = lh.debian_mirror(sources, "\nID=debian\n" in "\n" + files.text_of("/etc/os-release"))
        files.write_text(finish, lh.finish_script(made, mirror, DEFAULT_DIR), mode=0o700, durable=False)
        argv = lh.build_argv(made, aside, mirror, finish, self.proxies())
        try:
            result = debian.patiently(self.host, argv, aside)
        finally:
            files.remove_file(finish)
        if result.rc:
            files.remove_tree(aside)
            raise HostError(
                f"The base of {made.label()} could not be built from {mirror}.",
                hint=f"The last it said: {lh.last_lines(result.stderr, 3)}",
                argv=argv,
                stderr=result.stderr[-6000:],
            )
        note = files.text_of(f"{aside}/etc/cnvm-local-base").strip()
        os.rename(aside, self.path(digest))
        files.write_json(f"{self.path(digest)}.json", {"schema": 1, "note": note, **dataclasses.asdict(made)})

    def proxies(self) -> dict[str, str]:
        """The proxies by which this machine fetches packages, as environment variables."""
        found = {}
        for kind in ("http", "https"):
            value = os.environ.get(f"{kind}_proxy", "")
            if not value and shutil.which("apt-config"):
                shown = self.host.run(["apt-config", "shell", "proxy", f"Acquire::{kind}::Proxy"], check=False).stdout
                value = shown.strip().partition("=")[2].strip("'\"")
            if value and value != "DIRECT":
                found[f"{kind}_proxy"] = value
        return found


# --- Hosts ----------------------------------------------------------------------------------------------------


class LocalHosts:
    """The hosts of one set on this machine."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host = host
        self.set = settings
        self.booted_by_systemd = os.path.isdir("/run/systemd/system")
        self.directory = self._directory()
        self.home = f"{self.directory}/{settings.set_name}"
        self.bases = Bases(host, settings.cache_dir)
        self.record = files.read_json(f"{self.home}/set.json") or {}
        mounts = files.text_of("/proc/self/mountinfo")
        mount, self.named_cgroups = lh.cgroup2_mount(mounts), lh.named_cgroup_mount(mounts)
        if mount is None:
            raise HostError(
                "This machine has no unified cgroup hierarchy (cgroup2).",
                hint="Mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified.",
            )
        self.cgroups = f"{mount.rstrip('/')}/system.slice" if self.booted_by_systemd else mount.rstrip("/")

    def _directory(self) -> str:
        """Where the set is, or is to be. In another place none of its hosts would be found, and they would run on."""
        name, given = self.set.set_name, self.set.directory
        known = files.text_of(f"{RUN_DIR}/sets/{name}")
        if not known or not os.path.isdir(f"{known}/{name}"):
            return given or DEFAULT_DIR
        if given not in (None, known):
            raise Refused(
                f"directory: the hosts of the set {name} are in {known}, not in {given}.",
                hint="Name that one (local_hosts_dir) or none, or use another set.",
            )
        return known

    # What is there

    @property
    def bridge(self) -> str:
        return str(self.record.get("bridge") or self.set.bridge or lh.bridge_name(self.set.set_name))

    def own(self, name: str) -> str:
        return f"{self.home}/hosts/{name}"

    def cgroup(self, name: str) -> str:
        suffix = ".service" if self.booted_by_systemd else ""
        return f"{self.cgroups}/{lh.unit_name(self.set.set_name, name)}{suffix}"

    def processes(self, name: str) -> list[int]:
        """All processes of a host, by its cgroup and those below."""
        found: list[int] = []
        for folder, _folders, _files in os.walk(self.cgroup(name)):
            found.extend(int(pid) for pid in files.text_of(f"{folder}/cgroup.procs").split() if pid != "0")
        return found

    def init(self, name: str) -> t.Optional[int]:
        """The host's PID 1, as the machine numbers it."""
        return lh.namespace_init({pid: files.text_of(f"/proc/{pid}/status") for pid in self.processes(name)})

    def records(self) -> dict[str, dict[str, t.Any]]:
        """The hosts that were completely made, by name."""
        found = {}
        for name in self.directories():
            record = files.read_json(f"{self.own(name)}/host.json")
            if record is not None:
                found[name] = record
        return found

    def directories(self) -> list[str]:
        folder = f"{self.home}/hosts"
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def leftovers(self) -> list[str]:
        """Remains of hosts whose making or removal was cut off."""
        made = self.records()
        return [name for name in self.directories() if name not in made]

    def actual(self) -> dict[str, lh.Wanted]:
        """Every host of the set as it is now."""
        links = {str(link.get("ifname")): link for link in self._json(["ip", "-json", "link", "show"])}
        found = {}
        for name, record in self.records().items():
            if self.processes(name):
                link = lh.link_name(self.set.set_name, name)
                has = lh.shaped_rate(self._json(["tc", "-json", "qdisc", "show", "dev", link]))
                up = links.get(link, {}).get("master") == self.bridge
                state = "present"
            else:
                has, up, state = record.get("rate"), record.get("link") != "down", "powered_off"
            found[name] = lh.Wanted(name, record["address"], state, has, "up" if up else "down")
        return found

    def _json(self, argv: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """What an iproute2 program prints as JSON; nothing where the link is not there."""
        said = self.host.run(argv, check=False)
        if said.rc or not said.stdout.strip():
            return []
        return t.cast("list[dict[str, t.Any]]", json.loads(said.stdout))

    def subnet(self, wanted: t.Sequence[lh.Wanted]) -> ipaddress.IPv4Network:
        """The set's network: what it has, or what it would get. Refused where another was asked for."""
        if self.directories() and self.set.bridge not in (None, self.bridge):
            raise Refused(
                f"bridge: the hosts of the set {self.set.set_name} are on {self.bridge}.",
                hint="Remove them first (state: absent), or use another set.",
            )
        if "subnet" in self.record:
            has = ipaddress.IPv4Network(self.record["subnet"])
            if self.set.subnet not in (None, has) and self.directories():
                raise Refused(
                    f"subnet: the hosts of the set {self.set.set_name} are in {has}.",
                    hint="Remove them first (state: absent), or use another set.",
                )
            if self.set.subnet in (None, has):
                return has
        routes = self._json(["ip", "-json", "-4", "route", "show", "table", "all"])
        return lh.pick_subnet(self.set.set_name, self.set.subnet, wanted, lh.routed_networks(routes, self.bridge))

    def refuse_other_base(self, names: t.Collection[str]) -> None:
        """A host stays what it was made as; other packages and newer recipes concern new hosts only."""
        for name, record in self.records().items():
            asked = (self.set.suite, self.set.flavour)
            if name in names and (record.get("suite"), record.get("flavour")) != asked:
                raise Refused(
                    f"hosts: {name} was made as {record.get('suite')}, {record.get('flavour')}.",
                    hint="Remove it first (state: absent), or ask for the same suite and flavour.",
                )

    def keyless(self, names: t.Collection[str]) -> list[str]:
        """Those of ``names`` that do not let the set's key in."""
        key = self._public_key()
        return [
            name for name in names if key and key not in files.text_of(f"{self._root(name)}/root/.ssh/authorized_keys")
        ]

    def _public_key(self) -> str:
        return files.text_of(f"{self.set.ssh_key}.pub").strip()

    def _root(self, name: str) -> str:
        """The host's files: as itself sees them while it runs, else its own layer."""
        pid = self.init(name)
        return f"/proc/{pid}/root" if pid else f"{self.own(name)}/upper"

    # The machine's side

    def network_state(self, subnet: ipaddress.IPv4Network) -> dict[str, t.Any]:
        """What the plan needs to know of bridge and table, and the diff shows. Refused where the bridge is not ours."""
        if self._bridge_owned() is False:
            raise Refused(
                f"bridge: this machine has an interface {self.bridge} that is not of the set {self.set.set_name}.",
                hint="Choose another name: local hosts have a bridge of their own, which goes with them.",
            )
        shown = self._json(["ip", "-json", "-4", "addr", "show", "dev", self.bridge])
        info = (shown[0].get("addr_info") or []) if shown else []
        addresses = [f"{entry.get('local')}/{entry.get('prefixlen')}" for entry in info]
        up = bool(shown) and "UP" in shown[0].get("flags", [])
        table = self.host.run(["nft", "list", "table", "ip", lh.table_name(self.set.set_name)], check=False)
        good = f"{lh.gateway(subnet)}/{subnet.prefixlen}" in addresses and up
        return {
            "bridge": self.bridge if shown else None,
            "address": f"{lh.gateway(subnet)}/{subnet.prefixlen}" if good else None,
            "internet": table.rc == 0
            and str(subnet) in table.stdout
            and self.bridge in table.stdout
            and files.text_of("/proc/sys/net/ipv4/ip_forward").strip() == "1",
        }

    def _bridge_owned(self) -> t.Optional[bool]:
        """Whether the bridge is the set's own, which its MAC tells; None where there is none."""
        shown = self._json(["ip", "-json", "link", "show", "dev", self.bridge])
        return shown[0].get("address") == lh.bridge_mac(self.set.set_name) if shown else None

    @staticmethod
    def shared() -> t.ContextManager[None]:
        """Hold what all sets have of the machine, while one of them makes it or takes it away."""
        return waiting_lock(f"{RUN_DIR}/lock", "What the sets share", 120)

    def ensure_network(self, subnet: ipaddress.IPv4Network) -> None:
        """Bridge, address, masquerading and kernel limits. Harmless where they are there. Call it with ``shared``."""
        bridge, gateway = self.bridge, lh.gateway(subnet)
        if self._bridge_owned() is None:
            mac = lh.bridge_mac(self.set.set_name)
            self.host.run(["ip", "link", "add", bridge, "address", mac, "type", "bridge"])
        self.host.run(["ip", "addr", "replace", f"{gateway}/{subnet.prefixlen}", "dev", bridge])
        self.host.run(["ip", "link", "set", bridge, "up"])
        if self.set.internet:
            self.host.run(["nft", "-f", "-"], stdin=lh.nft_add(self.set.set_name, str(subnet), bridge))
            self._sysctl("net/ipv4/ip_forward", "1")
        else:
            self.host.run(["nft", "delete", "table", "ip", lh.table_name(self.set.set_name)], check=False)
        # Each host's systemd, udev and D-Bus take some of these; 128, as the kernel has it, is enough for a few hosts.
        if (
            int(files.text_of("/proc/sys/fs/inotify/max_user_instances").strip() or _INOTIFY_INSTANCES)
            < _INOTIFY_INSTANCES
        ):
            self._sysctl("fs/inotify/max_user_instances", str(_INOTIFY_INSTANCES))
        # Without this capability root is under the limits of users, and CRIU's pipes of memory pages run into them.
        if not lh.has_capability(files.text_of("/proc/self/status"), _CAP_SYS_RESOURCE):
            self._sysctl("fs/pipe-max-size", "4194304")
            self._sysctl("fs/pipe-user-pages-soft", "0")

    def _sysctl(self, key: str, value: str) -> None:
        """Set a kernel setting, remembering what it was for when the last set goes."""
        before = files.text_of(f"/proc/sys/{key}").strip()
        if before == value:
            return
        known = files.read_json(f"{RUN_DIR}/kernel.json") or {}
        known.setdefault(key, before)
        files.write_json(f"{RUN_DIR}/kernel.json", known, durable=False)
        try:
            with open(f"/proc/sys/{key}", "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            raise HostError(f"The kernel setting {key} cannot be set to {value}: {error.strerror}.") from error

    def remove_network(self) -> None:
        """Take away what is left of the set when its last host is gone; with the last set, kernel settings too. Call it
        with ``shared``."""
        self.host.run(["nft", "delete", "table", "ip", lh.table_name(self.set.set_name)], check=False)
        if self._bridge_owned():
            self.host.run(["ip", "link", "del", "dev", self.bridge], check=False)
        files.remove_tree(self.home)
        files.remove_file(f"{RUN_DIR}/sets/{self.set.set_name}")
        sets = os.listdir(f"{RUN_DIR}/sets") if os.path.isdir(f"{RUN_DIR}/sets") else []
        if sets:
            return
        bridges = [link["ifname"] for link in self._json(["ip", "-json", "link", "show", "type", "bridge"]) if link]
        changed = files.read_json(f"{RUN_DIR}/kernel.json") or {}
        for key, before in lh.settings_to_restore(changed, bridges).items():
            with contextlib.suppress(OSError), open(f"/proc/sys/{key}", "w", encoding="ascii") as file:
                file.write(before)
        files.remove_file(f"{RUN_DIR}/kernel.json")
        if files.remove_file(f"{RUN_DIR}/memory"):
            self.host.run(["umount", "-l", DEFAULT_DIR], check=False)
        if self.set.directory is None and os.path.isdir(DEFAULT_DIR):
            with contextlib.suppress(OSError):
                os.rmdir(DEFAULT_DIR)

    def in_memory(self) -> bool:
        """Whether the hosts' disks have to be in memory. HostError where a directory was named that cannot be used."""
        kind = lh.file_system_of(os.path.realpath(self.directory), files.text_of("/proc/self/mountinfo"))
        if lh.holds_layers(kind):
            return False
        if self.set.directory is None:
            return True
        raise HostError(
            f"directory: {self.directory} is on {kind}, which cannot hold the layers of hosts.",
            hint="Set it (local_hosts_dir) to a directory on a plain file system such as ext4, xfs, btrfs or tmpfs.",
        )

    def ensure_home(self, subnet: ipaddress.IPv4Network) -> None:
        """The set's directory and its record. Call it with ``shared``."""
        if self.in_memory():
            os.makedirs(DEFAULT_DIR, mode=0o711, exist_ok=True)
            files.write_text(f"{RUN_DIR}/memory", "", durable=False)
            self.host.run(["mount", "-t", "tmpfs", "-o", "mode=0711,size=50%", "cnvm-local-hosts", DEFAULT_DIR])
        os.makedirs(f"{self.home}/hosts", mode=0o711, exist_ok=True)
        self.record = {"schema": 1, "subnet": str(subnet), "bridge": self.bridge}
        files.write_json(f"{self.home}/set.json", self.record, durable=False)
        files.write_text(f"{RUN_DIR}/sets/{self.set.set_name}", self.directory, durable=False)

    # One host

    def create(self, host: lh.Wanted, made: lh.Recipe, subnet: ipaddress.IPv4Network) -> None:
        """Make the host's layer and identity; it does not run yet. Its record comes last and makes it count."""
        own = self.own(host.name)
        self._clear(host.name)
        for folder in ("upper", "work", "root", *PLAIN_DIRS):
            os.makedirs(f"{own}/{folder}", mode=0o755)
        texts = lh.host_files(host.name, str(host.address), subnet.prefixlen, lh.gateway(subnet))
        for path, text in texts.items():
            self._put(host.name, path, text)
        self._put(host.name, "etc/machine-id", secrets.token_hex(16) + "\n", 0o444)
        proxies = {kind: url for kind, url in self.bases.proxies().items() if "127.0.0.1" not in url}
        if proxies and self.set.internet:
            lines = [f'Acquire::{kind[:-6]}::Proxy "{url}";\n' for kind, url in sorted(proxies.items())]
            self._put(host.name, "etc/apt/apt.conf.d/90cnvm-proxy", "".join(lines))
        self._put(host.name, "etc/ssh/.keep", "")
        os.unlink(f"{own}/upper/etc/ssh/.keep")
        key = f"{own}/upper/etc/ssh/ssh_host_ed25519_key"
        self.host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", key])
        self.let_in(host.name)
        files.write_json(
            f"{own}/host.json",
            {
                "schema": 1,
                "name": host.name,
                "address": host.address,
                "base": made.digest(),
                "suite": made.suite,
                "flavour": made.flavour,
                "host_key": " ".join(files.text_of(f"{key}.pub").split()[:2]),
                "rate": None,
                "link": "up",
            },
        )

    def _put(self, name: str, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of a host that does not run."""
        root, folder = f"{self.own(name)}/upper", ""
        for part in path.split("/")[:-1]:
            folder = f"{folder}/{part}"
            if not os.path.isdir(root + folder):
                os.mkdir(root + folder)
                os.chmod(root + folder, 0o700 if folder.startswith("/root") else 0o755)
        files.write_text(f"{root}/{path}", text, mode=mode, durable=False)

    def let_in(self, name: str) -> None:
        """Let the set's key in as root; other keys stay."""
        key, root = self._public_key(), self._root(name)
        if not key:
            raise HostError(f"ssh_key: {self.set.ssh_key}.pub holds no key.", hint="Make one with ssh-keygen.")
        has = files.text_of(f"{root}/root/.ssh/authorized_keys")
        if key in has:
            return
        if root.startswith("/proc/"):
            os.makedirs(f"{root}/root/.ssh", mode=0o700, exist_ok=True)
            files.write_text(f"{root}/root/.ssh/authorized_keys", has + key + "\n", mode=0o600, durable=False)
        else:
            self._put(name, "root/.ssh/authorized_keys", has + key + "\n", 0o600)

    def boot(self, name: str) -> None:
        """Start a host and return at once."""
        record = self.records()[name]
        base = str(record["base"])
        if not self.bases.has(base):
            raise HostError(
                f"{name} cannot be started: its base {self.bases.path(base)} is gone.",
                hint="Remove the host (state: absent) and make it anew, or set cache_dir to where it was made.",
            )
        self._clear_runtime(name)
        stub, behind = files.text_of("/etc/resolv.conf"), files.text_of("/run/systemd/resolve/resolv.conf")
        self._put(name, "etc/resolv.conf", lh.resolver_text(stub, behind))
        files.write_text(f"{self.own(name)}/console.log", "", durable=False)
        cgroup = None
        if not self.booted_by_systemd:
            cgroup = self.cgroup(name)
            os.makedirs(cgroup, exist_ok=True)
        self.host.run(
            lh.start_argv(
                set_name=self.set.set_name,
                host=name,
                own=self.own(name),
                lower=self.bases.path(base),
                bridge=self.bridge,
                binds={target: f"{self.own(name)}/{folder}" for folder, target in PLAIN_DIRS.items()},
                cgroup=cgroup,
            )
        )

    def wait(self, names: t.Sequence[str], *, thorough: t.Collection[str]) -> None:
        """Until each of ``names`` answers SSH; those in ``thorough`` with their own host key and a login."""
        end = time.monotonic() + self.set.timeout_s
        records = self.records()
        waiting = list(names)
        while waiting:
            for name in list(waiting):
                if self._answers(records[name], name in thorough):
                    waiting.remove(name)
                elif self._has_ended(name):
                    raise self._silent(name, "ended while it was starting")
                elif time.monotonic() > end:
                    raise self._silent(name, f"did not answer at {records[name]['address']} in {self.set.timeout_s} s")
            if waiting:
                time.sleep(0.1)

    def _has_ended(self, name: str) -> bool:
        """While processes are moved from group to group, a look may find none in any."""
        return not _wait(lambda: bool(self.processes(name)), 2)

    def _answers(self, record: t.Mapping[str, t.Any], thorough: bool) -> bool:
        try:
            with socket.create_connection((record["address"], 22), timeout=1) as connection:
                connection.settimeout(3)
                if not connection.recv(4).startswith(b"SSH-"):
                    return False
        except OSError:
            return False
        if not thorough:
            return True
        known = f"{self.own(record['name'])}/known_hosts"
        files.write_text(known, f"{record['address']} {record['host_key']}\n", mode=0o600, durable=False)
        words = (
            *("-n", "-F", "none", "-i", self.set.ssh_key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=3"),
        )
        argv = ["ssh", *words, f"root@{record['address']}", "systemctl", "is-system-running"]
        return self.host.run(argv, check=False, timeout_s=10).stdout.strip() in ("running", "degraded")

    def _silent(self, name: str, what: str) -> HostError:
        log = f"{self.own(name)}/console.log"
        console = lh.last_lines(files.text_of(log))
        hint = f"The last lines of {log}:\n{console}" if console else f"It wrote nothing to {log}."
        return HostError(f"{name} {what}.", hint=hint, console=console)

    def power_off(self, name: str) -> None:
        """As a power cut: SIGKILL to the host's PID 1. The kernel kills all that runs in it at once."""
        pid = self.init(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # nspawn notices, and clears up behind itself.
        _wait(lambda: not self.processes(name), 3)
        self._clear_runtime(name)

    def _clear_runtime(self, name: str) -> None:
        """Nothing of a host that ran is left: processes, cgroups, link. Harmless where there is nothing."""

        def killed() -> bool:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes(name)

        if not _wait(killed, 20):
            raise HostError(f"{name}: processes {self.processes(name)} do not end.", hint="Look at them with ps.")
        if self.booted_by_systemd:
            unit = f"{lh.unit_name(self.set.set_name, name)}.service"
            self.host.run(["systemctl", "stop", unit], check=False, timeout_s=30)
            self.host.run(["systemctl", "reset-failed", unit], check=False)

        groups = [self.cgroup(name)]
        if self.named_cgroups is not None and not self.booted_by_systemd:
            groups.append(f"{self.named_cgroups}/{lh.unit_name(self.set.set_name, name)}")

        def gone() -> bool:
            for group in groups:
                for folder, _folders, _files in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
            return not any(os.path.isdir(group) for group in groups)

        if not _wait(gone, 5):
            raise HostError(f"{name}: its cgroup {groups[0]} cannot be removed.")
        machine, link = lh.machine_name(self.set.set_name, name), lh.link_name(self.set.set_name, name)
        if os.path.isdir(f"/sys/class/net/{link}"):
            self.host.run(["ip", "link", "del", "dev", link], check=False)
        for kind in ("propagate", "unix-export"):
            with contextlib.suppress(OSError):
                os.rmdir(f"/run/systemd/nspawn/{kind}/{machine}")

    def _clear(self, name: str) -> None:
        self._clear_runtime(name)
        # The record first: from here on it is remains, and no host.
        files.remove_file(f"{self.own(name)}/host.json")
        files.remove_tree(self.own(name))

    def remove(self, name: str) -> None:
        """The host and all that is its."""
        if self.processes(name):
            self.power_off(name)
        self._clear(name)

    def shape(self, host: lh.Wanted) -> None:
        """Set the rate of a host's link at both ends, as far as it runs, and remember it."""
        self._remember(host.name, rate=host.rate)
        pid = self.init(host.name)
        if pid is None:
            return
        check = host.rate is not None
        link = lh.link_name(self.set.set_name, host.name)
        self.host.run(lh.shaping_argv(link, host.rate), check=check)
        inside = lh.shaping_argv("host0", host.rate)
        self.host.run(["nsenter", f"--net=/proc/{pid}/ns/net", *inside], check=check)

    def link(self, host: lh.Wanted) -> None:
        """Cut or mend a host's link, as far as it runs, and remember it.

        A cut takes the port off the bridge: packets vanish in both directions and no side is told.
        """
        self._remember(host.name, link=host.link)
        if self.init(host.name) is None:
            return
        link = lh.link_name(self.set.set_name, host.name)
        master = ["master", self.bridge] if host.link == "up" else ["nomaster"]
        self.host.run(["ip", "link", "set", "dev", link, *master])

    def _remember(self, name: str, **changes: t.Any) -> None:
        path = f"{self.own(name)}/host.json"
        files.write_json(path, {**(files.read_json(path) or {}), **changes}, durable=False)


def machine_recipe(settings: Settings) -> lh.Recipe:
    """The recipe of the base that ``settings`` ask for on this machine."""
    kernel = lh.kernel_version(platform.release())
    return lh.recipe(settings.suite, settings.flavour, settings.packages, kernel, platform.machine())
