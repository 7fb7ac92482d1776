"""The limit of a step's memory, which the kernel keeps in the step process: what is asked for beyond it is refused, so
that the step fails by itself before the host runs out of memory."""

from __future__ import annotations

import resource


def limit_memory(mebibytes: int | None) -> None:
    """From now on this process may have that much data (RLIMIT_DATA: its heap and other private writable memory, what
    it has already included).  None: as much as it may at all, so that it can tell what happened."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = most if mebibytes is None else mebibytes << 20
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
