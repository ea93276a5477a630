"""Every ceiling and default duration: value, unit, reason.

Nothing here is read from the environment (``settings.py`` does that), and nothing here is changed at run time.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# ---- frames -----------------------------------------------------------------------------------------------------

MAX_HEAD_BYTES: Final = 2 * GIB
"""Message header and pickle of one frame. Pickles of bytes objects are in band, so this bounds a `bytes` argument."""

MAX_BUFFER_BYTES: Final = 1 << 40
"""One out-of-band buffer: 1 TiB, more than any machine of today; a corrupt length beyond it is refused."""

MAX_BUFFERS: Final = 4096
"""Out-of-band buffers of one frame. More arrays than that go in band, where they cost no table."""

OUT_OF_BAND_BYTES: Final = 16 * KIB
"""Buffers from this size up travel out of band; below it one more copy is cheaper than a table entry and a slot."""

# ---- handshake --------------------------------------------------------------------------------------------------

HANDSHAKE_SECONDS: Final = 10.0
"""From accept to proof; long enough for a swapped-out peer, short enough that silent sockets do not pile up."""

MAX_UNPROVEN_CONNECTIONS: Final = 64
"""Connections that have not proved the cookie yet; the oldest is dropped first."""

MAX_COOKIE_CHARACTERS: Final = 256
SHORT_COOKIE_CHARACTERS: Final = 16
"""Shorter cookies are accepted with a warning: they can be guessed."""

# ---- shared memory ----------------------------------------------------------------------------------------------

RING_BYTES: Final = 256 * KIB
"""One direction of a connection. A frame may be larger than the ring: it is then streamed through it."""

ARENA_BYTES_SHARE: Final = 0.4
"""Of the shared-memory file system's size, what the arenas of one process may take together."""

MAX_SLOT_SEGMENTS: Final = 64
"""Segments of one arena; a bound on mappings and descriptors."""

# ---- waiting ----------------------------------------------------------------------------------------------------

SPIN_SECONDS: Final = 50e-6
"""How long a waiting thread polls before it blocks: a blocked wake-up costs 15-25 µs on each side."""

STANDBY_SECONDS: Final = 0.0015
"""How long a call may hold a worker's main thread before the standby thread takes the receiving over."""

WORKER_TIMEOUT_SECONDS: Final = 60.0
"""Default of HYBRIDDIST_WORKER_TIMEOUT: from launch to join, and how long a new worker waits for the driver."""

SILENCE_LIMIT_SECONDS: Final = 30.0
"""Default of HYBRIDDIST_SILENCE_LIMIT: without a byte from another node for so long, it counts as lost."""

SIGNAL_LOOK_SECONDS: Final = 0.5
"""A main thread that waits looks up so often: a Ctrl-C that comes just before a blocking call of C begins is noted by
Python, and handled only between two bytecodes."""

# ---- sending ----------------------------------------------------------------------------------------------------

OUTBOX_BYTES: Final = 8 * MIB
"""Bytes queued to one peer before senders wait for room."""

# ---- loops ------------------------------------------------------------------------------------------------------

SMALL_PARTIAL_BYTES: Final = 64 * KIB
"""Pickled partial results of a reduction up to this size go straight to the caller: to move one costs less than the
further call that would combine it where it is. Larger ones stay, and are combined by neighbours."""

FAILURE_GRACE_SECONDS: Final = 0.5
"""When a chunk of a reduction has failed, those under way have so long to fail as well, before they are cancelled. An
error in the function strikes all of them at once, and the first in order is the one to raise."""

# ---- functions --------------------------------------------------------------------------------------------------

KEPT_DEFINITIONS_BYTES: Final = 64 * MIB
"""Pickles of functions that a process keeps for its other connections. Pickling 64 MiB anew takes some 50 ms; to keep
more would cost memory that the user knows nothing of. A larger one is made for each connection,
unless it goes into shared memory."""

# ---- removing ---------------------------------------------------------------------------------------------------

POLITE_EXIT_SECONDS: Final = 3.0
"""After the polite request a worker has so long before SIGTERM."""

TERM_EXIT_SECONDS: Final = 2.0
"""After SIGTERM so long before SIGKILL."""

SHUTDOWN_SECONDS: Final = 5.0
"""All of `shutdown()` at interpreter exit."""

EXITING_CALLBACK_SECONDS: Final = 10.0
"""How long the functions that hear of a removal may hold it up; they are meant for tidying up, not for waiting."""

SLOW_CALLBACK_SECONDS: Final = 10.0
"""A function that hears of workers and takes longer is named: it holds up others, and perhaps an `addprocs`."""

INTERRUPT_SECONDS: Final = 10.0
"""For managers to pass an interrupt on; one that has to log in to another host takes seconds."""

MAX_STATUS_BYTES: Final = 64 * KIB
"""What a process says of itself; the driver keeps one of each for ever."""

# ---- launching --------------------------------------------------------------------------------------------------

MAX_LINES_BEFORE_HEADER: Final = 1000
"""Lines a launch command may print (banners, module messages) before the line that announces the worker."""

MAX_CHARACTERS_BEFORE_HEADER: Final = MIB
"""The same for a command that prints long lines, or no line end at all: 1 KiB a line is more than any banner has."""

MAX_LINE_BYTES: Final = 64 * KIB
"""A longer line of a worker's output is passed on in pieces."""

STDERR_TAIL_LINES: Final = 20
"""Last lines of a worker's stderr, kept for the exception that tells of its death."""

MAX_ERROR_TEXT: Final = 64 * KIB
"""Characters of an exception's text or traceback that travel; the rest is cut."""
