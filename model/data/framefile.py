"""The frames of a store on disk: one plain .npy file, uint8 [F, H, W, 3], written row after row.

Plain writes rather than a writable memory map: on a full disk they raise OSError, where the map would kill the process
with SIGBUS. For the same reason checksums are computed over plain reads.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from model.data.base import Frame, HeightWidth
from model.data.records import Rows

CHUNK_BYTES = 1 << 20  # read at a time when checksums are computed


class FrameWriter:
    """Writes frames into a .npy file whose length is known only at the end; rows that the file holds may be kept.

    As a context manager: left without an error, the file ends after the last row, has its header, and is on the disk.

    Attributes:
        row: the row that the next frame will have.
    """

    def __init__(self, path: Path, size: HeightWidth) -> None:
        self.row = 0
        self._first = self._crc32 = 0  # first row that `take` has not given out yet; checksum from there on
        self._size = size
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, frame: Frame) -> None:
        """Write one frame, uint8 [H, W, 3]."""
        assert frame.shape == (*self._size, 3), frame.shape
        assert frame.dtype == np.uint8, frame.dtype
        pixels = np.ascontiguousarray(frame).data
        self._file.write(pixels)
        self._crc32 = zlib.crc32(pixels, self._crc32)
        self.row += 1

    def take(self) -> Rows:
        """The rows appended since the last call; they have left this process, so a kill does not lose them."""
        self._file.flush()
        rows = Rows(self._first, self.row - self._first, self._crc32)
        self._begin(self.row)
        return rows

    def holds(self, rows: Rows) -> bool:
        """Whether the file holds these rows with this checksum."""
        held = checksum(self._file, self._offset(rows.first), rows.length * _frame_bytes(self._size))
        self._file.seek(self._offset(self.row))
        return held == rows.crc32

    def keep(self, rows: Rows) -> None:
        """Go on behind these rows, which are the next ones."""
        assert rows.first == self.row, (rows, self.row)
        self._begin(rows.end)

    def _begin(self, row: int) -> None:
        self.row = self._first = row
        self._crc32 = 0
        self._file.seek(self._offset(row))

    def _offset(self, row: int) -> int:
        return self._data_start + row * _frame_bytes(self._size)

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.row, *self._size, 3)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._write_header()
                # numpy leaves room in the header for a first axis of 21 digits, for exactly this use
                assert self._file.tell() == self._data_start, "the .npy header has changed its length"
                self._file.truncate(self._offset(self.row))
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def open_frames(path: Path) -> NDArray[np.uint8]:
    """The frames uint8 [F, H, W, 3], mapped read-only: every process that maps them shares the page cache's one copy.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no .npy file of frames, or is shorter or longer than its header says.
    """
    frames = np.lib.format.open_memmap(path, mode="r")
    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise ValueError(f"{path.name} holds {frames.dtype} {list(frames.shape)}, not uint8 frames")
    excess = path.stat().st_size - frames.offset - frames.nbytes
    if excess:
        raise ValueError(f"{path.name} has {excess} bytes too many")
    return frames.view(np.ndarray)  # indexing the memmap class itself is several times slower


def damaged(path: Path, spans: list[Rows]) -> list[Rows]:
    """Those of the spans whose rows are not as they were written; reads all their bytes. Raises OSError, ValueError."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        start, frame_bytes = file.tell(), _frame_bytes((shape[1], shape[2]))
        return [
            rows
            for rows in spans
            if checksum(file, start + rows.first * frame_bytes, rows.length * frame_bytes) != rows.crc32
        ]


def checksum(file: BinaryIO, start: int, num_bytes: int) -> int | None:
    """CRC-32 of `num_bytes` from `start` on; None where the file ends before."""
    crc32 = 0
    file.seek(start)
    while num_bytes > 0:
        chunk = file.read(min(CHUNK_BYTES, num_bytes))
        if not chunk:
            return None
        crc32 = zlib.crc32(chunk, crc32)
        num_bytes -= len(chunk)
    return crc32


def _frame_bytes(size: HeightWidth) -> int:
    return size[0] * size[1] * 3
