"""Segments: names, rights, reservation, lifetimes, trackers, and what the dead leave behind."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import re
import shutil
import signal
import stat

import numpy as np
import pytest

from hybriddist.errors import RemoteProtocolError, SharedMemoryFull, TransportBroken
from hybriddist.shm import segment
from hybriddist.shm.segment import Budget, Segment

FOLDER = "/dev/shm"


def own_names() -> list[str]:
    return [name for name in os.listdir(FOLDER) if name.startswith(f"hybriddist-{os.getpid()}-")]


def test_create_and_attach():
    with_owner = Segment.create(10_000)
    other = Segment.attach(with_owner.name, 10_000)
    assert (len(other.memory), other.memory.format, other.memory.readonly) == (10_000, "B", False)
    assert not any(other.memory)
    with_owner.memory[5000:5003] = b"abc"
    assert bytes(other.memory[5000:5003]) == b"abc"
    with_owner.unlink()
    other.unlink()
    other.memory[0] = 9
    assert with_owner.memory[0] == 9


def test_name_and_rights():
    created = Segment.create(100)
    assert re.fullmatch(rf"hybriddist-{os.getpid()}-\d+-\d+-[0-9a-f]{{24}}", created.name)
    assert len(created.name) <= segment.MAX_NAME_BYTES
    assert stat.S_IMODE(os.stat(f"{FOLDER}/{created.name}").st_mode) == 0o600
    created.unlink()
    assert own_names() == []
    assert segment.new_name() != segment.new_name()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_another_user_is_refused(python):
    created = Segment.create(100)
    result = python.run(
        "import os, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for mode in (os.O_RDWR, os.O_RDONLY):\n"
        "    try: os.open(sys.argv[1], mode)\n"
        "    except PermissionError: print('refused')\n",
        f"{FOLDER}/{created.name}",
    )
    created.unlink()
    assert (result.stdout, result.stderr) == ("refused\nrefused\n", "")


def test_close_with_views_alive():
    created = Segment.create(8000)
    created.unlink()
    array = np.frombuffer(created.memory, np.float64)
    part = created.memory[100:200]
    created.close()
    created.close()
    assert len(created.memory) == 0
    del created
    gc.collect()
    array[:] = 2.5
    assert bytes(part[4:12]) == np.float64(2.5).tobytes()
    assert array.sum() == 2500


def test_one_descriptor_at_most_while_mapped():
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    created = Segment.create(8000)
    assert descriptors() <= before + 1
    view = created.memory[1:]
    created.unlink()
    created.close()
    del created
    assert descriptors() <= before + 1
    del view
    assert descriptors() == before


class TestFull:
    def test_reserving_fails(self, monkeypatch):
        def no_room(descriptor, start, length):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", no_room)
        with pytest.raises(SharedMemoryFull) as caught:
            Segment.create(3 << 20)
        text = str(caught.value)
        assert "3.0 MiB" in text
        assert "No space left" in text
        assert "--shm-size" in text
        assert "mount -o remount,size=" in text
        assert own_names() == []

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.ENOSYS, errno.EDQUOT])
    @pytest.mark.parametrize("step", ["posix_fallocate", "ftruncate", "mmap", "fstat"])
    def test_every_step_can_fail(self, monkeypatch, step, code):
        def fail(*args, **kwargs):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(mmap if step == "mmap" else os, step, fail)
            with pytest.raises(SharedMemoryFull, match=re.escape(os.strerror(code))):
                Segment.create(5000)
        gc.collect()
        assert own_names() == []
        retry = Segment.create(5000)
        retry.unlink()

    def test_interrupt_leaves_nothing(self, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "posix_fallocate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Segment.create(5000)
        assert own_names() == []

    def test_every_byte_is_reserved_in_steps(self, monkeypatch):
        # In steps, because a timer's signal undoes the call that it interrupts.
        steps = []
        real = os.posix_fallocate

        def spy(descriptor, start, length):
            steps.append((start, length))
            real(descriptor, start, length)

        monkeypatch.setattr(os, "posix_fallocate", spy)
        size = (5 << 20) + 4097
        created = Segment.create(size)
        created.unlink()
        assert sum(length for _, length in steps) == size
        assert [start for start, _ in steps] == [sum(length for _, length in steps[:n]) for n in range(len(steps))]
        assert max(length for _, length in steps) <= 1 << 20

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root and unshare")
    def test_small_file_system(self, python):
        script = (
            "import subprocess, os\n"
            "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', '/dev/shm'], check=True)\n"
            "from hybriddist.errors import SharedMemoryFull\n"
            "from hybriddist.shm import segment\n"
            "from hybriddist.shm.segment import Segment\n"
            "assert segment.capacity() == (4 << 20, 4 << 20), segment.capacity()\n"
            "try: Segment.create(8 << 20)\n"
            "except SharedMemoryFull as error: text = str(error)\n"
            "assert '8.0 MiB' in text and 'has 4 MiB, 4.0 MiB' in text, text\n"
            "assert os.listdir('/dev/shm') == []\n"
            # Filled by somebody else after the reservation: what is reserved keeps working.
            "ours = Segment.create(2 << 20)\n"
            "with open('/dev/shm/other', 'wb', 0) as file: assert file.write(bytes(4 << 20)) < 4 << 20\n"
            "assert segment.capacity()[1] == 0\n"
            "ours.memory[:] = bytes([7]) * (2 << 20)\n"
            "assert ours.memory[-1] == 7\n"
        )
        result = python.run(script, command=("unshare", "-m"))
        assert (result.returncode, result.stderr) == (0, "")


class TestAttach:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            "psm_12345678",
            "../hybriddist-1-1-1-00000000",
            "hybriddist-1-1-1-00000000/x",
            "hybriddist-1-1-00000000",
            "hybriddist-1-1-1-00000000\n",
            "hybriddist-1-1-1-0000000G",
            "hybriddist-\u0661-1-1-00000000",
            "x" * 10_000,
        ],
    )
    def test_names_of_others(self, name):
        with pytest.raises(RemoteProtocolError, match="not the name"):
            Segment.attach(name)
        with pytest.raises(RemoteProtocolError, match="not the name"):
            segment.unlink(name)

    def test_missing(self):
        with pytest.raises(TransportBroken, match="No such file"):
            Segment.attach(segment.new_name())

    def test_wrong_size(self):
        created = Segment.create(5000)
        with pytest.raises(RemoteProtocolError, match="5000 bytes, not 6000"):
            Segment.attach(created.name, 6000)
        created.unlink()

    def test_wrong_mode(self):
        created = Segment.create(5000)
        os.chmod(f"{FOLDER}/{created.name}", 0o644)
        with pytest.raises(RemoteProtocolError, match="mode 644"):
            Segment.attach(created.name)
        created.unlink()

    @pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
    def test_wrong_owner(self):
        created = Segment.create(5000)
        os.chown(f"{FOLDER}/{created.name}", 65534, -1)
        with pytest.raises(RemoteProtocolError, match="user 65534"):
            Segment.attach(created.name)
        created.unlink()

    def test_symbolic_link(self, tmp_path):
        target = tmp_path / "target"
        target.write_bytes(bytes(5000))
        target.chmod(0o600)
        name = segment.new_name()
        os.symlink(target, f"{FOLDER}/{name}")
        try:
            with pytest.raises(TransportBroken):
                Segment.attach(name)
        finally:
            os.unlink(f"{FOLDER}/{name}")

    def test_empty(self):
        name = segment.new_name()
        os.close(os.open(f"{FOLDER}/{name}", os.O_CREAT | os.O_RDWR, 0o600))
        try:
            with pytest.raises(TransportBroken):
                Segment.attach(name)
        finally:
            segment.unlink(name)


@pytest.mark.parametrize("squat", ["file", "link", "dangling link"])
def test_created_exclusively(tmp_path, squat):
    name, target = segment.new_name(), tmp_path / "target"
    path = f"{FOLDER}/{name}"
    if squat != "dangling link":
        target.write_bytes(b"precious")
    if squat == "file":
        shutil.copy(target, path)
    else:
        os.symlink(target, path)
    try:
        with pytest.raises(SharedMemoryFull, match="exists"):
            Segment.create(5000, name)
        assert os.path.lexists(path)
        assert target.exists() == (squat != "dangling link")
        assert squat == "dangling link" or target.read_bytes() == b"precious"
    finally:
        os.unlink(path)


def test_unlinking_what_is_not_there():
    segment.unlink(segment.new_name())


class TestTracker:
    def test_attacher_that_exits_first_destroys_nothing(self, python):
        created = Segment.create(5000)
        result = python.run(
            "import sys\n"
            "from hybriddist.shm.segment import Segment\n"
            "other = Segment.attach(sys.argv[1])\n"
            "other.memory[0] = 7\n",
            created.name,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert created.memory[0] == 7
        assert own_names() == [created.name]
        Segment.attach(created.name)
        created.unlink()

    def test_no_tracker_process(self, python):
        result = python.run(
            "import errno, os\n"
            "from multiprocessing import resource_tracker\n"
            "from hybriddist.errors import SharedMemoryFull\n"
            "from hybriddist.shm.segment import Segment\n"
            "created = Segment.create(5000)\n"
            "Segment.attach(created.name)\n"
            "created.unlink(); created.unlink()\n"
            "from hybriddist.shm import segment\n"
            "segment.unlink(Segment.create(5000).name)\n"
            "import mmap\n"
            "def fail(*args): raise OSError(errno.ENOMEM, 'none')\n"
            "real, mmap.mmap = mmap.mmap, fail\n"
            "try: Segment.create(5000)\n"
            "except SharedMemoryFull: pass\n"
            "else: raise AssertionError\n"
            "assert resource_tracker._resource_tracker._pid is None\n"
        )
        assert (result.returncode, result.stderr) == (0, "")

    def test_segments_of_others_are_still_tracked(self, python):
        # Suppression is ours alone: a user's own SharedMemory is tracked as before.
        result = python.run(
            "from multiprocessing import resource_tracker, shared_memory\n"
            "from hybriddist.shm.segment import Segment\n"
            "ours = Segment.create(5000); ours.unlink()\n"
            "theirs = shared_memory.SharedMemory(create=True, size=100)\n"
            "assert resource_tracker._resource_tracker._pid is not None\n"
            "theirs.close(); theirs.unlink()\n"
        )
        assert (result.returncode, result.stderr) == (0, "")


LEAVE_A_NAME = """
import os, signal, sys
from hybriddist.shm.segment import Segment
created = Segment.create(5000)
print(created.name, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestSweep:
    def test_names_of_the_dead_and_of_the_living(self, python):
        process = python.start(LEAVE_A_NAME)
        name = process.stdout.readline().decode().strip()
        mine = Segment.create(100)
        assert name not in segment.sweep()
        process.stdin.close()
        # Not reaped yet: a zombie owns nothing any more.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert name in segment.sweep()
        assert not os.path.exists(f"{FOLDER}/{name}")
        assert own_names() == [mine.name]
        mine.unlink()
        assert process.wait() == -signal.SIGKILL

    def make(self, ospid, start, namespace) -> str:
        name = f"hybriddist-{ospid}-{start}-{namespace}-00000000aaaabbbb"
        os.close(os.open(f"{FOLDER}/{name}", os.O_CREAT | os.O_RDWR, 0o600))
        return name

    def test_ospid_used_again(self):
        mine = segment.new_name().split("-")
        name = self.make(mine[1], int(mine[2]) - 1, mine[3])
        assert name in segment.sweep()

    def test_another_pid_namespace(self):
        mine = segment.new_name().split("-")
        name = self.make(mine[1], int(mine[2]) - 1, int(mine[3]) + 1)
        assert name not in segment.sweep()
        segment.unlink(name)

    @pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
    def test_another_user(self):
        mine = segment.new_name().split("-")
        name = self.make(mine[1], int(mine[2]) - 1, mine[3])
        os.chown(f"{FOLDER}/{name}", 65534, -1)
        assert name not in segment.sweep()
        segment.unlink(name)

    def test_other_names_are_left(self):
        name = "hybriddist-other-thing"
        path = f"{FOLDER}/{name}{os.getpid()}"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        segment.sweep()
        assert os.path.exists(path)
        os.unlink(path)


def test_capacity():
    total, free = segment.capacity()
    assert total >= free > 0


def test_capacity_without_a_file_system(monkeypatch):
    monkeypatch.setattr(segment, "_NAMES_FOLDER", "/nowhere/at/all")
    assert segment.capacity() == (0, 0)
    assert segment.sweep() == []


def test_budget():
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    budget.give(60)
    assert budget.taken_bytes == 40
    assert Budget().limit_bytes <= segment.capacity()[0] / 2


@pytest.mark.parametrize(("total", "wanted", "size"), [(64 << 20, 1 << 20, 2), (3 << 30, 1, 6), (4 << 30, 8 << 30, 20)])
def test_who_is_over_the_budget_is_told_once_how_to_have_more(monkeypatch, total, wanted, size):
    monkeypatch.setattr(segment, "capacity", lambda: (total, 0))
    told = []
    budget = Budget(warn=told.append)
    budget.refuse(1 << 50)  # which no machine has
    budget.refuse(wanted)
    budget.refuse(wanted)
    (error,) = told
    assert f"may take {total * 0.4 / 2**20:.0f} MiB of the {total >> 20} MiB of /dev/shm" in str(error)
    assert f"docker run --shm-size={size}g" in str(error)
    assert f"mount -o remount,size={size}g /dev/shm" in str(error)
