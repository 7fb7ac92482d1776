"""How often the kernel has killed a process for want of memory: SIGKILL does not say who sent it, these counts do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class OomKills:
    """Counts since ever, or between two readings; None where they cannot be read."""

    cgroup: int | None
    """Of processes in this process's control group."""
    host: int | None

    def since(self, before: OomKills) -> OomKills:
        return OomKills(_difference(self.cgroup, before.cgroup), _difference(self.host, before.host))


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> OomKills:
    """The counts now.  ``proc``, ``cgroups``: where those file systems are mounted."""
    counts = (_count(path) for path in _files_of_cgroup(proc, cgroups))
    return OomKills(next((count for count in counts if count is not None), None), _count(proc / "vmstat"))


def _files_of_cgroup(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Where the count of this process's group may be.  In a container the file system often shows the container's own
    group as its root, whatever path the group has outside.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    for controllers, path in paths.items():
        if "memory" in controllers.split(","):
            for folder in (path.lstrip("/"), ""):
                yield cgroups / "memory" / folder / "memory.oom_control"
    if "" in paths:
        for folder in (paths[""].lstrip("/"), ""):
            yield cgroups / folder / "memory.events"


def _count(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
