# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one entry for people who work on this collection. Needs Debian 12 or 13 with Python; brings the rest.

  ./dev demo [options]       a container moves between two hosts on this machine while clients stay connected
  ./dev demo guests          a template, five clones on two hosts, and one of them moves while it runs
  ./dev test                 everything: lint, unit, integration, molecule, demo
  ./dev lint [check...]      all checks that need no hosts, or only the named ones
  ./dev unit [options]       unit tests; options go to pytest
  ./dev molecule [scenario]  the roles on hosts on this machine, all scenarios or one
  ./dev bench NAME [--json]  one benchmark against a named peer
  ./dev docs                 writes docs/reference from the modules' documentation
  ./dev clean                removes caches, and local hosts of the sets "default", "dev-…" and "mol-…"
  ./dev help                 this text

Everything is kept below ${XDG_CACHE_HOME:-~/.cache}/cnvm-platform and made again when missing. The checks run in a copy
of the tree there, uncommitted files included: they see one state, and leave nothing behind in the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import inspect
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing as t
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "cnvm-platform"
LOGS = CACHE / "log"
SETS = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "cnvm-platform/local-hosts"
TREE = "ansible_collections/cnvm/platform"
STEP_LIMIT_S = 75 * 60
# What one step leaves of two cores while it waits for its hosts, others take.
AT_A_TIME = 3
SUDO = [] if os.geteuid() == 0 else ["sudo"]

# What must be on the machine: program, Debian package, what for.
Programs = t.Sequence[tuple[str, str, str]]
BASICS: Programs = [("git", "git", "to copy the tree")]
ARCHIVERS: Programs = [
    ("zstd", "zstd", "to pack images"),
    ("xz", "xz-utils", "to pack images"),
    ("bzip2", "bzip2", "to pack images"),
]
HOSTS: Programs = [
    *ARCHIVERS,
    ("ip", "iproute2", "to connect the local hosts"),
    ("mmdebstrap", "mmdebstrap", "to build the local hosts' file system"),
    ("nft", "nftables", "to let the local hosts reach the package mirrors"),
    ("ssh", "openssh-client", "to reach the local hosts"),
    ("sysctl", "procps", "to set kernel limits"),
    ("systemd-nspawn", "systemd-container", "to boot the local hosts"),
]


class Failed(Exception):
    """Ends the command with a message."""


def say(text: str) -> None:
    print(text, flush=True)


def note(text: str) -> None:
    """Say what is done before a command begins: its output, which a program may read, is another stream."""
    print(text, file=sys.stderr, flush=True)


def quietly(argv: t.Sequence[str]) -> None:
    """Run a command to its end; its output is of interest only when it failed."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise Failed(f"this failed: {' '.join(argv)}\n{done.stdout}")


# ---------------------------------------------------------------- what the machine needs


def install_packages(programs: Programs) -> None:
    """Install the Debian packages of the programs that are missing."""
    missing = {package: what_for for program, package, what_for in programs if not shutil.which(program)}
    if importlib.util.find_spec("ensurepip") is None:
        missing["python3-venv"] = "to make Python environments"
    if not missing:
        return
    for package, what_for in missing.items():
        note(f"Installing the Debian package {package} ({what_for}).")
    for tool in (*SUDO, "apt-get"):
        if not shutil.which(tool):
            raise Failed(f"there is no {tool} here. Install by hand: {' '.join(missing)}")
    apt = [*SUDO, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", *missing]
    try:
        quietly(install)
    except Failed:
        # The package lists are absent or too old. One broken source among several may not matter: the rest decides.
        subprocess.run([*apt, "update"], stdout=sys.stderr, check=False)
        quietly(install)


def lock(name: str, ended: t.Optional[threading.Event] = None) -> t.TextIO:
    """Wait until no other ./dev has this lock, and hold it until the file is closed or this process ends.

    ``ended`` is for waiting in a thread, which no signal interrupts: once it is set, the wait is given up.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    file = open(CACHE / f"{name}.lock", "w", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"Waiting for another ./dev that uses {CACHE / name}.")
        if ended is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _lock_unless(ended, file)
    return file


def _lock_unless(ended: threading.Event, file: t.TextIO) -> None:
    while not ended.wait(0.2):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    file.close()
    raise Failed("interrupted while it waited for another ./dev.")


def python_environment(requirements: str) -> Path:
    """A virtual environment with a file of requirements; made once for each content of the file and Python."""
    file = ROOT / "tests" / requirements
    key = hashlib.sha256(f"{sys.executable} {sys.version}\n{file.read_text()}".encode()).hexdigest()[:12]
    path = CACHE / f"{file.stem}-{key}"
    with lock(path.name):
        if not (path / "complete").exists():
            note(f"Making the Python environment {path}.")
            pip = [str(path / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
            quietly([sys.executable, "-m", "venv", "--clear", str(path)])
            quietly([*pip, "install", "--progress-bar=off", "--requirement", str(file)])
            (path / "complete").touch()
    return path


def copy_tree(path: Path) -> None:
    """Make ``path`` a git repository with the files of the checkout, without what git ignores.

    ansible-test insists on a repository at …/ansible_collections/cnvm/platform. The copy's index takes the files from
    the checkout and writes them out again; the checkout itself need not be a repository, and is only read.
    """
    shutil.rmtree(path, ignore_errors=True)
    git = ["git", f"--git-dir={path / '.git'}", "-c", "core.excludesFile=", "-c", "core.autocrlf=false"]
    for argv in (
        ["git", "init", "--quiet", "--template=", str(path)],
        [*git, f"--work-tree={ROOT}", "add", "--all"],
        [*git, f"--work-tree={path}", "checkout-index", "--all", "--force"],
    ):
        subprocess.run(argv, check=True, cwd=ROOT)


# ---------------------------------------------------------------- running steps


class Step(t.NamedTuple):
    """Commands that run one after the other until one fails. ``junit``: pytest's report, which has the counts.
    ``alone``: its hosts have the same names in all checkouts, so that only one of them can run it at a time.
    """

    name: str
    commands: list[list[str]]
    junit: t.Optional[Path] = None
    alone: bool = False


class Result(t.NamedTuple):
    """What became of a step. ``why``: lines of its output that name what failed."""

    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    why: t.Sequence[str] = ()


class Workshop:
    """A copy of the tree, the Python environment to run it with, and the results so far."""

    def __init__(self, purpose: str, programs: Programs = ()) -> None:
        install_packages([*BASICS, *programs])
        self.python = python_environment("requirements.txt")
        name = f"{purpose}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
        self.lock = lock(name)
        self.base = CACHE / name
        self.tree = self.base / TREE
        copy_tree(self.tree)
        LOGS.mkdir(exist_ok=True)
        self.results: list[Result] = []
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.ended = threading.Event()
        self.env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.base),
            "ANSIBLE_HOME": str(CACHE / "ansible"),
            "ANSIBLE_PIPELINING": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(CACHE / "hypothesis"),
            "LC_ALL": "C.UTF-8",
            "MYPY_CACHE_DIR": str(CACHE / "mypy"),
            "NO_COLOR": "1",
            "PATH": f"{self.python / 'bin'}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(self.base),
            "RUFF_CACHE_DIR": str(CACHE / "ruff"),
        }

    def script(self, path: Path, args: t.Sequence[str]) -> int:
        """Run a Python script of the checkout as if it had been called by hand. Interrupted, it may clear away."""
        if not path.exists():
            raise Failed(f"{path.relative_to(ROOT)} does not exist.")
        process = subprocess.Popen([str(self.python / "bin/python"), str(path), *args], env=self.env)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)

    def run_all(self, steps: t.Iterable[Step]) -> None:
        """Run steps in their order, ``AT_A_TIME`` side by side."""
        todo, guard = iter(steps), threading.Lock()

        def work() -> None:
            while True:
                with guard:
                    try:
                        step = None if self.ended.is_set() else next(todo, None)
                    except BaseException:
                        # Before anybody else takes the next one.
                        self.ended.set()
                        raise
                if step is None:
                    return
                try:
                    self.run(step)
                except Failed:
                    # What has ended all others is what is told, not that this one waits no more.
                    if not self.ended.is_set():
                        raise

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            running = [pool.submit(work) for dummy in range(AT_A_TIME)]
            try:
                for one in as_completed(running):
                    one.result()
            except BaseException:
                self.ended.set()
                for process in list(self.processes):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGINT)
                raise

    def run(self, step: Step, show: bool = False) -> None:
        """Run a step and note the result. Its output goes to the terminal with ``show``, or else when it failed."""
        name = step.name.replace(" ", "-")
        log = LOGS / f"{name}.log"
        with lock(f"step-{name}", self.ended) if step.alone else contextlib.nullcontext():
            say(f"{step.name:<36} begins")
            begin = time.monotonic()
            if step.junit:
                # What an earlier run left does not count.
                step.junit.unlink(missing_ok=True)
            with contextlib.nullcontext() if show else open(log, "w", encoding="utf-8") as file:
                good = all(self._command(argv, file) for argv in step.commands)
            seconds = time.monotonic() - begin
            passed, failed, skipped = junit_counts(step.junit) if step.junit else (int(good), 0, 0)
            failed = max(failed, int(not good))
            said = log.read_text(encoding="utf-8", errors="replace") if failed and not show else ""
        self.results.append(Result(step.name, passed, failed, skipped, seconds, reasons(said)))
        if not show:
            text = f"{step.name:<36} {'FAILED' if failed else 'ok':<6} {seconds:7.1f} s"
            if failed:
                text += f"\n{said}\n---- end of {step.name} (kept in {log})\n"
            say(text)

    def _command(self, argv: list[str], output: t.Optional[t.TextIO]) -> bool:
        """Run one command in the copy. What is left of its process group ends with it."""
        process = subprocess.Popen(
            argv,
            cwd=self.tree,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.add(process)
        try:
            if self.ended.is_set():
                # Who has ended all others did not know of this one yet.
                os.killpg(process.pid, signal.SIGINT)
            return process.wait(STEP_LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            print(f"Stopped: not finished after {STEP_LIMIT_S} s.", file=output, flush=True)
            return False
        finally:
            self.processes.discard(process)
            # The first signal lets pytest and Ansible clear away.
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(60)

    def finish(self) -> int:
        """Print the table, what failed and the one line that counts."""
        say(f"\n{'step':<36} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
        for one in self.results:
            say(f"{one.name:<36} {one.passed:>7} {one.failed:>7} {one.skipped:>8} {one.seconds:>8.1f}")
        for one in self.results:
            if one.why:
                say("\n".join([f"\n{one.name}:", *(f"  {line}" for line in one.why)]))
        passed, failed = sum(one.passed for one in self.results), sum(one.failed for one in self.results)
        say(f"\n{passed} passed, {failed} failed")
        return int(failed > 0 or passed == 0)


def junit_counts(path: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped in a report of pytest; nothing where there is none."""
    try:
        suites = list(ET.parse(path).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
        return 0, 0, 0
    tests, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    return tests - failures - errors - skipped, failures + errors, skipped


def reasons(said: str, lines: int = 24, width: int = 600) -> list[str]:
    """What names the reason in the output of a failed step: pytest's tests, Ansible's last failed task."""
    tests: list[str] = []
    why: list[str] = []
    task, block = "", False
    for line in said.splitlines():
        block = block and line.startswith("    ")
        if line.startswith(("TASK [", "RUNNING HANDLER [")):
            task = line.rstrip("* ")
        elif line.startswith(("fatal: ", "failed: ")):
            # What failed before this task was rescued. The result may go on below, as YAML.
            why, block = [*(why if why[:1] == [task] else [task]), line[:width]], True
        elif block:
            why.append(line[:width])
        elif line.startswith(("FAILED ", "ERROR ")):
            tests.append(line[:width])
    return (tests or why)[:lines]


# ---------------------------------------------------------------- the steps


def galaxy(shop: Workshop) -> list[list[str]]:
    importer = python_environment("requirements-importer.txt") / "bin"
    return [["python", "tests/checks/galaxy.py", str(importer), str(shop.base / "galaxy")]]


def oldest(shop: Workshop) -> list[list[str]]:
    """The unit tests whose outcome depends on ansible-core, with the oldest one that is supported."""
    programs = python_environment("requirements-oldest.txt") / "bin"
    return [["env", f"PATH={programs}:{shop.env['PATH']}", "pytest", "-q", *OLDEST]]


def shell(shop: Workshop) -> list[list[str]]:
    """``shellcheck`` of every file that starts as a shell script; templates are none yet."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=shop.tree, capture_output=True, text=True, check=True).stdout
    paths = [shop.tree / name for name in files.split("\0") if not name.endswith(".j2")]
    shebang = re.compile(rb"#!.*\b(ba|da)?sh\b")
    scripts = [str(path) for path in paths if path.is_file() and shebang.match(path.read_bytes()[:80])]
    return [["shellcheck", *scripts]]


# What runs in Ansible itself. The roles are those whose variables do the most; each play takes a second or more.
OLDEST_ROLES = ("appliance", "cnvm_image", "guest_fleet", "guest_template", "host_bootstrap", "local_hosts", "overlay")
OLDEST = [
    *(f"tests/unit/plugins/{kind}" for kind in ("action", "filter", "inventory", "plugin_utils", "test")),
    *(f"tests/unit/roles/test_{role}.py" for role in OLDEST_ROLES),
]
DOCS_RULES = ["--plugin-docs", "--validate-collection-refs=all", "--disallow-unknown-collection-refs"]
CHECKS: dict[str, t.Union[list[str], t.Callable[[Workshop], list[list[str]]]]] = {
    "sanity": [f"python tests/checks/ansible_test.py {CACHE / 'ansible-test'}"],
    "ansible-lint": ["ansible-lint"],
    "ruff": ["ruff check", "ruff format --check"],
    # From the top, so that a file has one name, whether it is given or imported.
    "mypy": [f"env --chdir=../../.. mypy --config-file={TREE}/pyproject.toml {TREE}/plugins {TREE}/tests"],
    "yamllint": ["yamllint --strict ."],
    "changelog": [
        "antsibull-changelog lint",
        "antsibull-changelog lint-changelog-yaml --strict changelogs/changelog.yaml",
    ],
    "docs": [f"antsibull-docs lint-collection-docs {' '.join(DOCS_RULES)} ."],
    "reference": ["python tests/checks/reference.py --check"],
    "licences": ["reuse lint"],
    "shell": shell,
    "oldest": oldest,
    "galaxy": galaxy,
}


def check_steps(shop: Workshop, names: t.Iterable[str]) -> t.Iterator[Step]:
    for name in names:
        check = CHECKS[name]
        yield Step(name, check(shop) if callable(check) else [line.split(" ") for line in check])


def unit_steps(args: t.Sequence[str] = ()) -> t.Iterator[Step]:
    """The unit tests, or those that are asked for."""
    report = LOGS / "unit.xml"
    where = [] if any(arg.startswith("tests/") for arg in args) else ["tests/unit"]
    yield Step("unit", [["pytest", "-q", f"--junit-xml={report}", *where, *args]], report)


def integration_steps() -> t.Iterator[Step]:
    """A step for each folder, each on hosts of its own."""
    for kind in ("guest_faults", "containers", "guests"):
        report = LOGS / f"integration-{kind}.xml"
        hosts = f"CNVM_INTEGRATION_SET=dev-it-{kind.replace('_', '-')}"
        pytest = ["env", hosts, "pytest", "-q", f"--junit-xml={report}"]
        yield Step(f"integration {kind}", [[*pytest, f"tests/integration/{kind}"]], report, alone=True)


def molecule_steps(shop: Workshop, only: str = "") -> t.Iterator[Step]:
    """One step for each scenario, or for the one that is asked for."""
    for file in sorted((shop.tree / "extensions/molecule").glob("*/molecule.yml")):
        if only in ("", file.parent.name):
            argv = ["molecule", "test", "--scenario-name", file.parent.name]
            yield Step(f"molecule {file.parent.name}", [argv], alone=True)


def demo_steps() -> t.Iterator[Step]:
    """The main jobs, as a newcomer sees them first."""
    yield Step("demo", [["python", f"tests/demo/{name}.py"] for name in ("teleport", "guests")], alone=True)


# ---------------------------------------------------------------- the commands


def command_demo(*args: str) -> int:
    name, args = ("guests", args[1:]) if args[:1] == ("guests",) else ("teleport", args)
    return Workshop("demo", HOSTS).script(ROOT / f"tests/demo/{name}.py", args)


def command_test() -> int:
    shop = Workshop("test", HOSTS)
    # The long ones come first, so that those that run at a time end together.
    short = itertools.chain(unit_steps(), check_steps(shop, CHECKS), demo_steps())
    shop.run_all(itertools.chain(integration_steps(), molecule_steps(shop), short))
    return shop.finish()


def command_lint(*names: str) -> int:
    for name in names:
        if name not in CHECKS:
            raise Failed(f"There is no check {name!r}; there are: {', '.join(CHECKS)}.")
    shop = Workshop("lint")
    for step in check_steps(shop, names or CHECKS):
        shop.run(step)
    return shop.finish()


def command_unit(*args: str) -> int:
    shop = Workshop("unit", ARCHIVERS)
    for step in unit_steps(args):
        shop.run(step, show=True)
    return shop.finish()


def command_molecule(scenario: str = "") -> int:
    shop = Workshop("molecule", HOSTS)
    steps = list(molecule_steps(shop, scenario))
    if not steps:
        there_are = ", ".join(step.name.split()[1] for step in molecule_steps(shop)) or "none"
        raise Failed(f"There is no such scenario; there are: {there_are}.")
    for step in steps:
        shop.run(step, show=True)
    return shop.finish()


def command_bench(name: str = "", *args: str) -> int:
    names = sorted(file.stem for file in ROOT.glob("tests/bench/[a-z]*.py"))
    if name not in names:
        raise Failed(f"There is no benchmark {name!r}; there are: {', '.join(names) or 'none'}.")
    shop = Workshop("bench", HOSTS)
    # The collections of its peers, where it has such.
    requirements = f"requirements-bench-{name}.txt"
    if (ROOT / "tests" / requirements).exists():
        for path in (python_environment(requirements) / "lib").glob("python*/site-packages"):
            shop.env["ANSIBLE_COLLECTIONS_PATH"] += f":{path}"
    return shop.script(ROOT / f"tests/bench/{name}.py", args)


def command_docs() -> int:
    return Workshop("docs").script(ROOT / "tests/checks/reference.py", [])


def command_clean() -> int:
    locks = sorted(file.stem for file in CACHE.glob("*.lock"))
    # What cleaning needs itself comes last. Copies come before steps: whoever has one may wait for a step's lock.
    own = [name for name in locks if name.startswith(("clean-", "requirements-"))]
    at_work = sorted(set(locks) - set(own), key=lambda name: name.startswith("step-"))
    held = [lock(name) for name in at_work]
    names = [name for name in (os.listdir(SETS) if SETS.exists() else ()) if re.fullmatch("default|(dev|mol)-.*", name)]
    if names:
        shop = Workshop("clean")
        for name in names:
            argv = ["ansible-playbook", "cnvm.platform.local_hosts", "-e", f"local_hosts_set={name}"]
            if subprocess.run([*argv, "-e", "local_hosts_state=absent"], env=shop.env, check=False).returncode:
                raise Failed(f"the local hosts of the set {name} could not be removed; the caches are left in place.")
        shop.lock.close()
    held += [lock(name) for name in own]
    # The layers of hosts that somebody made for himself are in the cache, too.
    mounts = map(str, Path("/proc").glob("[0-9]*/mountinfo"))
    if subprocess.run([*SUDO, "grep", "-qsF", f"={CACHE}/", *mounts], check=False).returncode == 0:
        raise Failed(f"local hosts run from {CACHE}: remove their sets first (role local_hosts, state absent).")
    subprocess.run([*SUDO, "rm", "-rf", "--one-file-system", str(CACHE)], check=True)
    for file in held:
        file.close()
    say(f"Removed {CACHE}.")
    return 0


def command_help() -> int:
    say((__doc__ or "").rstrip())
    return 0


def main(argv: t.Sequence[str]) -> int:
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    # A started shell job ignores SIGINT, and would pass that on; SIGTERM is how services end what they run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    word, *args = argv or ["help"]
    command = globals().get(f"command_{word.lstrip('-')}")
    if command is None:
        raise Failed(f"There is no command {word!r}. See ./dev help.")
    try:
        inspect.signature(command).bind(*args)
    except TypeError:
        raise Failed(f"./dev {word} does not take {' '.join(args)!r}. See ./dev help.") from None
    return t.cast("int", command(*args))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failed, subprocess.CalledProcessError) as failure:
        sys.exit(f"dev: {failure}")
    except KeyboardInterrupt:
        sys.exit("\ndev: interrupted")
