# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH trust: what is kept, what is replaced, what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import trust

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPubBTeWRgqQKakgHHnXbqIx6cD77wChR1ekwLJGZedP"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILS8WS/kuG4f/ldJS2HUvDTcr3UDPlfmIfp2YakETr/w"
COMMAND = "/usr/local/sbin/cnvm-host serve"


def peer(name: str, key: str = KEY, **more: object) -> dict[str, object]:
    return {"name": name, "public_key": key, "host_keys": [OTHER], "port": 22, **more}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose files are in a temporary directory."""
    monkeypatch.setattr(trust, "PEERS", str(tmp_path / "peers.json"))
    monkeypatch.setattr(trust, "KNOWN_HOSTS", str(tmp_path / "known_hosts"))
    monkeypatch.setattr(paths, "SSH_CONFIG", str(tmp_path / "config"))
    return tmp_path


def options(home: Path) -> dict[str, list[str]]:
    return {"authorizedkeysfile": [str(home / "authorized_keys")]}


def test_a_peer_may_start_one_thing(home: Path) -> None:
    trust.apply(trust.plan("host1", [peer("host1"), peer("host2", port="2222")], [], options(home)))
    assert (home / "authorized_keys").read_text() == (
        f'{trust.BEGIN}\nrestrict,command="{COMMAND}" {KEY} cnvm:host2\n{trust.END}\n'
    )
    assert (home / "authorized_keys").stat().st_mode & 0o777 == 0o600
    assert (home / "known_hosts").read_text() == f"host2 {OTHER}\n"
    assert "Host host2\n  HostKeyAlias host2\n  Port 2222\n" in (home / "config").read_text()
    assert trust.plan("host1", [peer("host2", port=2222)], [], options(home)) == []


def test_hosts_that_are_not_in_the_play_stay(home: Path) -> None:
    trust.apply(trust.plan("host1", [peer("host2"), peer("host3")], [], options(home)))
    assert trust.plan("host1", [], [], options(home)) == []
    trust.apply(trust.plan("host1", [peer("host2", OTHER)], [], options(home)))
    assert json.loads((home / "peers.json").read_text())["peers"].keys() == {"host2", "host3"}
    assert f"{OTHER} cnvm:host2" in (home / "authorized_keys").read_text()
    assert f"{KEY} cnvm:host2" not in (home / "authorized_keys").read_text()


def test_a_host_is_removed_by_name_even_when_it_is_in_the_play(home: Path) -> None:
    trust.apply(trust.plan("host1", [peer("host2"), peer("host3")], [], options(home)))
    trust.apply(trust.plan("host1", [peer("host2")], ["host2"], options(home)))
    for name in ("authorized_keys", "known_hosts", "config", "peers.json"):
        assert "host2" not in (home / name).read_text()
        assert "host3" in (home / name).read_text()


def test_removed_hosts_may_be_a_text(home: Path) -> None:
    """Ansible makes a list of it, and leaves the blanks; of an empty one it makes a list with nothing in it."""
    trust.apply(trust.plan("host1", [peer("host2"), peer("host3"), peer("host4")], [""], options(home)))
    trust.apply(trust.plan("host1", [], ["host2", " host3"], options(home)))
    assert "host2" not in (home / "peers.json").read_text()
    assert "host3" not in (home / "peers.json").read_text()
    assert "host4" in (home / "peers.json").read_text()


def test_the_record_is_written_last(home: Path) -> None:
    changes = trust.plan("host1", [peer("host2")], [], options(home))
    assert [Path(change.path).name for change in changes][-1] == "peers.json"
    trust.apply(changes[:-1])
    assert [Path(change.path).name for change in trust.plan("host1", [peer("host2")], [], options(home))] == [
        "peers.json"
    ]


def test_ssh_takes_the_config_and_sshd_keygen_the_known_hosts(tmp_path: Path) -> None:
    peers = trust.check_peers([peer("host2", port=2222), peer("host3")])
    config, known = tmp_path / "config", tmp_path / "known_hosts"
    config.write_text(trust.config_text(peers))
    known.write_text(trust.known_hosts_text(peers))
    for name, port in (("host2", "2222"), ("host3", "22")):
        said = subprocess.run(["ssh", "-G", "-F", str(config), name], capture_output=True, text=True, check=True).stdout
        seen = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
        assert (seen["hostkeyalias"], seen["port"], seen["user"]) == (name, port, "root")
        assert (seen["stricthostkeychecking"], seen["batchmode"], seen["updatehostkeys"]) == ("true", "yes", "false")
        assert seen["userknownhostsfile"] == trust.KNOWN_HOSTS
        assert seen["ciphers"].startswith("aes128-gcm@openssh.com,")
        assert not subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(known)], capture_output=True, check=False
        ).returncode


lines = st.lists(st.sampled_from(["# mine", f"{KEY} me@home", 'from="10.0.0.1" ' + OTHER, ""]), max_size=6)


@given(lines, lines, st.booleans())
def test_other_keys_stay_as_they_are(before: list[str], after: list[str], newline: bool) -> None:
    text = "".join(f"{line}\n" for line in before)
    rest = "".join(f"{line}\n" for line in after)
    if not newline:
        rest = rest.rstrip("\n")
    one = trust.check_peers([peer("host2")])
    mixed = text + trust.authorized_keys_text("", one, COMMAND) + rest
    two = trust.check_peers([peer("host2"), peer("host3")])
    assert trust.authorized_keys_text(mixed, two, COMMAND) == text + trust.authorized_keys_text("", two, COMMAND) + rest
    assert trust.authorized_keys_text(mixed, {}, COMMAND) == text + rest
    assert trust.authorized_keys_text(mixed, one, COMMAND) == mixed


def test_a_last_line_without_end_is_not_glued_to_the_block() -> None:
    text = trust.authorized_keys_text(f"{KEY} me", trust.check_peers([peer("host2")]), COMMAND)
    assert text.startswith(f"{KEY} me\n{trust.BEGIN}\n")


def test_a_block_without_end_is_not_guessed_at() -> None:
    with pytest.raises(HostError, match="without"):
        trust.authorized_keys_text(f"{trust.BEGIN}\n{KEY} me\n", {}, COMMAND)


@pytest.mark.parametrize(
    "key",
    [
        "",
        None,
        7,
        "ssh-ed25519",
        "ssh-dss AAAAB3NzaC1kc3MAAACB",
        'command="/bin/sh" ' + KEY,
        "ssh-ed25519 AAAA\nssh-ed25519 BBBB",
        "ssh-ed25519 AAAA*",
    ],
)
def test_keys_that_are_none(key: object) -> None:
    if isinstance(key, str) and "\n" in key:
        # Only the first two words are taken: no second line gets in.
        assert "\n" not in trust.check_key(key, "key")
        return
    with pytest.raises(InputError, match="key"):
        trust.check_key(key, "key")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"name": "a b"}, r"peers\[0\].name"),
        ({"name": "../x"}, r"peers\[0\].name"),
        ({"name": 7}, "quotes"),
        (peer("host2", host_keys=[]), "host_keys"),
        (peer("host2", port=0), "port"),
        (peer("host2", port=True), "port"),
        (peer("host2", user="x"), "unknown key 'user'"),
        ("host2", "not a mapping"),
    ],
)
def test_peers_that_are_none(item: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        trust.check_peers([item])


@pytest.mark.parametrize("again", ["host2", "Host2"])
def test_a_name_given_twice(again: str) -> None:
    with pytest.raises(InputError, match="twice"):
        trust.check_peers([peer("host2"), peer(again)])


GOOD = """permitrootlogin without-password
pubkeyauthentication yes
authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2
forcecommand none
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        (GOOD, ""),
        (GOOD.replace("without-password", "forced-commands-only"), ""),
        (GOOD.replace("without-password", "yes"), ""),
        (GOOD + "allowusers admin root\n", ""),
        (GOOD + "allowusers root@10.0.0.0/8\n", ""),
        (GOOD.replace("without-password", "no"), "PermitRootLogin"),
        (GOOD.replace("pubkeyauthentication yes", "pubkeyauthentication no"), "PubkeyAuthentication"),
        (GOOD.replace("forcecommand none", "forcecommand internal-sftp"), "internal-sftp"),
        (GOOD + "allowusers admin\n", "allowusers"),
        (GOOD + "denyusers bad root\n", "denyusers"),
    ],
)
def test_sshd(text: str, said: str) -> None:
    problem = trust.sshd_problem(trust.parse_sshd(text))
    assert said in problem
    assert bool(said) == bool(problem)


def test_where_sshd_looks_for_keys() -> None:
    assert trust.authorized_keys_file(trust.parse_sshd(GOOD)).endswith("/.ssh/authorized_keys")
    assert trust.authorized_keys_file({"authorizedkeysfile": ["/etc/ssh/keys/%u %h/x"]}) == "/etc/ssh/keys/root"
    assert trust.authorized_keys_file({}).endswith("/.ssh/authorized_keys")


def test_host_keys(tmp_path: Path) -> None:
    assert trust.host_keys(str(tmp_path)) == []
    (tmp_path / "ssh_host_rsa_key.pub").write_text("ssh-rsa AAAAB3NzaC1yc2E= root@x\n")
    assert trust.host_keys(str(tmp_path)) == ["ssh-rsa AAAAB3NzaC1yc2E="]
    (tmp_path / "ssh_host_ed25519_key.pub").write_text(f"{KEY} root@x\n")
    assert trust.host_keys(str(tmp_path)) == [KEY]
