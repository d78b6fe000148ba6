"""A file of whole lines that several processes may append to, rotated by size.

Every append holds an exclusive lock on the open file (``flock``), and under it looks whether the path still leads
there: so no process writes into a file that another one, or logrotate, has moved away, and two never rotate at once.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

MODE = 0o600


class LineFile:
    """Opened with the first append, mode 0600 where it is made. Not for several threads at once.

    What would make it larger than ``max_bytes`` goes into a new file; ``keep`` older ones stay, ``NAME.1`` the newest,
    also where more were kept before.
    A device or a pipe is written to as it is.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.path = path
        self.not_rotated: OSError | None = None
        """Why the last rotation failed; the file then grows beyond ``max_bytes``."""
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor: int | None = None

    def append(self, lines: bytes) -> None:
        """Append whole lines: all of them, or none and OSError."""
        descriptor = self._locked()
        try:
            if not self._is_regular(descriptor):
                _write_all(descriptor, lines)
                return
            size = os.fstat(descriptor).st_size
            if size and size + len(lines) > self._max_bytes:
                descriptor = self._rotated(descriptor)
                size = os.fstat(descriptor).st_size
            # A process that died in the middle of a line left its beginning.
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            try:
                _write_all(descriptor, b"\n" + lines if torn else lines)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, once what it holds is on the disk; the next append opens it again."""
        if self._descriptor is not None:
            with suppress(OSError):  # a device can't
                os.fsync(self._descriptor)
            self._let_go()

    def _locked(self) -> int:
        """The file at the path, locked."""
        while True:
            if self._descriptor is None:
                self._descriptor = _open(self.path)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                    return self._descriptor
            except FileNotFoundError:
                pass
            except OSError:  # others would wait for the lock, and where the handle itself is stale it stays so
                self._let_go()
                raise
            self._let_go()

    def _rotated(self, descriptor: int) -> int:
        """A new file, locked; the old one where it can't be moved."""
        try:
            self._forget_oldest()
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(self._older(number), self._older(number + 1))
            os.replace(self.path, self._older(1))
        except OSError as error:
            self.not_rotated = error
            return descriptor
        self.not_rotated = None
        return self._locked()

    def _forget_oldest(self) -> None:
        number = self._keep + 1
        while self._older(number).exists():
            self._older(number).unlink()
            number += 1

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _let_go(self) -> None:
        assert self._descriptor is not None
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    @staticmethod
    def _is_regular(descriptor: int) -> bool:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT, MODE)


def _write_all(descriptor: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(descriptor, data[written:])
