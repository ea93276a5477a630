"""A notebook: cells run in the `__main__` of a kernel, whose main thread has a running event loop."""

from __future__ import annotations

import importlib.util

import pytest

from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ipykernel", "jupyter_client")),
    reason="needs ipykernel and jupyter_client",
)

NOTEBOOK = """
    import re, sys, threading, time
    from jupyter_client.manager import start_new_kernel

    class Cell:
        "Runs code in the kernel: its status, the text of its value, what it printed, its exception's name."

        def __init__(self, code, interrupt_at=None):
            self.value, self.printed, self.error = None, "", None
            self._interrupt_at = interrupt_at
            reply = kernel.execute_interactive(code, timeout=30, output_hook=self._see)
            self.status = reply["content"]["status"]

        def _see(self, message):
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                self.printed += content["text"]
                if self._interrupt_at and self._interrupt_at in self.printed:
                    self._interrupt_at = None
                    manager.interrupt_kernel()
            elif kind == "execute_result":
                self.value = content["data"]["text/plain"]
            elif kind == "error":
                self.error = content["ename"]

    manager, kernel = start_new_kernel()
    try:
        BODY
    finally:
        manager.shutdown_kernel(now=HOW == "killed")
        kernel.stop_channels()
    print("well")
"""

BODY = """
        Cell("import os, time, operator\\nimport hybriddist as hd\\npids = hd.addprocs(2)")
        Cell("k = 10\\ndef f(x):\\n    return x + k")
        call = "[hd.remotecall_fetch(f, pid, 1) for pid in pids]"
        assert Cell(call).value == "[11, 11]"
        assert Cell("k = 20\\n" + call).value == "[21, 21]"
        Cell("def f(x):\\n    return -x")
        assert Cell("hd.pmap(f, range(4))").value == "[0, -1, -2, -3]"
        assert Cell("hd.distributed(f, range(4), reduce=operator.add)").value == "-6"
        Cell("class Point:\\n    def __init__(self, x): self.x = x\\n    def moved(self): return Point(self.x + 1)")
        assert Cell("type(p := hd.remotecall_fetch(Point(1).moved, pids[0])) is Point, p.x").value == "(True, 2)"
        assert Cell("await hd.remotecall(f, pids[0], 5)").value == "-5"
        assert Cell("hd.remotecall_fetch(f, pids[0])").error == "RemoteException"

        printed = Cell("hd.remotecall_fetch(print, pids[0], 'said')\\ntime.sleep(0.2)").printed
        assert "From worker 2:\\tsaid\\n" in printed, printed

        for work in ("hd.remotecall_fetch(time.sleep, pids[0], 60)", "hd.pmap(time.sleep, [60] * 4)",
                     "hd.remotecall(time.sleep, pids[0], 60).fetch()", "hd.addprocs(1, exename=['sleep', '60'])"):
            assert Cell("print('now', flush=True)\\n" + work, interrupt_at="now").error == "KeyboardInterrupt", work
            Cell("hd.interrupt()")
            assert Cell(call).value == "[-1, -1]", work
        assert Cell("hd.workers() == pids").value == "True"

        if HOW == "shut down while it waits":
            kernel.execute("hd.remotecall_fetch(time.sleep, pids[0], 60)")
"""


@pytest.mark.parametrize("how", ["shut down", "shut down while it waits", "killed"])
def test_cells_run_on_workers(run_python: ScriptRunner, how: str) -> None:
    """That nothing is left of the workers is seen by the check at the module's end."""
    done = run_python(NOTEBOOK.replace("BODY", BODY.strip()).replace("HOW", repr(how)), timeout=60)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
