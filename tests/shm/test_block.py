"""Blocks: nameless memory that processes of a node open from each other, and that dies with the last of them."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hybriddist.errors import SharedMemoryFull, TransportBroken
from hybriddist.shm import block as block_module
from hybriddist.shm import segment
from hybriddist.shm.block import Address, Block
from tests.helpers.mappings import has_mapped

FOLDER = "/dev/shm"


def own_names() -> list[str]:
    return [name for name in os.listdir(FOLDER) if name.startswith(f"hybriddist-{os.getpid()}-")]


def is_held(inode: int) -> bool:
    """Whether this process has a file open or mapped. One without a name and without holders the system frees."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            if os.stat(f"/proc/self/fd/{name}").st_ino == inode:
                return True
    return has_mapped(str(inode))


def test_it_is_zero_writable_and_has_no_name() -> None:
    made = Block.create(10_000)
    assert (made.length, len(made.memory), made.memory.format, made.memory.readonly) == (10_000, 10_000, "B", False)
    assert not any(made.memory)
    assert own_names() == []


def test_two_see_the_same_memory() -> None:
    made = Block.create(100)
    other = Block.open(made.address())
    third = Block.open(other.address())
    made.memory[5] = 7
    third.memory[6] = 8
    assert bytes(other.memory[5:7]) == b"\7\x08"


@pytest.mark.parametrize("length", [0, 1, 4096, 4097])
def test_lengths(length: int) -> None:
    made = Block.create(length)
    assert len(Block.open(made.address()).memory) == length


def test_views_keep_the_memory_and_not_the_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = Block.create(1 << 20)
    view = made.memory[10:20]
    view[0] = 3
    del made
    assert view[0] == 3
    del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_memory_goes_with_the_last_block() -> None:
    made = Block.create(64 << 20)
    address = made.address()
    assert os.stat(f"/proc/self/fd/{address.descriptor}").st_nlink == 0
    other = Block.open(address)
    del made
    assert is_held(address.inode)
    view = other.memory[5:6]
    del other
    assert is_held(address.inode)
    del view
    assert not is_held(address.inode)


@contextmanager
def child_with_a_block(content: int) -> Iterator[tuple[int, Address]]:
    """A process that has a block, and waits to be killed."""
    reading, writing = os.pipe()
    ospid = os.fork()
    if not ospid:
        made = Block.create(1000)
        made.memory[0] = content
        os.write(writing, repr(tuple(made.address())).encode())
        os.close(writing)
        signal.pause()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        address = Address(*eval(pipe.read()))
    try:
        yield ospid, address
    finally:
        os.kill(ospid, signal.SIGKILL)
        os.waitpid(ospid, 0)


def test_from_another_process_whose_death_does_no_harm() -> None:
    with child_with_a_block(42) as (_, address):
        mine = Block.open(address)
        assert mine.memory[0] == 42
    assert mine.memory[0] == 42
    assert Block.open(mine.address()).memory[0] == 42
    with pytest.raises(TransportBroken, match=f"process {address.ospid} does not have"):
        Block.open(address)


def test_a_number_that_means_another_file_by_now() -> None:
    made = Block.create(1000)
    address = made.address()
    del made
    with pytest.raises(TransportBroken):
        Block.open(address)
    others = [Block.create(1000), Block.create(1000)]
    assert address.descriptor in [other.address().descriptor for other in others]
    with pytest.raises(TransportBroken, match="something else by now"):
        Block.open(address)


def test_a_number_that_means_no_file_at_all(tmp_path: Path) -> None:
    """Opening the fifo would wait for a writer, or take a reader's place."""
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        with pytest.raises(TransportBroken, match="something else by now"):
            Block.open(Address(os.getpid(), descriptor, status.st_dev, status.st_ino, 0, 10, True, ""))
    finally:
        os.close(descriptor)


def test_no_descriptors_left_is_no_news_of_the_other_process() -> None:
    address = Block.create(10).address()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    made = Block.create(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            Block.open(made.address())
        assert not isinstance(caught.value, TransportBroken)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(TransportBroken):
        Block.open(address)


def test_more_than_there_is_takes_nothing() -> None:
    free = segment.capacity()[1]
    with pytest.raises(SharedMemoryFull, match="of them free"):
        Block.create(free + (64 << 20))
    with pytest.raises(SharedMemoryFull):
        Block.create(1 << 60)
    with pytest.raises(ValueError, match="-1 bytes"):
        Block.create(-1)
    assert own_names() == []


def test_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared-memory file system may be larger than the memory: taking it all would have somebody killed."""
    monkeypatch.setattr(segment, "capacity", lambda: (1 << 60, 1 << 60))
    with pytest.raises(SharedMemoryFull, match="to spare"):
        Block.create(1 << 50)


@pytest.mark.parametrize("offset", [0, 8, 4096, 5000])
def test_a_part_of_a_file(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(offset) + b"abcdef" + b"rest")
    mine = Block.of_file(os.open(path, os.O_RDWR), offset, 6, writable=True)
    other = Block.open(mine.address())
    other.memory[0] = ord("X")
    assert bytes(mine.memory) == b"Xbcdef"
    assert path.read_bytes()[offset:] == b"Xbcdefrest"
    mine.flush()


def test_a_read_only_file_stays_read_only(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abcdef")
    mine = Block.of_file(os.open(path, os.O_RDONLY), 0, 6, writable=False)
    other = Block.open(mine.address())
    assert mine.memory.readonly
    assert other.memory.readonly
    assert bytes(other.memory) == b"abcdef"


def test_a_file_that_cannot_be_mapped_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abcdef")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="greater than file size"):
        Block.of_file(os.open(path, os.O_RDONLY), 0, 7, writable=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_descriptors_are_no_files_a_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "_can_be_opened", lambda _: False)
    made = Block.create(100)
    assert len(own_names()) == 1
    other = Block.open(made.address())
    other.memory[3] = 4
    assert made.memory[3] == 4
    with pytest.raises(TransportBroken, match="only the process that created"):
        other.address()
    ospid = os.fork()
    if not ospid:
        del made
        gc.collect()
        os._exit(0)
    os.waitpid(ospid, 0)
    assert len(own_names()) == 1  # a forked copy removes nothing
    del made
    assert own_names() == []
    assert other.memory[3] == 4
