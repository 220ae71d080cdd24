"""A process that imports the project's libraries, then forks once per command of ``tests.helpers.preloaded``.

It computes nothing before a fork, since pools of threads do not survive one.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import fcntl
import gc
import importlib
import io
import logging
import os
import pickle
import runpy
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from megatron_ssd.process import die_with_parent
from megatron_ssd.runtime.versions import quiet_megatron
from tests.helpers.paths import ROOT
from tests.helpers.preloaded import FREE_NUMBERS, MAX_BYTES, Command, connection, program_of, starts_alike, use_forks

_MODULES = (
    "torch.distributed.run", "torch.utils.tensorboard", "transformers.models.auto.modeling_auto",
    "megatron_ssd.training.train", "megatron_ssd.export.stage", "megatron_ssd.export.reference",
    "megatron_ssd.generation.stage", "megatron_ssd.evaluation.checkpoints", "megatron_ssd.report.stage",
    "megatron_ssd.cli.pipeline",
)  # fmt: skip
_OPTIONAL = (
    "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.qwen3",
    "vllm.entrypoints.openai.api_server", "altair",
)  # fmt: skip
_MAX_DESCRIPTORS = 64
_execve = os.execve
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # a zygote ends with its parent, not before


def main(descriptor: int) -> NoReturn:
    """Import everything, then serve the process at the other end of a connection."""
    sys.path[:] = [entry for entry in sys.path if entry not in {str(ROOT), *_import_path(os.environ)}]
    gc.disable()  # what is imported stays
    quiet_megatron()
    for name in _MODULES:
        importlib.import_module(name)
    for name in _OPTIONAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection would copy every page
    gc.enable()
    _serve(socket.socket(fileno=descriptor))


def _serve(commands: socket.socket) -> NoReturn:
    """Fork once per command, until the process at the other end ends or closes the connection."""
    die_with_parent()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(commands, MAX_BYTES, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:  # it ends at once, so that its child becomes one of the process that asked
            middle = os.getpid()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.close(writer)
                commands.close()
                while os.getppid() == middle:
                    time.sleep(0.001)
                _become(pickle.loads(message), descriptors)
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.waitpid(middle, 0)
        commands.send(os.read(reader, MAX_BYTES))
        for descriptor in (reader, writer, *descriptors):
            os.close(descriptor)


def _become(command: Command, descriptors: list[int]) -> NoReturn:
    """Be the process of ``command`` until it ends."""
    if os.getppid() != command.parent:  # it has ended
        os._exit(1)
    if command.new_session:
        os.setsid()
    elif command.process_group >= 0:
        os.setpgid(0, command.process_group)
    if command.dies_with_parent:
        die_with_parent()
    ours, theirs = connection()
    if os.fork() == 0:
        for descriptor in descriptors:
            os.close(descriptor)
        ours.close()
        _serve(theirs)
    theirs.close()
    use_forks(ours)
    _handle_signals(ignored=command.ignored_signals)
    os.execve = _replace  # type: ignore[assignment]
    _install(descriptors, command.descriptors, buffered=not command.unbuffered)
    os.chdir(command.folder)
    _set_environment(command.environment)
    _run(command.words)


def _handle_signals(ignored: Sequence[int]) -> None:
    """Handle the signals as an interpreter does when it starts."""
    for number in _IGNORED:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else handler)


def _replace(path: str, words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """As ``os.execve``, for a program of this interpreter without importing everything again."""
    program = program_of(words)
    if not program or not starts_alike(environment):
        _execve(path, words, environment)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.root.handlers.clear()
    if not os.environ.get("PYTHONSAFEPATH"):
        del sys.path[0]  # what _search_first has inserted
    _handle_signals(ignored=[number for number in _IGNORED if signal.getsignal(number) == signal.SIG_IGN])
    _set_environment(environment)
    _run(program)


def _install(descriptors: list[int], numbers: list[int], *, buffered: bool) -> None:
    """Give the descriptors these numbers, of which the first three are the standard streams."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FREE_NUMBERS) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # a stream knows whether its file can seek
        old = getattr(sys, name)
        new = io.TextIOWrapper(
            open(number, "wb" if number else "rb", buffering=-1 if buffered or number == 0 else 0, closefd=False),  # noqa: SIM115
            encoding=old.encoding, errors=old.errors, write_through=not buffered,
            line_buffering=buffered and (name == "stderr" or os.isatty(number)),
        )  # fmt: skip
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _set_environment(environment: Mapping[str, str]) -> None:
    threads = environment.get("OMP_NUM_THREADS")
    if threads is not None:
        torch.set_num_threads(int(threads))  # the library has read the variable already
    old = _import_path(os.environ)
    sys.path[:] = [*_import_path(environment), *(entry for entry in sys.path if entry not in old)]
    os.environ.clear()
    os.environ.update(environment)


def _import_path(environment: Mapping[str, str]) -> list[str]:
    return [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _run(words: list[str]) -> NoReturn:
    """Run ``SCRIPT``, ``-m MODULE`` or ``-c TEXT`` with arguments as the interpreter does, and end."""
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            _search_first(str(Path.cwd()))
            sys.modules.pop(words[1], None)
            runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            _search_first("")
            exec(words[1], main.__dict__)
        else:
            sys.argv = words
            _search_first(str(Path(words[0]).resolve().parent))
            main.__file__ = words[0]
            exec(compile(Path(words[0]).read_bytes(), words[0], "exec"), main.__dict__)
    except SystemExit as end:
        _end(end.code)
    except KeyboardInterrupt as error:
        sys.excepthook(KeyboardInterrupt, error, error.__traceback__)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        _end(1)
    _end(0)


def _search_first(folder: str) -> None:
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, folder)


def _end(code: object) -> NoReturn:
    """``sys.exit(code)`` without the second that it takes to free all modules."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    # The imported module, since ``__main__`` becomes the script that runs.
    importlib.import_module("tests.helpers.zygote").main(int(sys.argv[1]))
