# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What cloud-init would choke on, or silently leave out, said before a guest boots with it.

Only the basics: what nearly everybody uses, and what nearly everybody once got wrong. Messages name keys and places and
never quote values: these may be passwords and keys.
"""

from __future__ import annotations

import difflib
import email
import ipaddress
import re
import typing as t

from .._core.errors import InputError

# Reads YAML; its ValueError says what is wrong and where. None where the host has no library for it.
YamlReader = t.Optional[t.Callable[[str], t.Any]]

CLOUD_CONFIG = "#cloud-config"
_CONFIG, _ARCHIVE, _JINJA = "text/cloud-config", "text/cloud-config-archive", "text/jinja2"
# What cloud-init takes a text for that begins so (its handlers/__init__.py); it takes capitals and blanks before them,
# too. The first that fits.
_STARTS = {
    "#cloud-config-archive": _ARCHIVE,
    "#cloud-config-jsonp": "text/cloud-config-jsonp",
    CLOUD_CONFIG: _CONFIG,
    "#cloud-boothook": "text/cloud-boothook",
    "#include-once": "text/x-include-once-url",
    "#include": "text/x-include-url",
    "#part-handler": "text/part-handler",
    "#!": "text/x-shellscript",
    "## template: jinja": _JINJA,
}
_KINDS = frozenset((*_STARTS.values(), *(f"text/x-shellscript-per-{when}" for when in ("boot", "instance", "once"))))
# Types of a MIME message's parts that say nothing: it looks how they begin (its user_data.py).
_VAGUE = ("text/plain", "text/x-not-multipart", "text/x-shellscript")
_PACKED = re.compile(r"application/.*(gzip|gunzip|compress)")

_FLAGS = frozenset(
    """
    allow_public_ssh_keys apt_reboot_if_required apt_update apt_upgrade create_hostname_file disable_ec2_metadata
    disable_root manage_resolv_conf no_ssh_fingerprints package_reboot_if_required package_update package_upgrade
    prefer_fqdn_over_hostname preserve_hostname ssh_deletekeys ssh_quiet_keygen
    """.split()  # noqa: SIM905
)
_MAPPINGS = frozenset(
    """
    ansible apk_repos apt autoinstall ca_certs chef chpasswd datasource device_aliases disk_setup drivers fan growpart
    grub_dpkg keyboard landscape lxd mcollective ntp output phone_home power_state puppet random_seed resolv_conf
    rh_subscription rpi rsyslog salt_minion snap spacewalk ssh ssh_keys ssh_publish_hostkeys swap system_info
    ubuntu_pro updates vendor_data wireguard yum_repos zypper
    """.split()  # noqa: SIM905
)
_LISTS = frozenset(
    """
    bootcmd cloud_config_modules cloud_final_modules cloud_init_modules fs_setup mount_default_fields mounts packages
    runcmd ssh_authorized_keys ssh_fp_console_blacklist ssh_genkeytypes ssh_import_id ssh_key_console_blacklist
    write_files
    """.split()  # noqa: SIM905
)
_TEXTS = frozenset(
    """
    byobu_by_default disable_root_opts final_message fqdn hostname locale_configfile password timezone yum_repo_dir
    """.split()  # noqa: SIM905
)
_ANY = frozenset(
    """
    apt_pipelining ca-certs groups grub-dpkg launch-index locale manage_etc_hosts merge_how merge_type network
    resize_rootfs ssh_pwauth ubuntu_advantage user users
    """.split()  # noqa: SIM905
)
_KNOWN = _FLAGS | _MAPPINGS | _LISTS | _TEXTS | _ANY

# Of network configurations: the types of version 1, and the keys of version 2 with those of netplan, which gets them
# where there is one.
_NETWORK_TYPES = ("bond", "bridge", "infiniband", "loopback", "nameserver", "physical", "route", "vlan")
_NETWORK_KEYS = frozenset(
    """
    bonds bridges dummy-devices ethernets modems nm-devices openvswitch renderer tunnels version virtual-ethernets
    vlans vrfs wifis
    """.split()  # noqa: SIM905
)
_DEVICE_KEYS = frozenset(
    """
    accept-ra activation-mode addresses auth critical delay-virtual-functions-rebind dhcp-identifier dhcp4
    dhcp4-overrides dhcp6 dhcp6-overrides embedded-switch-mode emit-lldp gateway4 gateway6 generic-receive-offload
    generic-segmentation-offload hairpin id ignore-carrier infiniband-mode interfaces ipv6-address-generation
    ipv6-address-token ipv6-mtu ipv6-privacy large-receive-offload link link-local macaddress match mtu nameservers
    neigh-suppress networkmanager openvswitch optional optional-addresses parameters port-mac-learning ra-overrides
    receive-checksum-offload renderer routes routing-policy set-name tcp-segmentation-offload
    tcp6-segmentation-offload transmit-checksum-offload virtual-function-count wakeonlan
    """.split()  # noqa: SIM905
)

_TRUTH = re.compile(r"(true|false|yes|no|on|off|1|0)\Z", re.IGNORECASE)
_OCTAL = re.compile(r"(0o?)?[0-7]{3,4}\Z")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z")
_PUBLIC_KEY = re.compile(r"((ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+ \S+|\S*=\S* .*(ssh|ecdsa|sk-ssh|sk-ecdsa)-)")


def _wrong(option: str, what: str, hint: str) -> InputError:
    return InputError(f"{option}: {what}.", hint=hint)


def not_read(option: str) -> str:
    """The warning where nothing on this host can read YAML."""
    return f"{option}: only how it begins was checked: this host has no PyYAML (python3-yaml) to read it with."


def read(text: str, option: str, yaml: YamlReader) -> t.Any:
    """The value of a YAML text; None where nothing on this host can read it."""
    if yaml is None:
        return None
    try:
        return yaml(text)
    except ValueError as error:
        raise _wrong(option, f"it is no YAML: {error}", "Mend it; cloud-init would leave all of it out.") from None


def check_user_data(value: t.Any, option: str, yaml: YamlReader) -> list[str]:
    """InputError for user data (or vendor data) that cloud-init could not use; warnings for what it would ignore."""
    if not isinstance(value, str):
        return check_cloud_config(value, option)
    if value.startswith("\ufeff"):
        raise _wrong(option, "it begins with a byte order mark", "Save it as UTF-8 without one.")
    # cloud-init decides so, too. What has no headers in front is one part for its parser, and begins as the text does.
    if "mime-version:" in value[:4096].lower():
        return _check_message(value, option, yaml)
    return _check_text(value, option, yaml)


def _check_message(value: str, option: str, yaml: YamlReader) -> list[str]:
    """The same for the parts of a MIME message."""
    message = email.message_from_bytes(value.encode("utf-8", "replace"))
    parts = [part for part in message.walk() if part.get_content_maintype() not in ("multipart", "message")]
    if not parts:
        return [f"{option}: cloud-init finds no part in this MIME message."]
    warnings = []
    for number, part in enumerate(parts):
        where = option if part is message else f"{option}[{number}]"
        content = t.cast(bytes, part.get_payload(decode=True)).decode("utf-8", "replace")
        kind = part.get_content_type()
        if kind in _VAGUE:
            warnings += _check_text(content, where, yaml)
        else:
            warnings += _check_part(kind, content, where, yaml)
    return warnings


def _begins(text: str) -> str:
    """What cloud-init takes a text for; empty where it does not know."""
    head = text.lstrip().lower()
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), "")


def _check_text(value: str, option: str, yaml: YamlReader) -> list[str]:
    """The same for what is known by how it begins."""
    if not value.strip():
        return []
    low = value.lstrip().split("\n", 1)[0].rstrip().lower()
    kind = _begins(value)
    if not kind or (kind == _CONFIG and low != CLOUD_CONFIG and not low.startswith(CLOUD_CONFIG + " ")):
        hint = "Begin it with one of: #cloud-config, #!, #include, #cloud-boothook, '## template: jinja'."
        if re.match(r"#\s*cloud[-_ ]?config", low):
            hint = "Its first line must be '#cloud-config', letter by letter."
        raise _wrong(
            option,
            "cloud-init would not know what it is",
            f"{hint} For guests that do not run cloud-init set check_user_data: false.",
        )
    return _check_part(kind, value, option, yaml)


def _check_part(kind: str, content: str, where: str, yaml: YamlReader) -> list[str]:
    """The same for what cloud-init takes for ``kind``."""
    if kind in (_CONFIG, _ARCHIVE):
        if yaml is None:
            return [not_read(where)]
        found = read(content, where, yaml)
        if found is None:
            return []
        return _check_archive(found, where, yaml) if kind == _ARCHIVE else check_cloud_config(found, where)
    if kind == _JINJA or _PACKED.match(kind):
        what = "a Jinja template" if kind == _JINJA else "compressed"
        return [f"{where}: it is {what}, and was not checked: only cloud-init in the guest can read it."]
    if kind not in _KINDS:
        return [f"{where}: cloud-init has no such type of a part, and leaves it out unless a part handler takes it."]
    return []


def _check_archive(value: t.Any, option: str, yaml: YamlReader) -> list[str]:
    """The same for the content of ``#cloud-config-archive``: parts, each of them user data."""
    if not isinstance(value, list):
        raise _wrong(option, "it is no list", "Write one part per item, each after '- '.")
    warnings = []
    for number, part in enumerate(value):
        where = f"{option}[{number}]"
        if not isinstance(part, (str, dict)):
            raise _wrong(where, "it is neither text nor a mapping", "Each part is a mapping with type and content.")
        about = part if isinstance(part, dict) else {"content": part}
        content = about.get("content")
        if not isinstance(content, (str, bytes, type(None))):
            raise _wrong(f"{where}.content", "it is no text", "Put it in quotes, or write it below 'content: |'.")
        if isinstance(content, str):
            # Without a type it is taken for cloud-config, unless it begins as something else.
            kind = str(about.get("type") or _begins(content) or _CONFIG).lower()
            warnings += _check_part(kind, content, f"{where}.content", yaml)
    return warnings


def check_cloud_config(value: t.Any, option: str) -> list[str]:
    """The same for the content of ``#cloud-config``."""
    if not isinstance(value, dict):
        raise _wrong(option, "it is no mapping", "Write 'KEY: VALUE' lines, such as 'packages: [curl]'.")
    warnings = []
    for key, inner in value.items():
        where = f"{option}: {key}"
        if not isinstance(key, str):
            raise _wrong(where, "this key is no text", "Put it in quotes.")
        if key not in _KNOWN:
            warnings.append(_no_such("key", key, _KNOWN, where))
        elif inner is not None:
            _check_type(key, inner, where)
    for key in ("runcmd", "bootcmd"):
        _check_commands(value.get(key), f"{option}: {key}")
    _check_files(value.get("write_files"), f"{option}: write_files")
    _check_users(value.get("users"), f"{option}: users", warnings)
    _check_keys(value.get("ssh_authorized_keys"), f"{option}: ssh_authorized_keys", warnings)
    return warnings


def _no_such(what: str, word: object, known: t.Iterable[str], where: str) -> str:
    """The warning for a word that cloud-init does not have, with the nearest that it has."""
    nearest = difflib.get_close_matches(str(word).lower(), sorted(known), 1, 0.8)
    return f"{where}: cloud-init has no such {what}{f'; {nearest[0]} is meant perhaps' if nearest else ''}."


def _no_such_keys(given: t.Iterable[object], known: t.Collection[str], where: str) -> list[str]:
    return [_no_such("key", key, known, f"{where}{key}") for key in given if key not in known]


def _check_type(key: str, value: t.Any, where: str) -> None:
    if key in _FLAGS and not isinstance(value, bool) and not (isinstance(value, str) and _TRUTH.match(value)):
        raise _wrong(where, "it is neither true nor false", "Write true or false.")
    if key in _MAPPINGS and not isinstance(value, dict):
        raise _wrong(where, "it is no mapping", "See cloud-init's documentation of this key.")
    if key in _LISTS and not isinstance(value, list):
        raise _wrong(where, "it is no list", "Write one value per line, each after '- '.")
    if key in _TEXTS and not isinstance(value, str):
        raise _wrong(where, "it is no text", "Put it in quotes: YAML makes a number or a truth value of it.")


def _check_commands(value: t.Any, where: str) -> None:
    for number, command in enumerate(value or []):
        if isinstance(command, dict):
            raise _wrong(
                f"{where}[{number}]",
                "it is a mapping, no command",
                "A colon and a blank in a command make one. Put the whole command in quotes.",
            )
        if isinstance(command, bool) or not isinstance(command, (str, list, type(None))):
            raise _wrong(f"{where}[{number}]", "it is no command", "Write text, or a list of words.")
        if isinstance(command, list) and any(isinstance(word, (dict, list)) for word in command):
            raise _wrong(f"{where}[{number}]", "a word of it is no text", "Put each word in quotes.")


def _check_files(value: t.Any, where: str) -> None:
    for number, item in enumerate(value or []):
        each = f"{where}[{number}]"
        if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not item["path"].startswith("/"):
            raise _wrong(each, "it has no absolute path", "Each file is a mapping with path and content.")
        if item.get("content") is not None and not isinstance(item["content"], (str, bytes)):
            raise _wrong(f"{each}.content", "it is no text", "Put it in quotes, or write it below 'content: |'.")
        mode = item.get("permissions")
        if mode is not None and (not isinstance(mode, str) or not _OCTAL.match(mode)):
            raise _wrong(
                f"{each}.permissions",
                "it is no text of octal digits",
                "Put it in quotes: YAML makes the number 420 of 0644.",
            )


def _check_users(value: t.Any, where: str, warnings: list[str]) -> None:
    if isinstance(value, (bool, int, float)):
        raise _wrong(where, "it is no list of users", "Write one user per item, each after '- '.")
    if not isinstance(value, list):
        return
    for number, user in enumerate(value):
        each = f"{where}[{number}]"
        if isinstance(user, str) or (isinstance(user, list) and all(isinstance(name, str) for name in user)):
            continue
        if not isinstance(user, dict):
            raise _wrong(each, "it is no user", "Write 'default', or a mapping with a name.")
        if "name" not in user and "snapuser" not in user:
            raise _wrong(each, "it has no name", "Each user is a mapping with a name.")
        for key in ("name", "passwd", "hashed_passwd", "plain_text_passwd", "shell", "homedir", "gecos"):
            if key in user and not isinstance(user[key], (str, type(None))):
                raise _wrong(f"{each}.{key}", "it is no text", "Put it in quotes.")
        keys = user.get("ssh_authorized_keys", user.get("ssh-authorized-keys"))
        _check_keys([keys] if isinstance(keys, str) else keys, f"{each}.ssh_authorized_keys", warnings)


def _check_keys(value: t.Any, where: str, warnings: list[str]) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise _wrong(where, "it is no list", "Write one key per line, each after '- '.")
    for number, key in enumerate(value):
        if not isinstance(key, str):
            raise _wrong(f"{where}[{number}]", "it is no text", "Give one line of a .pub file each.")
        if not _PUBLIC_KEY.match(key):
            warnings.append(f"{where}[{number}]: this is no public SSH key.")


# -- Networks


def check_network(value: t.Any, option: str, yaml: YamlReader) -> list[str]:
    """InputError for a network configuration (versions 1 and 2) that cloud-init could not use; warnings for what it
    would ignore."""
    if isinstance(value, str):
        value = read(value, option, yaml)
        if value is None:
            return []
    if not isinstance(value, dict):
        raise _wrong(option, "it is no mapping", "Write 'version: 2' and 'ethernets:'.")
    if isinstance(value.get("network"), dict) and len(value) == 1:
        value = value["network"]
    version = value.get("version")
    if isinstance(version, bool) or version not in (1, 2):
        if value.get("config") == "disabled":
            return []
        raise _wrong(option, "it has no version 1 or 2", "Write 'version: 2'.")
    return _check_version_1(value, option) if version == 1 else _check_version_2(value, option)


def _check_version_1(value: dict[str, t.Any], option: str) -> list[str]:
    config = value.get("config")
    if config == "disabled":
        return []
    warnings = []
    if not isinstance(config, list):
        raise _wrong(f"{option}: config", "it is no list", "See cloud-init's networking config version 1.")
    for number, item in enumerate(config):
        where = f"{option}: config[{number}]"
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            raise _wrong(where, "it has no type", "Each is a mapping with type and name.")
        if item["type"] not in _NETWORK_TYPES:
            warnings.append(_no_such("type", item["type"], _NETWORK_TYPES, f"{where}.type"))
        _check_mac(item.get("mac_address"), f"{where}.mac_address")
        subnets = item.get("subnets")
        if not isinstance(subnets, (list, type(None))):
            raise _wrong(f"{where}.subnets", "it is no list", "Write one per line, each after '- '.")
        for each in subnets or []:
            if not isinstance(each, dict) or "type" not in each:
                raise _wrong(f"{where}.subnets", "one of them has no type", "Write 'type: dhcp' or 'type: static'.")
            if each.get("address") is not None:
                _check_address(each["address"], f"{where}.subnets.address", "/" if "netmask" not in each else "")
    return warnings


def _check_version_2(value: dict[str, t.Any], option: str) -> list[str]:
    warnings = _no_such_keys(value, _NETWORK_KEYS, f"{option}: ")
    for kind in ("ethernets", "bonds", "bridges", "vlans"):
        devices = value.get(kind)
        if devices is None:
            continue
        if not isinstance(devices, dict):
            raise _wrong(f"{option}: {kind}", "it is no mapping", "Write the name of an interface and ':' below it.")
        for name, device in devices.items():
            where = f"{option}: {kind}.{name}"
            if device is None:
                continue
            if not isinstance(device, dict):
                raise _wrong(where, "it is no mapping", "Write settings such as 'dhcp4: true' below it.")
            warnings += _check_device(device, where)
    return warnings


def _check_device(device: dict[str, t.Any], where: str) -> list[str]:
    warnings = _no_such_keys(device, _DEVICE_KEYS, f"{where}.")
    match = device.get("match")
    if isinstance(match, dict):
        warnings += _no_such_keys(match, ("name", "macaddress", "driver"), f"{where}.match.")
        _check_mac(match.get("macaddress"), f"{where}.match.macaddress")
    elif match is not None:
        raise _wrong(f"{where}.match", "it is no mapping", "Write 'match: {macaddress: \"52:54:00:…\"}'.")
    _check_mac(device.get("macaddress"), f"{where}.macaddress")
    for key in ("dhcp4", "dhcp6"):
        given = device.get(key)
        if given is not None and not isinstance(given, bool) and not (isinstance(given, str) and _TRUTH.match(given)):
            raise _wrong(f"{where}.{key}", "it is neither true nor false", "Write true or false.")
    addresses = device.get("addresses")
    if not isinstance(addresses, (list, type(None))):
        raise _wrong(f"{where}.addresses", "it is no list", "Write [192.0.2.5/24].")
    for address in addresses or []:
        # Netplan takes a mapping with options of one address.
        for one in address if isinstance(address, dict) else [address]:
            _check_address(one, f"{where}.addresses", "/")
    for key in ("gateway4", "gateway6"):
        if device.get(key) is not None:
            _check_address(device[key], f"{where}.{key}", "")
    routes = device.get("routes")
    if not isinstance(routes, (list, type(None))):
        raise _wrong(f"{where}.routes", "it is no list", "Write '- to: default' and 'via: 192.0.2.1'.")
    for route in routes or []:
        if not isinstance(route, dict) or "to" not in route:
            raise _wrong(f"{where}.routes", "one of them leads nowhere", "Each is a mapping with to and via.")
        if route.get("via") is not None:
            _check_address(route["via"], f"{where}.routes.via", "")
    servers = device.get("nameservers")
    if not isinstance(servers, (dict, type(None))):
        raise _wrong(f"{where}.nameservers", "it is no mapping", "Write 'nameservers: {addresses: [192.0.2.1]}'.")
    return warnings + _no_such_keys(servers or (), ("addresses", "search"), f"{where}.nameservers.")


def _check_mac(value: t.Any, where: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise _wrong(where, "it is no text", "Put the MAC address in quotes: YAML makes a number of some.")
    if not _MAC.match(value):
        raise _wrong(where, "it is no MAC address", "Write six pairs of hexadecimal digits with ':' between them.")


def _check_address(value: t.Any, where: str, slash: str) -> None:
    """``slash``: it must have the length of its network, as in 192.0.2.5/24."""
    try:
        if not isinstance(value, str) or (slash and slash not in value):
            raise ValueError
        ipaddress.ip_interface(value)
    except ValueError:
        raise _wrong(
            where,
            "it is no address with the length of its network" if slash else "it is no address",
            "Write it as 192.0.2.5/24." if slash else "Write it as 192.0.2.5.",
        ) from None


def check_openstack_network(value: t.Any, option: str) -> None:
    """The same for a ConfigDrive, which wants OpenStack's network_data."""
    if not isinstance(value, dict) or not any(key in value for key in ("links", "networks", "services")):
        raise _wrong(
            option,
            "a ConfigDrive wants OpenStack's network_data, with links, networks and services",
            "Write it so, or use type: nocloud for cloud-init's versions 1 and 2.",
        )
    for key in ("links", "networks", "services"):
        if not isinstance(value.get(key, []), list) or any(not isinstance(one, dict) for one in value.get(key, [])):
            raise _wrong(f"{option}: {key}", "it is no list of mappings", "See OpenStack's network_data.json.")
    for number, link in enumerate(value.get("links", [])):
        _check_mac(link.get("ethernet_mac_address"), f"{option}: links[{number}].ethernet_mac_address")
