# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Command lines of the runtimes and of CRIU for dumping and restoring a container."""

from __future__ import annotations

import typing as t

# A deleted file that is still open or mapped is dumped up to this size. CRIU's default of 1 MiB is too little for the
# libraries that an upgrade replaces.
GHOST_LIMIT = 2**28
# Options for which not every runtime has a flag. The nftables lock takes 70 to 90 ms less than the one by iptables, the
# default. A handshake under way aborts a dump unless it may be skipped. On overlayfs a deleted file of the image looks
# as if it still had a name; CRIU copies it only after it has failed to link it.
OPTIONS = ("network-lock nftables", "skip-in-flight", "link-remap", f"ghost-limit {GHOST_LIMIT}")
# What a container may hold open that CRIU takes only when told so: TCP connections and file locks.
_STATE = ("--tcp-established", "--file-locks")
_IGNORE_CGROUPS = ("--manage-cgroups-mode", "ignore")
# Flags for a restore that may come from the source of a move.
RESTORE_FLAGS = ((), _IGNORE_CGROUPS)


def runtime_flags(runtime: str, version: tuple[int, ...]) -> dict[str, list[str]]:
    """Flags that not every version has, for ``dump`` and ``restore``.

    Cgroups are the host's business, not the dump's (criu#1793); runc < 1.2 does not know the mode, and needs none
    because the cgroup has the same path on all hosts. runc >= 1.3 switches off what of ``OPTIONS`` it has a flag for.
    """
    ignore = [] if runtime == "runc" and version < (1, 2) else list(_IGNORE_CGROUPS)
    more = ["--tcp-skip-in-flight", "--link-remap"] if runtime == "runc" and version >= (1, 3) else []
    return {"dump": [*ignore, *more], "restore": ignore}


def dump(
    runtime: t.Sequence[str], name: str, images: str, work: str, *, flags: t.Sequence[str] = (), parent: str = "",
    page_server: str = "", lazy: bool = False, status_fd: int = -1,
) -> list[str]:  # fmt: skip
    """Dump a paused container and leave it paused (never killed: it is the insurance until the target is proven).

    ``parent``: a pre-dump, relative to ``images`` (crun refuses an absolute one). ``page_server``: ``address:port``
    to serve pages from (``lazy``) or to send them to. ``status_fd``: gets one NUL byte once pages are being served.
    """
    argv = [*runtime, "checkpoint", "--leave-running", *_STATE, *flags]
    argv += ["--image-path", images, "--work-path", work]
    if parent:
        argv += ["--parent-path", parent]
    if lazy:
        argv += ["--lazy-pages", "--status-fd", str(status_fd)]
    if page_server:
        argv += ["--page-server", page_server]
    return [*argv, name]


def pre_dump(
    runtime: t.Sequence[str], name: str, images: str, work: str, *, flags: t.Sequence[str] = (), parent: str = ""
) -> list[str]:
    """Copy memory while the container runs, and note what it changes from now on."""
    argv = [*runtime, "checkpoint", "--pre-dump", *_STATE, *flags]
    argv += ["--image-path", images, "--work-path", work]
    if parent:
        argv += ["--parent-path", parent]
    return [*argv, name]


def restore(
    runtime: t.Sequence[str], name: str, bundle: str, images: str, work: str, pid_file: str, *,
    flags: t.Sequence[str] = (), lazy: bool = False,
) -> list[str]:  # fmt: skip
    """Restore in the foreground, as the main process of the container's unit.

    ``lazy``: pages come through the socket in ``images``; CRIU looks for it in its work path (criu#2808).
    """
    argv = [*runtime, "restore", *_STATE, *flags, "--image-path", images]
    argv += ["--work-path", images if lazy else work, "--bundle", bundle, "--pid-file", pid_file]
    if lazy:
        argv.append("--lazy-pages")
    return [*argv, name]


def lazy_pages(address: str, port: int, images: str) -> list[str]:
    """The daemon on the target that fetches pages from the source's page server, on demand and in the background."""
    return [
        "criu", "lazy-pages", "--page-server", "--address", address, "--port", str(port),
        "-D", images, "-W", images, "-o", "lazy-pages.log", "--status-fd", "3",
    ]  # fmt: skip


def restore_with_lazy_pages(daemon: t.Sequence[str], restore_argv: t.Sequence[str], move_dir: str) -> list[str]:
    """Both in one unit: the daemon beside the runtime, its exit code written down (0 says that all pages came).

    Until it has all pages the daemon asks in a loop without a pause, and the unit is in a hurry (``freezer.hurry``): at
    the same priority it would come before what was restored.
    """
    script = (
        'move=$1; shift; mkfifo "$move/lazy.ready" || exit 1\n'
        '( nice -n 10 "$@" 3>"$move/lazy.ready"\n'
        'echo $? >"$move/lazy.rc.new"; mv "$move/lazy.rc.new" "$move/lazy.rc" ) &\n'
        'head -c 1 "$move/lazy.ready" >/dev/null\n'
    )
    # The runtime's words cannot go through "$@" as well, so they are quoted into the script.
    return ["/bin/sh", "-c", script + "exec " + " ".join(quote(word) for word in restore_argv), "sh", move_dir, *daemon]


def quote(word: str) -> str:
    """``word`` for a POSIX shell."""
    return "'" + word.replace("'", "'\\''") + "'"


HOLD_SCRIPT = """#!/bin/sh
# CRIU calls this on the target while a restored container stands still (post-restore), possibly twice.
# It says so, and waits for the verdict: go, or anything else to give the restore up.
[ "$CRTOOLS_SCRIPT_ACTION" = post-restore ] || exit 0
cd -P "$CRTOOLS_IMAGE_DIR/.." || exit 1
if [ ! -e verdict ]; then
    : > prepared
    read -r verdict < answer
    echo "$verdict" > verdict
fi
read -r verdict < verdict
[ "$verdict" = go ]
"""
