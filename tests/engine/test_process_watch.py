"""Jobs one of whose processes is stopped."""

import os
import signal

import pytest
from detectron2.utils import comm
from processes import run_in_two_processes
from torch.multiprocessing import ProcessExitedException

from d2_contrast.engine.process_watch import ProcessWatch


def talk(rank: int, stopped: int, folder) -> None:
    """Talk to the other process for ever; the one of rank ``stopped`` stops."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of who has started this
    with ProcessWatch("127.0.0.1", timeout=4.0):
        for count in range(10**6):
            if rank == stopped and count == 5:
                os.kill(os.getpid(), signal.SIGSTOP)
            try:
                comm.all_gather(count)
            except RuntimeError as error:
                (folder / str(rank)).write_text(f"{count} {error}")
                os._exit(3)


@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_is_stopped_is_named_and_the_other_ends(tmp_path, stopped, capfd):
    with pytest.raises(ProcessExitedException) as ended:
        run_in_two_processes(talk, tmp_path, stopped, tmp_path)
    said = capfd.readouterr().err
    assert f"Process {stopped} of 2 (number " in said and "has not answered for 3 s (PROCESS_GROUP_TIMEOUT)" in said
    assert said.count("has not answered") >= 1
    # It is killed; the other finds out at once and can still save.
    assert ended.value.exit_code in (-signal.SIGKILL, 3)
    assert (tmp_path / str(1 - stopped)).read_text().startswith("5 ")
