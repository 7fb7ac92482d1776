"""Trying something in a throw-away child first.

What would start a thread, hang or crash does so there, and the process that is to fork step processes goes without.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable


def trial(play: Callable[[], object], objection: Callable[[], str], seconds: int = 30) -> str:
    """``play`` in a child, which is ended when that takes longer than ``seconds``; empty when it went well and nothing
    is left that stands against forking (``objection``, asked in the child).  Call it with one thread only.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            # Handlers of the warm parent's own would swallow it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            os.close(reader)
            play()
            text = objection()
        except BaseException:
            text = traceback.format_exc(limit=-2)
        finally:
            with contextlib.suppress(OSError):
                os.write(writer, text.encode()[-2000:])
            os._exit(1 if text else 0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    return text or ("" if status == 0 else f"it ended with status {os.waitstatus_to_exitcode(status)}")
