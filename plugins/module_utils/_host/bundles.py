# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Making images: from an archive, a directory, an OCI layout or a distribution's packages, into the image store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import typing as t

from .._core import mmdebstrap, paths
from .._core.errors import HostError, InputError
from .._core.names import check_name, is_digest
from .._oci import bundle, layout
from .._oci.members import Policy, check_member, keep_attribute
from .._oci.users import find_account
from . import archive, building, container_parts, containers, debian, files, images
from .system import Host

SOURCES = ("archive", "rootfs", "oci_layout", "mmdebstrap")
# Documentation of packages is not read in a container; its licence texts stay.
_NO_DOCUMENTATION = (
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An image as the user describes it (the module's options)."""

    name: str
    kind: str = ""
    source: t.Any = None
    overrides: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    files: t.Sequence[t.Mapping[str, t.Any]] = ()
    fingerprint: str = ""
    drop_foreign: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)
    digest: str = ""
    dest: str = ""
    compression: str = "zstd"


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(archive.BUFFER))
    with open(path, "rb", buffering=0) as file:
        while True:
            got = file.readinto(buffer)
            if not got:
                return digest.hexdigest()
            digest.update(buffer[:got])


def _tag_in(path: str, tag: str) -> str:
    """The tag of the image that is meant in the layout at ``path``."""
    index = os.path.join(path, "index.json")
    if not os.path.isfile(index):
        raise InputError(f"oci_layout: {path} has no index.json.", hint="Give the directory of an OCI image layout.")
    with open(index, "rb") as file:
        text = file.read(bundle.MOST_BYTES)
    try:
        return layout.pick(json.loads(text), tag, path)
    except ValueError as error:
        raise InputError(f"oci_layout: {index} is not JSON: {error}.") from error


def _is_missing(wanted: Wanted) -> bool:
    """Whether the source, by which the image is known, is not on this host."""
    if wanted.kind == "mmdebstrap" or wanted.fingerprint:
        return False
    return not os.path.exists(layout.split(wanted.source)[0] if wanted.kind == "oci_layout" else wanted.source)


def _source_state(wanted: Wanted) -> t.Any:
    """What the source is now, so that a second run can tell that it is the same."""
    source = wanted.source
    if wanted.kind == "mmdebstrap":
        return dict(source)
    path, tag = layout.split(source) if wanted.kind == "oci_layout" else (source, "")
    if not os.path.exists(path):
        raise InputError(f"{wanted.kind}: there is no {path} on this host.", hint="Copy it there first.")
    if os.path.isfile(path):
        return [_sha256(path), tag] if tag else _sha256(path)
    if wanted.kind == "archive":
        raise InputError(f"archive: {path} is no file.", hint="Give a directory with the option rootfs.")
    if wanted.kind == "oci_layout":
        return [_tag_in(path, tag), _sha256(os.path.join(path, "index.json"))]
    stamps = hashlib.sha256()
    for name, status in archive.walk(path):
        stamps.update(os.fsencode(name) + repr((status.st_mode, status.st_uid, status.st_gid)).encode())
        stamps.update(b"%d %d %d\0" % (status.st_ino, status.st_size, status.st_ctime_ns))
    return stamps.hexdigest()


def fingerprint(wanted: Wanted) -> str:
    """What an image is made of, without making it."""
    if wanted.fingerprint:
        return hashlib.sha256(b"given " + wanted.fingerprint.encode()).hexdigest()
    parts = [wanted.kind, _source_state(wanted), dict(wanted.overrides), list(wanted.files)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def check_tree(root: str, policy: Policy) -> None:
    """The rules for members of archives, for a tree that a program made."""
    size = 0
    for entries, (path, status) in enumerate(archive.walk(root), 1):
        kind = stat.S_IFMT(status.st_mode)
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        check_member(path, kind, status.st_mode, status.st_uid, status.st_gid, device, policy)
        size += status.st_size if kind == stat.S_IFREG else 0
        if entries > policy.max_entries or size > policy.byte_limit:
            raise InputError(f"{root} has more than {policy.max_entries} entries or {policy.byte_limit} bytes.")
        for name in os.listxattr(os.path.join(root, path), follow_symlinks=False):
            if name == "security.capability" and not keep_attribute(name, policy):
                raise InputError(f"{path!r} has file capabilities.", hint="Set allow_setuid: true if you trust it.")


def check_root(root: str) -> None:
    """InputError unless ``root`` can be a container's root file system.

    Runtimes have been led astray by links where they mount (CVE-2021-30465, CVE-2026-41579).
    """
    if not os.path.isdir(root) or os.path.islink(root):
        raise InputError("The bundle has no directory rootfs.", hint="A bundle is config.json and rootfs.")
    for name in ("dev", "proc", "sys", "etc"):
        path = os.path.join(root, name)
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
            raise InputError(f"The bundle's rootfs/{name} is no directory.", hint="It is refused.")


def _copy_tree(source: str, dest: str, policy: Policy) -> archive.Tally:
    """Copy a directory under the rules for archives: packed by a child, unpacked by us."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(receive)
            with os.fdopen(send, "wb", buffering=archive.BUFFER) as out:
                archive.pack(source, out)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    try:
        with os.fdopen(receive, "rb", buffering=0) as stream:
            tally = archive.extract(t.cast("t.BinaryIO", stream), dest, policy, what=f"Copying {source}")
    finally:
        _pid, status = os.waitpid(child, 0)
    if status:
        raise HostError(f"Reading {source} failed (status {status}).")
    # These are not even sent.
    tally.skipped += [path for path, found in archive.walk(source) if stat.S_ISSOCK(found.st_mode)]
    return tally


def _leave_out(root: str) -> list[str]:
    """Remove what an archive of the image would not bring to another host, where its digest would be another one."""
    found = []
    for path, status in archive.walk(root):
        if stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            os.unlink(os.path.join(root, path))
            found.append(path)
    return found


def _from_archive(wanted: Wanted, place: str) -> tuple[t.Optional[bundle.Process], list[str], list[str]]:
    policy = dataclasses.replace(wanted.policy, top=("rootfs", "config.json"), to_the_end=True)
    tally = archive.extract_file(wanted.source, place, policy)
    path = f"{place}/config.json"
    if not os.path.isfile(path) or os.path.islink(path) or os.path.getsize(path) > bundle.MOST_BYTES:
        raise InputError("The archive has no config.json of its own.", hint="A bundle is config.json and rootfs.")
    with open(path, "rb") as file:
        config = bundle.parse(file.read())
    process, ignored = bundle.check(config, drop=wanted.drop_foreign)
    return process, ignored, tally.skipped


def _from_rootfs(wanted: Wanted, place: str) -> tuple[t.Optional[bundle.Process], list[str], list[str]]:
    root = f"{place}/rootfs"
    os.mkdir(root, 0o755)
    if os.path.isdir(wanted.source):
        tally = _copy_tree(wanted.source, root, wanted.policy)
    else:
        tally = archive.extract_file(wanted.source, root, dataclasses.replace(wanted.policy, to_the_end=True))
    return None, [], tally.skipped


def _foreign_tool(host: Host, argv: t.Sequence[str], wanted: Wanted) -> None:
    """Run a program that knows the format. It keeps no limits of ours: one file is not let fill the disk at least."""
    done = host.run(["prlimit", f"--fsize={wanted.policy.max_bytes}", "--", *argv], check=False)
    if done.rc:
        raise InputError(
            f"oci_layout: {argv[0]} cannot read {wanted.source}.",
            hint=f"It says: {done.stderr.strip()} Is it whole, and max_bytes enough?",
        )


def _from_layout(wanted: Wanted, place: str, host: Host) -> tuple[t.Optional[bundle.Process], list[str], list[str]]:
    path, tag = layout.split(wanted.source)
    if shutil.which("umoci") is None:
        raise HostError("oci_layout needs the program umoci on this host.", hint="Install the package umoci.")
    if os.path.isfile(path):
        if shutil.which("skopeo") is None:
            raise HostError("oci_layout: an archive needs the program skopeo too.", hint="Install the package skopeo.")
        source, path, tag = f"oci-archive:{path}{f':{tag}' if tag else ''}", f"{place}/layout", "image"
        _foreign_tool(host, ["skopeo", "copy", source, f"oci:{path}:{tag}"], wanted)
    _foreign_tool(host, ["umoci", "unpack", "--image", f"{path}:{_tag_in(path, tag)}", f"{place}/unpacked"], wanted)
    check_tree(f"{place}/unpacked/rootfs", wanted.policy)
    with open(f"{place}/unpacked/config.json", "rb") as file:
        process, ignored = bundle.check(bundle.parse(file.read()), drop=wanted.drop_foreign)
    os.rename(f"{place}/unpacked/rootfs", f"{place}/rootfs")
    return process, ignored, []


def _from_packages(wanted: Wanted, place: str, host: Host) -> tuple[t.Optional[bundle.Process], list[str], list[str]]:
    debian.unpack(host, mmdebstrap.read(wanted.source, wanted.kind), f"{place}/rootfs", wanted.kind, _NO_DOCUMENTATION)
    return None, [], []


def _add_files(root: str, wanted: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    passwd, group = container_parts.read_inside(root, ["/etc/passwd", "/etc/group"])
    entries = []
    for item in wanted:
        account = find_account(item.get("owner") or "", passwd, group, f"files: {item['path']}: owner")
        mode = int(item.get("mode") or "0644", 8)
        entries.append((item["path"], item["content"], mode, account.uid, account.gid))
    directories = sorted({parent for path, *_rest in entries for parent in _parents(path)})
    missing = [(f"{path}/", "", 0o755, 0, 0) for path in directories]
    containers.write_inside(root, [*missing, *entries], "Writing the image's files")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def make(host: Host, wanted: Wanted, known_by: str) -> tuple[str, dict[str, t.Any]]:
    """Make the image and store it; (digest, what there is to say)."""
    with building.directory(paths.IMAGES, f"make-{wanted.name}") as place:
        if wanted.kind == "archive":
            process, ignored, skipped = _from_archive(wanted, place)
        elif wanted.kind == "rootfs":
            process, ignored, skipped = _from_rootfs(wanted, place)
        elif wanted.kind == "oci_layout":
            process, ignored, skipped = _from_layout(wanted, place, host)
        else:
            process, ignored, skipped = _from_packages(wanted, place, host)
        root = f"{place}/rootfs"
        check_root(root)
        if wanted.files:
            _add_files(root, wanted.files)
        if wanted.kind == "mmdebstrap":
            debian.run_inside(host, root, wanted.source.get("customize") or [], "mmdebstrap.customize")
        skipped += _leave_out(root)
        final = bundle.override(process or bundle.Process(), wanted.overrides)
        if not final.args:
            final = dataclasses.replace(final, args=("/bin/sh",))
        account = container_parts.account_of(root, final.user, "config: user")
        made = bundle.bundle_config(final, uid=account.uid, gid=account.gid, machine=os.uname().machine)
        files.write_json(f"{place}/config.json", made, mode=0o644)
        # As it will be read from an archive of it: the digest must be the same there.
        final, _ignored = bundle.check(made)
        for leftover in os.listdir(place):
            if leftover not in ("rootfs", "config.json"):
                path = f"{place}/{leftover}"
                if os.path.isdir(path) and not os.path.islink(path):
                    files.remove_tree(path)
                else:
                    os.unlink(path)
        description = {"name": wanted.name, "process": final.as_dict(), "fingerprint": known_by, "source": wanted.kind}
        digest, _new = images.store(place, description, expected=wanted.digest)
    return digest, {"ignored": ignored, "left_out": skipped}


def export(record: dict[str, t.Any], dest: str, compression: str, *, check_mode: bool) -> bool:
    """Write the bundle of an image as an archive; whether there was anything to write."""
    known = (record.get("archives") or {}).get(dest) or {}
    if known.get("compression") == compression and os.path.isfile(dest):
        status = os.stat(dest)
        if [status.st_size, status.st_mtime_ns] == [known.get("size"), known.get("mtime_ns")]:
            return False
    if check_mode:
        return True
    place = paths.image_dir(record["digest"])
    with open(f"{place}/config.json", "rb") as file:
        config = file.read()
    extra = [("config.json", config)]
    try:
        archive.pack_file(f"{place}/rootfs", dest, compression=compression, prefix="rootfs", extra=extra)
    except OSError as error:
        raise HostError(f"dest: {dest} cannot be written: {error}.", hint="Is there space?") from error
    status = os.stat(dest)
    entry = {"compression": compression, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    record["archives"] = {**(record.get("archives") or {}), dest: entry}
    files.write_json(f"{place}/image.json", record, mode=0o644)
    return True


def bring_to(host: Host, wanted: Wanted, *, refresh: bool = False, check_mode: bool = False) -> dict[str, t.Any]:
    """Make sure that the name stands for an image made of the source; the module's result."""
    before = images.record_of_name(wanted.name)
    if wanted.dest and os.path.isdir(wanted.dest):
        raise InputError(f"dest: {wanted.dest} is a directory.", hint="Name a file in it.")
    directory = os.path.dirname(wanted.dest)
    if directory and not check_mode and not os.path.isdir(directory):
        raise InputError(f"dest: there is no directory {directory}.", hint="Create it first.")
    # In check mode what a task before would copy to the host need not be there yet.
    known_by = "" if check_mode and _is_missing(wanted) else fingerprint(wanted)
    extra: dict[str, t.Any] = {"ignored": [], "left_out": []}
    known = known_by in images.fingerprints(before or {})
    same = known and not refresh
    if wanted.digest and before is not None:
        # The content decides, wherever it came from.
        same = before["digest"] == wanted.digest
        if same and wanted.fingerprint and not known and not check_mode:
            before = images.note_source(before, known_by)
    changed = False
    record = before
    if not same:
        if check_mode:
            changed = True
        else:
            with files.lock(f"{paths.RUN}/locks/image-{wanted.name}.lock", f"making image {wanted.name!r}"):
                digest, extra = make(host, wanted, known_by)
                changed = images.point(wanted.name, digest)
                record = images.record(digest)
    if wanted.dest and (record is not None or check_mode):
        if check_mode and not same:
            changed = True
        elif record is not None:
            changed = export(record, wanted.dest, wanted.compression, check_mode=check_mode) or changed
    unknown = check_mode and not same
    return {
        "changed": changed,
        "image": None if unknown or record is None else _shown(wanted.name, record),
        "archive": _archive_shown(wanted.dest),
        **extra,
        "diff": {
            "before": {"name": wanted.name, "digest": (before or {}).get("digest")},
            "after": {
                "name": wanted.name,
                "digest": "(known when it is made)" if unknown else (record or {}).get("digest"),
            },
        },
    }


def _shown(name: str, record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        "name": name,
        "digest": record["digest"],
        "size_bytes": record["size_bytes"],
        "entries": record["entries"],
        "process": record["process"],
        "fingerprint": record.get("fingerprint"),
        "path": paths.image_dir(record["digest"]),
    }


def _archive_shown(dest: str) -> t.Optional[dict[str, t.Any]]:
    if not dest or not os.path.isfile(dest):
        return None
    return {"path": dest, "size_bytes": os.path.getsize(dest), "sha256": _sha256(dest)}


def take_away(name: str, *, check_mode: bool) -> dict[str, t.Any]:
    """Remove an image's name, and the image when nothing else needs it; the module's result."""
    name = name[len("sha256:") :] if name.startswith("sha256:") else name
    before = name if is_digest(name) else images.names().get(check_name(name, "name"))
    removed = images.remove(name, check_mode=check_mode)
    return {
        "changed": bool(removed),
        "removed": removed,
        "image": None,
        "diff": {"before": {"name": name, "digest": before}, "after": {}},
    }
