"""Importing the package looks at its own files, and does nothing else."""

from tests.processes import run

WATCH = """
import sys
seen = []

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
                         "urllib.", "http.", "ftplib.", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
                         "os.symlink", "os.truncate", "os.chmod", "os.chown", "shutil.", "tempfile.")):
        seen.append((event, str(arguments)[:200]))
    if event == "open" and len(arguments) > 2:
        path, mode, flags = arguments
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if writes or (isinstance(flags, int) and flags & 0b11):
            seen.append((event, str(arguments)[:200]))

"""


def seen(before, planted):
    """Return what a process does that imports ``before``, and is watched while it runs ``planted``."""
    code = f"{before}\n{WATCH}\nsys.addaudithook(watch)\n{planted}\nfor item in seen: print(item)"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_opens_no_socket_starts_no_process_and_writes_no_file():
    everything = "import advcontrast, advcontrast.engine, advcontrast.models, advcontrast.evaluation, advcontrast.data"
    assert seen("import torch, torch.utils.data, torch.distributed", everything) == []


def test_planted_events_are_seen(tmp_path):
    planted = f"""
import os, socket, subprocess
socket.socket().close()
open({str(tmp_path / "file")!r}, "w").close()
os.close(os.open({str(tmp_path / "other")!r}, os.O_CREAT | os.O_RDWR))
os.mkdir({str(tmp_path / "folder")!r})
subprocess.run(["true"])
"""
    events = " ".join(seen("", planted))
    for event in ("socket.__new__", "'open'", "other", "os.mkdir", "subprocess.Popen"):
        assert event in events
