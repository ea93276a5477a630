"""The relay of workers' output, over real pipes."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hybriddist.errors import InvalidStateException
from hybriddist.limits import MAX_LINE_BYTES, STDERR_TAIL_LINES
from hybriddist.runtime.output import OutputRelay
from tests.helpers.polling import poll_for


@pytest.fixture
def relay() -> Iterator[OutputRelay]:
    relay = OutputRelay()
    yield relay
    relay.close(5)


class Printed:
    """What has been printed on the driver's stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._texts = ["", ""]

    def _look(self, stream: int) -> str:
        for n, text in enumerate(self._capsys.readouterr()):
            self._texts[n] += text
        return self._texts[stream]

    @property
    def out(self) -> str:
        return self._look(0)

    @property
    def err(self) -> str:
        return self._look(1)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


def pipe() -> tuple[Any, Any]:
    reading, writing = os.pipe()
    return open(reading, "rb", buffering=0), open(writing, "wb", buffering=0)


def test_lines_carry_the_pid_once_it_is_known(relay: OutputRelay, printed: Printed) -> None:
    reader, writer = pipe()
    output = relay.attach(reader)
    with writer:
        writer.write(b"early\n")
        assert relay.drain(output, 10)
        relay.assign(output, 7)
        writer.write(b"one\ntwo\nthr")
        assert relay.drain(7, 10)
        assert printed.out.count("\n") == 3
    assert poll_for(lambda: output.ended)
    assert relay.drain(7, 10)
    assert printed.out == (
        "\tFrom worker startup:\tearly\n"
        "      From worker 7:\tone\n      From worker 7:\ttwo\n      From worker 7:\tthr\n"
    )


def test_stderr_goes_to_stderr_and_its_last_lines_are_kept(relay: OutputRelay, printed: Printed) -> None:
    (out, out_writer), (err, err_writer) = pipe(), pipe()
    output = relay.attach(out, err)
    relay.assign(output, 3)
    with out_writer, err_writer:
        out_writer.write(b"fine\n")
        err_writer.write(b"".join(b"%d\n" % n for n in range(100)))
        assert relay.drain(3, 10)
    assert printed.out == "      From worker 3:\tfine\n"
    assert printed.err.splitlines()[-1] == "      From worker 3:\t99"
    assert relay.stderr_tail(3).splitlines() == [str(n) for n in range(100 - STDERR_TAIL_LINES, 100)]
    assert relay.stderr_tail(4) == ""


def test_streams_of_many_workers(relay: OutputRelay, printed: Printed) -> None:
    writers = []
    for pid in range(2, 22):
        reader, writer = pipe()
        relay.assign(relay.attach(reader), pid)
        writers.append(writer)
    for number in range(5):
        for writer in writers:
            writer.write(b"%d\n" % number)
    for pid, writer in enumerate(writers, 2):
        writer.close()
        assert relay.drain(pid, 10)
    lines = printed.out.splitlines()
    for pid in range(2, 22):
        assert [line for line in lines if f" {pid}:" in line] == [f"      From worker {pid}:\t{n}" for n in range(5)]


def test_ten_mebibytes_without_a_line_end(relay: OutputRelay, printed: Printed) -> None:
    code = "import sys; sys.stdout.write('x' * (10 << 20))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0) as process:
        output = relay.attach(process.stdout)
        relay.assign(output, 2)
        assert process.wait(30) == 0
    assert poll_for(lambda: output.ended)
    assert relay.drain(output, 10)
    lines = printed.out.splitlines()
    prefix = "      From worker 2:\t"
    assert {len(line) for line in lines} == {len(prefix) + MAX_LINE_BYTES}
    assert len(lines) * MAX_LINE_BYTES == 10 << 20


def test_hook_sees_lines_first_and_may_take_them(relay: OutputRelay, printed: Printed) -> None:
    seen: list[tuple[str, str | None]] = []

    def hook(stream: str, line: str | None) -> bool:
        seen.append((stream, line))
        return line == "mine"

    reader, writer = pipe()
    output = relay.attach(reader, hook=hook)
    with writer:
        writer.write(b"yours\nmine\n")
    assert poll_for(lambda: output.ended)
    assert relay.drain(output, 10)
    assert seen == [("stdout", "yours"), ("stdout", "mine"), ("stdout", None)]
    assert printed.out == "\tFrom worker startup:\tyours\n"


@pytest.mark.parametrize("how", ["buffered", "bytes", "file"])
def test_streams_that_cannot_be_waited_for(how: str, relay: OutputRelay, printed: Printed, tmp_path: Any) -> None:
    if how == "buffered":  # part of it has been read ahead already
        process = subprocess.Popen(["printf", "a\\nb\\nc\\n"], stdout=subprocess.PIPE)
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\n"
        stream: Any = process.stdout
    elif how == "bytes":
        stream = io.BytesIO(b"b\nc\n")
    else:
        (tmp_path / "job.out").write_bytes(b"b\nc\n")
        stream = open(tmp_path / "job.out", "rb", buffering=0)  # noqa: SIM115 - the relay closes it
    output = relay.attach(stream)
    assert poll_for(lambda: output.ended)
    assert relay.drain(output, 10)
    assert printed.out == "\tFrom worker startup:\tb\n\tFrom worker startup:\tc\n"
    assert poll_for(lambda: stream.closed)


def test_detach_prints_what_is_there_and_does_not_wait_for_the_end(relay: OutputRelay, printed: Printed) -> None:
    reader, writer = pipe()
    output = relay.attach(reader)
    relay.assign(output, 2)
    with writer:  # as a daemon started by the worker would
        writer.write(b"last words")
        relay.detach(2)
        assert poll_for(lambda: output.ended)
        assert relay.drain(output, 10)
        assert reader.closed
    assert printed.out == "      From worker 2:\tlast words\n"
    relay.detach(2)  # nothing happens


def test_blocked_stdout_does_not_block_the_worker(monkeypatch: pytest.MonkeyPatch, relay: OutputRelay) -> None:
    reading, writing = os.pipe()  # nobody reads: it takes 64 KiB
    blocked = open(writing, "w", buffering=1)  # noqa: SIM115 - its end is part of the test
    monkeypatch.setattr(sys, "stdout", blocked)
    code = "for n in range(1 << 17): print('x' * 79)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0) as process:
        output = relay.attach(process.stdout)
        relay.assign(output, 2)
        assert process.wait(30) == 0  # all of its 10 MiB were taken
    assert not relay.drain(2, 0.01)
    os.close(reading)  # now the relay's write fails, and it goes on
    assert relay.drain(2, 10)
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):  # it may or may not still hold text
        blocked.close()


def test_a_stream_of_two_workers_is_the_first_ones(relay: OutputRelay, printed: Printed) -> None:
    """The second one's has ended; the relay goes on, for the first as for others."""
    (one, one_writer), (other, other_writer) = pipe(), pipe()
    first = relay.attach(one)
    ends: list[tuple[str, str | None]] = []
    second = relay.attach(one, other, lambda *seen: bool(ends.append(seen)))
    assert poll_for(lambda: ends == [("stdout", None)])
    relay.assign(first, 2)
    relay.assign(second, 3)
    with one_writer, other_writer:
        one_writer.write(b"of one\n")
        other_writer.write(b"of the other\n")
        assert relay.drain(2, 10)
        assert relay.drain(3, 10)
    assert printed.out == "      From worker 2:\tof one\n"
    assert printed.err == "      From worker 3:\tof the other\n"
    assert poll_for(lambda: first.ended and second.ended and one.closed and other.closed)


def test_a_stream_that_somebody_closes_makes_room_for_the_next(relay: OutputRelay, printed: Printed) -> None:
    """The system gives the number of its descriptor to the next one."""
    (old, old_writer) = pipe()
    gone = relay.attach(old)
    assert relay.drain(gone, 10)
    number = old.fileno()
    old.close()
    new, new_writer = pipe()
    assert new.fileno() == number
    with old_writer, new_writer:
        relay.assign(relay.attach(new), 2)
        new_writer.write(b"fine\n")
        assert relay.drain(2, 10)
        assert gone.ended
    assert printed.out == "      From worker 2:\tfine\n"
    assert relay.drain(2, 10)


def test_an_error_costs_one_workers_output_and_not_the_relay(relay: OutputRelay, printed: Printed) -> None:
    (bad, bad_writer), (good, good_writer) = pipe(), pipe()

    def hook(stream: str, line: str | None) -> bool:
        raise RuntimeError("the hook fails")

    output = relay.attach(bad, hook=hook)
    with bad_writer, good_writer:
        bad_writer.write(b"line\n")
        assert poll_for(lambda: output.ended)
        relay.assign(relay.attach(good), 2)
        good_writer.write(b"fine\n")
        assert relay.drain(2, 10)
    assert printed.out == "      From worker 2:\tfine\n"
    assert "internal error while relaying output" in printed.err
    assert "the hook fails" in printed.err


def test_no_descriptors_left_for_the_thread(relay: OutputRelay, printed: Printed) -> None:
    """What could not be relayed does not disturb what comes later."""
    (lost, lost_writer), (reader, writer) = pipe(), pipe()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            relay.attach(lost)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lost.close()
    lost_writer.close()
    output = relay.attach(reader)
    with writer:
        writer.write(b"hello\n")
    assert relay.drain(output, 10)
    assert printed.out == "\tFrom worker startup:\thello\n"


def test_after_close_nothing_waits(relay: OutputRelay) -> None:
    reader, writer = pipe()
    output = relay.attach(reader)
    relay.close(5)
    relay.close(5)
    assert reader.closed
    assert relay.drain(output, 0)
    relay.detach(output)
    writer.close()
    with pytest.raises(InvalidStateException), io.BytesIO() as stream:
        relay.attach(stream)
