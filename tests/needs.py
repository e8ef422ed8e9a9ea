"""What some tests need of the machine: `@pytest.mark.needs("mount")` skips them where it is lacking, and says what."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@cache
def lack_of(tool: str) -> str | None:
    """What is lacking where a test needs this tool, in words; None where nothing is. KeyError for an unknown tool."""
    return _LACKS[tool]()


def _lack_of_chromium() -> str | None:
    return None if chromium() else "no page is drawn: install Chromium (Debian's package chromium) or Google Chrome"


def _lack_of_compiler() -> str | None:
    return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "install a C++ compiler (g++)"


def _lack_of_mount() -> str | None:
    if shutil.which("mount") is None:
        return "install mount (Debian's package mount)"
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False)
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
            return None
    return f"the right to mount is lacking ({_said(mounted)}): run as root, with CAP_SYS_ADMIN"


def _lack_of_namespaces() -> str | None:
    if shutil.which("unshare") is None:
        return "install unshare (Debian's package util-linux)"
    made = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return None if made.returncode == 0 else f"the right to a mount namespace is lacking ({_said(made)})"


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"


_LACKS = {
    "chromium": _lack_of_chromium,
    "compiler": _lack_of_compiler,
    "mount": _lack_of_mount,
    "unshare": _lack_of_namespaces,
}
