"""Local workers: started, announced, signalled, and gone with the driver. Real processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException, LaunchError
from hybriddist.managers.announcement import COMMAND_ENDED
from hybriddist.managers.base import WorkerConfig
from hybriddist.managers.local import LocalManager
from hybriddist.runtime.child import ExitStatus
from tests.helpers.polling import poll_for
from tests.managers.launcher import COOKIE, FAKE, Launcher
from tests.runtime.fake_worker import still_runs


def told(launcher: Launcher, config: WorkerConfig, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What the worker's FAKE_WORKER code printed as JSON before it announced itself."""
    assert launcher.relay.drain(config.environ["output"], 10)  # type: ignore[index]
    return [json.loads(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()]


def parent(config: WorkerConfig) -> int:
    """The ospid of the worker's parent process."""
    return int(Path(f"/proc/{config.ospid}/stat").read_text().rpartition(")")[2].split()[1])


# ---- forked workers ---------------------------------------------------------------------------------------------


def test_forked_workers_of_one_template(launcher: Launcher) -> None:
    configs = launcher.start(8) + launcher.start(2)
    assert len({config.ospid for config in configs}) == 10
    assert len({os.getsid(config.ospid) for config in configs}) == 10  # type: ignore[type-var]
    assert len({parent(config) for config in configs}) == 1
    assert len({(config.environ or {})["unix_path"] for config in configs}) == 10


def test_announcement_of_a_forked_worker(launcher: Launcher) -> None:
    (config,) = launcher.launch()
    assert launcher.announced(config) == ("127.0.0.1", 9123)
    assert config.bind_addr == "127.0.0.1"
    assert config.enable_threaded_blas is False


def test_none_at_all(launcher: Launcher) -> None:
    assert launcher.launch(0) == []
    manager = LocalManager(-3)
    manager.attach(launcher.context, manager.default_addprocs_params())
    manager.launch({}, launcher.launched, lambda: None)
    assert not launcher.launched


def test_what_a_forked_worker_inherits(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """if True:
        import json, os, sys
        names = ["DRIVER", "GIVEN", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
        print(json.dumps([cookie, os.getcwd(), sys.path, [os.environ.get(name) for name in names]]))
    """
    launcher.start()  # the template exists before the driver changes
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("DRIVER", "now")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of the driver: not meant for workers
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    env = {"FAKE_WORKER": code, "GIVEN": "yes", "MKL_NUM_THREADS": "3"}
    (config,) = launcher.start(dir=tmp_path / "elsewhere", env=env)
    ((cookie, cwd, path, variables),) = told(launcher, config, capsys)
    assert cookie == COOKIE
    assert cwd == os.path.realpath(tmp_path / "elsewhere")
    assert path[0] == str(tmp_path / "modules")
    assert variables == ["now", "yes", "1", "3"]
    monkeypatch.delenv("DRIVER")
    (config,) = launcher.start(env={"FAKE_WORKER": code, "PYTHONPATH": "/given/path"}, enable_threaded_blas=True)
    ((_, cwd, path, variables),) = told(launcher, config, capsys)
    assert cwd == os.getcwd()
    assert path[:2] == ["/given/path", str(tmp_path / "modules")]
    assert variables == [None, None, "7", None]


def test_other_flags_or_variables_of_the_start_need_another_template(
    launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import json, sys; print(json.dumps([sys.flags.optimize, hash('x')]))"
    seen = []
    for exeflags, seed in (("-O", "1"), (["-O"], "1"), ("-O", "2"), (None, "1")):
        (config,) = launcher.start(exeflags=exeflags, env={"FAKE_WORKER": code, "PYTHONHASHSEED": seed})
        seen += told(launcher, config, capsys)
    assert seen[0] == seen[1]
    assert [optimize for optimize, _ in seen] == [1, 1, 1, 0]
    assert seen[0][1] == seen[3][1] != seen[2][1]


def test_template_that_died_is_replaced(launcher: Launcher) -> None:
    (config,) = launcher.start()
    os.kill(parent(config), signal.SIGKILL)
    launcher.start(2)  # at once: whether its death has been noticed or not
    assert config.process.poll() is None


def test_interpreter_flags_that_do_not_exist(launcher: Launcher) -> None:
    with pytest.raises(CompositeException) as caught:
        launcher.launch(2, exeflags="--no-such-flag")
    assert len(caught.value) == 2
    for error in caught.value:
        assert isinstance(error, LaunchError)
        assert COMMAND_ENDED in str(error)


# ---- commands ---------------------------------------------------------------------------------------------------


def test_command_gets_cookie_and_options_by_stdin(
    launcher: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.syspath_prepend("/driver/only")
    code = """if True:
        import json, os, sys
        print(json.dumps([cookie, options.unix_path, os.getcwd(), sys.argv[1:], os.environ["OMP_NUM_THREADS"],
                          "/driver/only" in sys.path, os.getsid(0) == os.getpid()]))
    """
    (config,) = launcher.start(exename=FAKE, exeflags="--flag 'a b'", dir=tmp_path, env={"FAKE_WORKER": code})
    assert config.exename == FAKE
    assert told(launcher, config, capsys) == [
        [COOKIE, (config.environ or {})["unix_path"], os.path.realpath(tmp_path),
         ["--flag", "a b", "-m", "hybriddist", "--worker", "--options"], "1", True, True]
    ]  # fmt: skip
    for ospid in (config.ospid, os.getpid()):
        assert COOKIE.encode() not in Path(f"/proc/{ospid}/cmdline").read_bytes()
    assert COOKIE.encode() not in Path(f"/proc/{config.ospid}/environ").read_bytes()
    config.process.release()
    assert config.process.wait(Deadline(10)) == ExitStatus(exitcode=1)


@pytest.mark.parametrize("params", [{"exename": "/no/such/interpreter"}, {"exename": FAKE, "dir": "/no/such/dir"}])
def test_what_cannot_be_started(launcher: Launcher, params: dict[str, Any]) -> None:
    with pytest.raises(CompositeException) as caught:
        launcher.launch(3, **params)
    assert [error.stage for error in caught.value] == ["start"] * 3
    assert "/no/such" in str(caught.value)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"dir": __file__}, "is not a directory"),
        ({"exename": "python3 -O"}, "exename=['python3', '-O'], or flags as exeflags="),
    ],
)
def test_errors_that_say_what_to_do(launcher: Launcher, params: dict[str, Any], text: str) -> None:
    with pytest.raises(CompositeException) as caught:
        launcher.launch(1, **params)
    assert text in str(caught.value)


@pytest.mark.parametrize("params", [{"env": 3}, {"exename": 3}, {"exeflags": 3}, {"exename": ""}, {"env": {"=": ""}}])
def test_wrong_parameters_start_nothing(launcher: Launcher, params: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        launcher.launch(1, **params)
    assert not launcher.launched


# ---- during their lives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exename", [None, FAKE], ids=["forked", "command"])
class TestLife:
    @pytest.fixture(autouse=True)
    def _importable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def test_interrupt(self, launcher: Launcher, exename: Any) -> None:
        (config,) = launcher.start(exename=exename)
        LocalManager().manage(2, config, "interrupt")
        assert config.process.wait(Deadline(10)) == ExitStatus(signal=signal.SIGINT)
        assert launcher.relay.drain(config.environ["output"], 10)  # type: ignore[index]
        assert "KeyboardInterrupt" in config.environ["output"].stderr_tail()  # type: ignore[index]
        LocalManager().manage(2, config, "interrupt")  # of a dead one: nothing

    def test_kill_asks_first(self, launcher: Launcher, exename: Any) -> None:
        code = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(5))"
        (config,) = launcher.start(exename=exename, env={"FAKE_WORKER": code})
        LocalManager().kill(2, config)
        assert config.process.poll() == ExitStatus(exitcode=5)
        LocalManager().kill(2, config)

    def test_kill_of_a_stuck_worker(self, launcher: Launcher, exename: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hybriddist.managers.local.TERM_EXIT_SECONDS", 0.1)
        code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        (config,) = launcher.start(exename=exename, env={"FAKE_WORKER": code})
        LocalManager().kill(2, config)
        assert config.process.poll() == ExitStatus(signal=signal.SIGKILL)

    def test_deregister_lets_go_and_removes_what_a_killed_worker_left(self, launcher: Launcher, exename: Any) -> None:
        (config,) = launcher.start(exename=exename, env={"FAKE_WORKER": "open(options.unix_path, 'w').close()"})
        path = Path((config.environ or {})["unix_path"])
        assert path.exists()
        config.process.kill()
        config.process.wait(Deadline(10))
        LocalManager().manage(2, config, "register")
        LocalManager().manage(2, config, "deregister")
        assert not path.exists()
        assert config.process.stdin is None
        LocalManager().manage(2, config, "finalize")


def test_driver_killed_leaves_no_worker(run_python: Callable[..., Any], tmp_path: Path) -> None:
    code = """
    import os, signal, sys
    from pathlib import Path
    from tests.managers.launcher import FAKE, Launcher
    launcher = Launcher(Path(sys.argv[1]))
    stuck = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    configs = launcher.start(3) + launcher.start(1, exename=FAKE) + launcher.launch(1, env={"FAKE_WORKER": stuck})
    for config in configs:
        print(config.ospid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = run_python(code, tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stderr
    ospids = list(map(int, result.stdout.split()))
    assert len(ospids) == 5
    assert poll_for(lambda: not any(map(still_runs, ospids)), timeout=5)
