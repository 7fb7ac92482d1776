"""Length-prefixed JSON frames over a stream socket, with at most one descriptor beside a frame.

The one wire of our own between processes: worker and warm parent, worker and step process.  A frame is four bytes of
length, big endian, then that many bytes of UTF-8 JSON.  A descriptor travels (SCM_RIGHTS) with the first byte of its
frame; frames that bring one say so, and descriptors arrive in the order of their frames.

No asyncio here: the warm parent and the step process import this module and nothing of the worker.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from typing import Any

LENGTH = struct.Struct("!I")
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""No frame is longer: a step's arguments with a large known state are the largest."""

READ_BYTES = 64 * 1024
_DESCRIPTORS_MAX = 16


class FrameError(Exception):
    """The other side sent what is no frame."""


def encode(frame: dict[str, Any]) -> bytes:
    """The bytes of ``frame``.  Raises ``FrameError`` when it is too long."""
    body = json.dumps(frame, separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(body)} bytes is longer than {FRAME_BYTES_MAX}")
    return LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes in any portions -> frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames that ``data`` completes.  Raises ``FrameError``."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes is announced")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                frame = json.loads(self._buffer[LENGTH.size : end])
            except ValueError as error:
                raise FrameError(f"a frame is no JSON: {error}") from error
            if not isinstance(frame, dict):
                raise FrameError("a frame is no JSON object")
            del self._buffer[:end]
            frames.append(frame)
        return frames


class FrameSocket:
    """Blocking frames on a stream socket, for the single-threaded side.  ``recv`` waits for one frame; None is the end
    of the stream.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = FrameDecoder()
        self._frames: deque[dict[str, Any]] = deque()
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, frame: dict[str, Any]) -> None:
        """Send one frame.  Raises ``OSError`` (the peer is gone, or the socket's timeout passed)."""
        self.socket.sendall(encode(frame))

    def fill(self) -> bool:
        """Read once.  False: the stream has ended."""
        data, ancillary, _flags, _address = self.socket.recvmsg(
            READ_BYTES, socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                for descriptor in received:
                    os.set_inheritable(descriptor, False)
                    self._descriptors.append(descriptor)
        if not data:
            return False
        self._frames.extend(self._decoder.feed(data))
        return True

    def take(self) -> dict[str, Any] | None:
        """The next frame that has arrived whole, else None."""
        return self._frames.popleft() if self._frames else None

    def recv(self) -> dict[str, Any] | None:
        while not self._frames:
            if not self.fill():
                return None
        return self._frames.popleft()

    def take_descriptor(self) -> int:
        """The descriptor that came with the frame just taken; the caller owns it."""
        if not self._descriptors:
            raise FrameError("a frame came without its descriptor")
        return self._descriptors.popleft()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self.socket.close()
