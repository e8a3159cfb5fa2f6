"""Jobs one of whose processes is stopped, or hangs."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from detectron2.utils import comm
from processes import run_in_two_processes
from torch.multiprocessing import ProcessExitedException

from d2_contrast.arrivals import arrive
from d2_contrast.engine.process_watch import ProcessWatch
from d2_contrast.errors import EXIT_CODE


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    """Live on and wait for ever."""
    threading.Event().wait()


def talk(rank: int, bad: int, what, folder) -> None:
    """Talk to the other process; the one of rank ``bad`` does something else in the end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of who has started this
    with ProcessWatch("127.0.0.1", timeout=4.0):
        for count in range(10**6):
            if rank == bad and count == 2:
                time.sleep(2)  # which is not too long
            if rank == bad and count == 5:
                what()
            try:
                arrive()
                comm.all_gather(count)
            except RuntimeError as error:
                (folder / str(rank)).write_text(f"{count} {error}")
                os._exit(3)


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_is_stopped_is_named_and_the_other_ends(tmp_path, stopped, capfd):
    with pytest.raises(ProcessExitedException) as ended:
        run_in_two_processes(talk, tmp_path, stopped, stop, tmp_path)
    said = capfd.readouterr().err
    assert f"Process {stopped} of 2 (number " in said and "has not answered for 3 s (PROCESS_GROUP_TIMEOUT)" in said
    assert said.count("has not answered") >= 1
    # It is killed; the other finds out at once and can still save.
    assert ended.value.exit_code in (-signal.SIGKILL, 3)
    assert (tmp_path / str(1 - stopped)).read_text().startswith("5 ")


@pytest.mark.parametrize("hanging", [0, 1])
def test_one_that_lives_but_hangs_is_named_with_its_place_and_the_other_ends(tmp_path, hanging, capfd):
    with pytest.raises(ProcessExitedException) as ended:
        run_in_two_processes(talk, tmp_path, hanging, hang, tmp_path)
    said = capfd.readouterr().err
    named = re.findall(r"Process (\d) of 2 \(number \d+ on \S+\) hangs at (\S+):\d+ \((.+)\): the others have", said)
    assert named == [(str(hanging), Path(threading.__file__).name, "waiter.acquire()")]
    assert "waited for it for 3 s (PROCESS_GROUP_TIMEOUT): the job ends" in said
    assert ended.value.exit_code in (EXIT_CODE, 3)
    assert (tmp_path / str(1 - hanging)).read_text().startswith("5 ")
