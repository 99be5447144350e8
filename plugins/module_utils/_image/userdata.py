# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What cloud-init would choke on, or silently leave out, said before a guest boots with it.

Only the basics: what nearly everybody uses, and what nearly everybody once got wrong. Messages name keys and places and
never quote values: these may be passwords and keys.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .._core.errors import InputError

# Reads YAML; its ValueError says what is wrong and where. None where the host has no library for it.
YamlReader = t.Optional[t.Callable[[str], t.Any]]

CLOUD_CONFIG = "#cloud-config"
CLOUD_CONFIG_ARCHIVE = "#cloud-config-archive"
# Other beginnings that cloud-init knows (its handlers/__init__.py); it takes capitals and blanks before them, too.
_OTHER_STARTS = ("#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja")
_OTHER_CONFIGS = (CLOUD_CONFIG_ARCHIVE, "#cloud-config-jsonp")

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
    head = value.lstrip("\ufeff \t\r\n")
    if not head:
        return []
    if value.startswith("\ufeff"):
        raise _wrong(option, "it begins with a byte order mark", "Save it as UTF-8 without one.")
    line = head.split("\n", 1)[0]
    low = line.rstrip().lower()
    if "mime-version:" in value[:4096].lower():
        return []
    if low.startswith("#!") and line.endswith("\r"):
        raise _wrong(option, "its lines end with CR LF", "Save it with Unix line ends: the kernel takes CR along.")
    archive = low.startswith(CLOUD_CONFIG_ARCHIVE)
    if low.startswith((*_OTHER_STARTS, *_OTHER_CONFIGS)) and not archive:
        return []
    if not archive and low != CLOUD_CONFIG and not low.startswith(CLOUD_CONFIG + " "):
        hint = "Begin it with one of: #cloud-config, #!, #include, #cloud-boothook, '## template: jinja'."
        if re.match(r"#\s*cloud[-_ ]?config", low):
            hint = "Its first line must be '#cloud-config', letter by letter."
        raise _wrong(
            option,
            "cloud-init would not know what it is",
            f"{hint} For guests that do not run cloud-init set check_user_data: false.",
        )
    if yaml is None:
        return [not_read(option)]
    found = read(value, option, yaml)
    if found is None:
        return []
    return _check_archive(found, option, yaml) if archive else check_cloud_config(found, option)


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
        content, kind = about.get("content"), about.get("type")
        if not isinstance(content, (str, bytes, type(None))):
            raise _wrong(f"{where}.content", "it is no text", "Put it in quotes, or write it below 'content: |'.")
        if not isinstance(content, str):
            continue
        # Without a type it is taken for cloud-config, unless it begins as something else.
        begins = (
            content.lstrip().lower().startswith((*_OTHER_STARTS, *_OTHER_CONFIGS, "mime-version:", "content-type:"))
        )
        if kind == "text/cloud-config" or (not kind and not begins):
            found = read(content, f"{where}.content", yaml)
            warnings += [] if found is None else check_cloud_config(found, f"{where}.content")
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
            warnings.append(f"{where}: cloud-init has no such key{_similar(key)}.")
        elif inner is not None:
            _check_type(key, inner, where)
    for key in ("runcmd", "bootcmd"):
        _check_commands(value.get(key), f"{option}: {key}")
    _check_files(value.get("write_files"), f"{option}: write_files")
    _check_users(value.get("users"), f"{option}: users", warnings)
    _check_keys(value.get("ssh_authorized_keys"), f"{option}: ssh_authorized_keys", warnings)
    return warnings


def _similar(key: str) -> str:
    def squeezed(word: str) -> str:
        return re.sub(r"[^a-z]", "", word.lower()).rstrip("s")

    found = next((known for known in sorted(_KNOWN) if squeezed(known) == squeezed(key)), "")
    return f"; {found} is meant perhaps" if found else ""


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


def check_network(value: t.Any, option: str, yaml: YamlReader) -> None:
    """InputError for a network configuration (versions 1 and 2) that cloud-init could not use."""
    if isinstance(value, str):
        value = read(value, option, yaml)
        if value is None:
            return
    if not isinstance(value, dict):
        raise _wrong(option, "it is no mapping", "Write 'version: 2' and 'ethernets:'.")
    if isinstance(value.get("network"), dict) and len(value) == 1:
        value = value["network"]
    version = value.get("version")
    if isinstance(version, bool) or version not in (1, 2):
        if value.get("config") == "disabled":
            return
        raise _wrong(option, "it has no version 1 or 2", "Write 'version: 2'.")
    if version == 1:
        _check_version_1(value, option)
    else:
        _check_version_2(value, option)


def _check_version_1(value: dict[str, t.Any], option: str) -> None:
    config = value.get("config")
    if config == "disabled":
        return
    if not isinstance(config, list):
        raise _wrong(f"{option}: config", "it is no list", "See cloud-init's networking config version 1.")
    for number, item in enumerate(config):
        where = f"{option}: config[{number}]"
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            raise _wrong(where, "it has no type", "Each is a mapping with type and name.")
        _check_mac(item.get("mac_address"), f"{where}.mac_address")
        subnets = item.get("subnets")
        if not isinstance(subnets, (list, type(None))):
            raise _wrong(f"{where}.subnets", "it is no list", "Write one per line, each after '- '.")
        for each in subnets or []:
            if not isinstance(each, dict) or "type" not in each:
                raise _wrong(f"{where}.subnets", "one of them has no type", "Write 'type: dhcp' or 'type: static'.")
            if each.get("address") is not None:
                _check_address(each["address"], f"{where}.subnets.address", "/" if "netmask" not in each else "")


def _check_version_2(value: dict[str, t.Any], option: str) -> None:
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
            _check_device(device, where)


def _check_device(device: dict[str, t.Any], where: str) -> None:
    match = device.get("match")
    if isinstance(match, dict):
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
    if servers is not None and not isinstance(servers, dict):
        raise _wrong(f"{where}.nameservers", "it is no mapping", "Write 'nameservers: {addresses: [192.0.2.1]}'.")


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
