"""The process a generated program runs in; started by `mona.evaluation.sandbox` by its path.

Standard library only, nothing of mona: the interpreter is an isolated one. Standard input
carries one JSON object (program, tests, token, limits); descriptor 1 is the way back to the
sandbox and out of the program's sight; the program's own output goes nowhere.

Two processes. The outer one leaves the machine behind: new user, mount, process, IPC and
network namespaces, in which every file system is read-only but an empty one in memory. The
inner one, the first of its process namespace, gives up what is left (capabilities, new
processes, sockets, resources) and runs the program; when it ends, the kernel ends whatever it
has started. The outer one's exit status tells how: REFUSED, 128 + signal, or 0.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import types

REFUSED = 3

_UNSHARE = 0x10000000 | 0x00020000 | 0x20000000 | 0x08000000 | 0x40000000  # user mnt pid ipc net
_MS_PRIVATE, _MS_REC, _MS_NOSUID, _MS_NODEV = 1 << 18, 1 << 14, 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _RDONLY = 442, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CAPABILITY_VERSION_3 = 0x20080522
_NOBODY = 65534

# Of each machine: its audit number and the system calls that make a process or a socket.
# (linux/audit.h, asm/unistd.h)
_MACHINES = {
    "x86_64": (0xC000003E, {"fork": 57, "vfork": 58, "socket": 41}, 56),
    "aarch64": (0xC00000B7, {"socket": 198}, 220),
}
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Reads the request, isolates, runs, exits."""
    request = json.load(sys.stdin)
    try:
        _leave(request["folder"], request["megabytes"])
        child = os.fork()
    except OSError as error:
        os.write(1, str(error).encode())
        os._exit(REFUSED)
    if child == 0:
        report = os.dup(1)
        try:
            _give_up(request)
        except OSError as error:
            # Descriptor 1 is still ours: nothing of the program has run.
            os.write(1, str(error).encode())
            os._exit(REFUSED)
        _run(request, report)
        os._exit(0)
    os.close(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        os._exit(128 + os.WTERMSIG(status))
    os._exit(0)


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _leave(folder: str, megabytes: int) -> None:
    """Enters namespaces of its own, with `folder` as the only place to write to."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    user, group = os.getuid(), os.getgid()
    _checked(_libc.unshare(_UNSHARE), "no namespaces (unshare)")
    # Not the process's own user, so that no capability comes back with an exec.
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(content)
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    attributes = struct.pack("4Q", _RDONLY, 0, 0, 0)
    _checked(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(-100),
            b"/",
            ctypes.c_uint(_AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        ),
        "no read-only view of the file systems (mount_setattr)",
    )
    size = f"size={megabytes}m".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _checked(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, size), "mount tmpfs")
    os.chdir(folder)


def _give_up(request: dict[str, object]) -> None:
    """Limits, no capabilities, no new processes, no sockets; output to nowhere."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    for name, value in request["limits"].items():  # type: ignore[attr-defined]
        resource.setrlimit(getattr(resource, name), (value, value))
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("6I", *[0] * 6)), "capset")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _forbid_processes_and_sockets()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _forbid_processes_and_sockets() -> None:
    if platform.machine() not in _MACHINES:
        raise OSError(f"no system call filter for {platform.machine()}")
    architecture, forbidden, clone = _MACHINES[platform.machine()]
    load, equal, above, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, _KILL),
        (load, 0, 0, 0),
        (above, 0, 1, 0x40000000),  # another ABI's numbers
        (give, 0, 0, _KILL),
        (equal, 0, 1, _CLONE3),  # its flags are behind a pointer; libc falls back to clone
        (give, 0, 0, _ENOSYS),
    ]
    for number in forbidden.values():
        program += [(equal, 0, 1, number), (give, 0, 0, _EPERM)]
    program += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),
        (bits, 1, 0, _CLONE_THREAD),
        (give, 0, 0, _EPERM),
        (give, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HP", len(program), ctypes.addressof(buffer))
    _checked(_libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "no system call filter (seccomp)")


def _run(request: dict[str, str], report: int) -> None:
    """The program, then its tests; the token goes back only past the last of them."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        for part in ("program", "tests"):
            exec(compile(request[part], part, "exec"), module.__dict__)
        answer = request["token"]
    except SystemExit as error:
        answer = f"SystemExit: {error.code}"
    except BaseException as error:
        # An exception of the program's own making may not even be printable.
        answer = type(error).__name__
        with contextlib.suppress(BaseException):
            answer = f"{answer}: {error}".partition("\n")[0][:300]
    os.write(report, answer.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
