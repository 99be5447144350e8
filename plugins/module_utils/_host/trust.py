# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""SSH between hosts: one key per host, host keys checked, and a peer's key may start the helper and nothing else.

``peers.json`` is the record; known_hosts, config and the block in root's authorized_keys are rendered from it. A peer
stays in the record until it is removed by name: a play on a part of the hosts never cuts off the others.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pwd
import re
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError
from .._core.names import check_name
from .._core.values import integer, known_keys, word_list
from .files import read_json, write_text
from .system import Host

SSH = os.path.dirname(paths.SSH_CONFIG)
KEY = f"{SSH}/id_ed25519"
KNOWN_HOSTS = f"{SSH}/known_hosts"
PEERS = f"{SSH}/peers.json"
BEGIN = "# BEGIN cnvm.platform hosts"
END = "# END cnvm.platform hosts"
Peers = dict[str, dict[str, t.Any]]

_KEY_TEXT = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]+={0,2}\Z")

_CONFIG_HEAD = (
    "# Written by cnvm.platform: how the hosts reach each other. The caller gives the address (-o HostName=).\n"
)
_CONFIG_TAIL = f"""Host *
  User root
  IdentityFile {KEY}
  IdentitiesOnly yes
  PreferredAuthentications publickey
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile {KNOWN_HOSTS}
  GlobalKnownHostsFile /dev/null
  UpdateHostKeys no
  ConnectTimeout 5
  ServerAliveInterval 2
  ServerAliveCountMax 3
  Compression no
  Ciphers ^aes128-gcm@openssh.com,aes256-gcm@openssh.com
"""


def check_key(value: object, option: str) -> str:
    """``type base64`` of a public key without its comment. Anything else could add options to authorized_keys."""
    words = value.split() if isinstance(value, str) else []
    text = " ".join(words[:2])
    if not _KEY_TEXT.match(text):
        raise InputError(f"{option}: {value!r} is no SSH public key.", hint="Allowed: 'ssh-ed25519 AAAA…' or the like.")
    return text


def check_peers(items: t.Sequence[object]) -> Peers:
    """Peers as the role gives them, by name."""
    peers: Peers = {}
    for number, item in enumerate(items):
        at = f"peers[{number}]"
        peer = known_keys(item, at, ("name", "public_key", "host_keys", "port"))
        name = check_name(peer.get("name"), f"{at}.name")
        keys = peer.get("host_keys")
        if not isinstance(keys, list) or not keys:
            raise InputError(f"{at}.host_keys: {keys!r} is not allowed.", hint="Allowed: a list of public keys.")
        # SSH takes capitals for small letters: the key of one would do for the other.
        if name.lower() in {each.lower() for each in peers}:
            raise InputError(
                f"{at}.name: {name!r} is there twice, or differs from another one in capitals only.",
                hint="Give each host its own name.",
            )
        peers[name] = {
            "public_key": check_key(peer.get("public_key"), f"{at}.public_key"),
            "host_keys": sorted(check_key(key, f"{at}.host_keys") for key in keys),
            "port": integer(peer.get("port", 22), f"{at}.port", least=1, most=65535),
        }
    return peers


def merge(known: Peers, peers: Peers, removed: t.Iterable[str], own_name: str) -> Peers:
    """The record after this run."""
    gone = {*removed, own_name}
    return {name: peer for name, peer in sorted({**known, **peers}.items()) if name not in gone}


def known_hosts_text(peers: Peers) -> str:
    """known_hosts by name, never by address: addresses change, and a host has several."""
    return "".join(f"{name} {key}\n" for name, peer in sorted(peers.items()) for key in peer["host_keys"])


def config_text(peers: Peers) -> str:
    """The ssh_config; first match wins, so what is particular to a peer comes first."""
    blocks = []
    for name, peer in sorted(peers.items()):
        port = f"  Port {peer['port']}\n" if peer["port"] != 22 else ""
        blocks.append(f"Host {name}\n  HostKeyAlias {name}\n{port}")
    return _CONFIG_HEAD + "".join(blocks) + _CONFIG_TAIL


def authorized_keys_text(text: str, peers: Peers, command: str) -> str:
    """``text`` with our block replaced, added, or left out when there is no peer. All else stays as it is."""
    before: list[str] = []
    after: list[str] = []
    inside = seen = False
    for line in text.splitlines(keepends=True):
        if line.rstrip("\r\n") == BEGIN:
            inside = seen = True
        elif inside and line.rstrip("\r\n") == END:
            inside = False
        elif not inside:
            (after if seen else before).append(line)
    if inside:
        raise HostError(
            f"authorized_keys has '{BEGIN}' without '{END}'.", hint="Put the end line back where it belongs."
        )
    lines = [f'restrict,command="{command}" {peer["public_key"]} cnvm:{name}\n' for name, peer in sorted(peers.items())]
    block = [f"{BEGIN}\n", *lines, f"{END}\n"] if lines else []
    if block and before and not before[-1].endswith("\n"):
        before[-1] += "\n"
    return "".join([*before, *block, *after])


def parse_sshd(text: str) -> dict[str, list[str]]:
    """``sshd -T`` as option → values (an option may stand there several times)."""
    options: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, space, value = line.partition(" ")
        if space:
            options.setdefault(word.lower(), []).append(value.strip())
    return options


def sshd_options(host: Host) -> dict[str, list[str]]:
    """What sshd does for root, Match blocks included; empty where it cannot be asked."""
    result = host.run(["sshd", "-T", "-C", "user=root,host=localhost,addr=127.0.0.1"], check=False, timeout_s=10)
    return parse_sshd(result.stdout) if result.rc == 0 else {}


def sshd_problem(options: t.Mapping[str, list[str]]) -> str:
    """Why peers cannot log in as root with a key and a forced command; empty when they can."""

    def first(name: str) -> str:
        return (options.get(name) or [""])[0]

    if not options:
        return ""
    if first("permitrootlogin") == "no":
        return "sshd has 'PermitRootLogin no'; set it to 'forced-commands-only' or 'prohibit-password'."
    if first("pubkeyauthentication") == "no":
        return "sshd has 'PubkeyAuthentication no'; set it to 'yes'."
    if first("authorizedkeysfile") == "none":
        return "sshd has 'AuthorizedKeysFile none'; leave it at its default."
    if first("forcecommand") not in ("", "none"):
        return f"sshd has 'ForceCommand {first('forcecommand')}' for root; exempt root from it."
    for word in ("denyusers", "denygroups"):
        if "root" in " ".join(options.get(word, [])).split():
            return f"sshd has root in '{word}'; take it out."
    for word in ("allowusers", "allowgroups"):
        allowed = " ".join(options.get(word, [])).split()
        if allowed and not any(entry.split("@")[0] in ("root", "*") for entry in allowed):
            return f"sshd has '{word}' without root; add it."
    return ""


def authorized_keys_file(options: t.Mapping[str, list[str]]) -> str:
    """The file that sshd reads for root."""
    home = pwd.getpwuid(0).pw_dir
    name = (options.get("authorizedkeysfile") or [""])[0].split()[:1] or [".ssh/authorized_keys"]
    path = name[0].replace("%h", home).replace("%u", "root").replace("%U", "0").replace("%%", "%")
    return os.path.realpath(os.path.join(home, path))


def host_keys(directory: str = "/etc/ssh") -> list[str]:
    """The public host keys; only the ed25519 one where there is one, as peers ask for that first."""
    keys = []
    for path in sorted(glob.glob(f"{directory}/ssh_host_*_key.pub")):
        with open(path, encoding="utf-8") as file:
            words = file.read().split()
        text = " ".join(words[:2])
        if _KEY_TEXT.match(text):
            keys.append(text)
    return [key for key in keys if key.startswith("ssh-ed25519 ")] or keys


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise HostError(
            f"{path} is not UTF-8 text: {error}.", hint="Correct the line; it would be lost else."
        ) from error


def identity(name: str, options: t.Mapping[str, list[str]]) -> dict[str, t.Any]:
    """What the peers must know of this host. ``public_key`` is empty while there is no key."""
    port = (options.get("port") or ["22"])[0]
    return {
        "name": name,
        "public_key": " ".join(_read(f"{KEY}.pub").split()[:2]),
        "host_keys": host_keys(),
        "port": int(port),
    }


def make_key(host: Host, name: str) -> None:
    """The host's key pair; the private half never leaves the host."""
    os.makedirs(SSH, mode=0o700, exist_ok=True)
    os.chmod(SSH, 0o700)
    if os.path.exists(KEY):
        # Only the public half was lost.
        made = host.run(["ssh-keygen", "-y", "-f", KEY], timeout_s=30)
        write_text(f"{KEY}.pub", f"{made.stdout.strip()}\n")
    else:
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"cnvm:{name}", "-f", KEY], timeout_s=30)


@dataclasses.dataclass(frozen=True)
class Change:
    """A file that is to hold another text."""

    path: str
    before: str
    after: str
    mode: int


def plan(name: str, peers: t.Sequence[object], removed: object, options: t.Mapping[str, list[str]]) -> list[Change]:
    """The files that must change. The record comes last, so that a run that was cut off is done again."""
    known = t.cast(Peers, (read_json(PEERS) or {}).get("peers", {}))
    gone = [check_name(item, f"removed[{number}]") for number, item in enumerate(word_list(removed, "removed"))]
    record = merge(known, check_peers(peers), gone, name)
    keys_file = authorized_keys_file(options)
    wanted = (
        (KNOWN_HOSTS, known_hosts_text(record), 0o644),
        (paths.SSH_CONFIG, config_text(record), 0o644),
        (keys_file, authorized_keys_text(_read(keys_file), record, f"{paths.HELPER} serve"), 0o600),
        (PEERS, json.dumps({"schema": 1, "peers": record}, indent=1, sort_keys=True) + "\n", 0o644),
    )
    changes = [Change(path, _read(path), text, mode) for path, text, mode in wanted]
    return [change for change in changes if change.before != change.after]


def apply(changes: t.Iterable[Change]) -> None:
    """Write what ``plan`` found."""
    for change in changes:
        os.makedirs(os.path.dirname(change.path), mode=0o700, exist_ok=True)
        write_text(change.path, change.after, mode=change.mode)
