"""Scripts in processes that start warm: forked from one that has imported PyTorch, which saves seconds a process."""

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Children of the process that has imported all this; where processes cannot be forked, each child imports it again.
WARM = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
WARM.set_forkserver_preload(
    [
        *("torch", "torch._dynamo", "torch.distributed.run", "torchvision", "numpy", "PIL.Image", "safetensors.torch"),
        *("matplotlib.figure", "tqdm", "pytest", "advcontrast.evaluation"),
    ]
)
OUTPUTS = ("stdout", "stderr")


class Popen:
    """``python words`` in a warm process, with the part of the interface of ``subprocess.Popen`` that tests use."""

    def __init__(self, *words, env=None, cwd=None, start_new_session=False, context=WARM):
        self.args = [str(word) for word in words]
        self.returncode = None
        self._folder = Path(tempfile.mkdtemp()) if context is WARM else None
        arguments = (self.args, dict(os.environ if env is None else env), cwd, start_new_session, self._folder)
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """Return the exit status, or None while the process runs."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        """Return the exit status once the process has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        if self._folder is not None and self._folder.exists():
            self._outputs = tuple((self._folder / name).read_text() for name in OUTPUTS)
            shutil.rmtree(self._folder)
        return self.returncode

    def errors(self):
        """Return the text of standard error so far."""
        path = self._folder / "stderr"
        return path.read_text() if path.exists() else ""

    def communicate(self, timeout=None):
        """Return the text of standard output and of standard error once the process has ended."""
        self.wait(timeout)
        return self._outputs

    def send_signal(self, number):
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End the process at once."""
        self._process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()


def run(*words, env=None, cwd=None, timeout=300):
    """Run ``python words`` to its end, like ``subprocess.run(..., capture_output=True, text=True)``."""
    process = Popen(*words, env=env, cwd=cwd)
    try:
        output, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _run(words, env, cwd, start_new_session, folder):
    """Do in this process what ``python words`` would do."""
    if start_new_session:
        os.setsid()
    if folder is not None:
        for descriptor, name in enumerate(OUTPUTS, 1):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or ".")
    multiprocessing.set_start_method(None, force=True)  # a script may choose its own
    context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: context("fork" if method == "spawn" else method)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    option, sys.argv = words[0], words
    if option == "-c":  # short code, often about what the package imports
        for name in [name for name in sys.modules if name.split(".")[0] == "advcontrast"]:
            del sys.modules[name]
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        if words[1] == "torch.distributed.run":
            _fork_ranks()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(option).parent))
        runpy.run_path(option, run_name="__main__")


def _fork_ranks():
    """Let torchrun fork the processes that it starts."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def start(args, env, start_new_session, **_):
        words = [word for word in args[1:] if word != "-u"]
        return Popen(*words, env=env, start_new_session=start_new_session, context=multiprocessing.get_context("fork"))

    subprocess_handler.Popen = start
