"""One program at a time in a folder: others wait or are told, and a killed one holds nothing up."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.discovery.folder_lock import alone_in

HOLD = """
import fcntl, os, sys, time
held = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_nobody_else_is_in_the_folder(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            with alone_in(tmp_path):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not list(tmp_path.iterdir())


def test_a_fault_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    with alone_in(tmp_path, wait=0):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the holder uses the locks of other systems")
def test_another_program_is_waited_for_and_a_killed_one_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BestiaryError, match="is being changed by another program: try again when it is done"),
            alone_in(tmp_path, wait=0.1),
        ):
            pass
        holder.kill()
    with alone_in(tmp_path, wait=5):
        pass
