"""The process a generated program runs in; started by `mona.evaluation.sandbox` by its path.

Standard library only, nothing of mona: the interpreter is an isolated one. Standard input
carries one JSON object (program, tests, token, limits ...); descriptor 1 is the way back to the
sandbox and out of the program's sight; the program's own output goes nowhere.

Two processes. The outer one leaves the machine behind, unless bubblewrap has done it: new user,
mount, process, IPC and network namespaces with a root of its own, in which there are the
interpreter's files, read-only, three devices and an empty folder in memory, and nothing else. The
inner one gives up what is left (capabilities, all system calls but those of `_ALLOWED`, resources)
and runs the program; when the outer one ends, the kernel ends whatever the program has started.
The outer one's exit status tells how: REFUSED, 128 + signal, or 0.
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
_MS_PRIVATE, _MS_BIND, _MS_REC, _MS_NOSUID, _MS_NODEV = 1 << 18, 1 << 12, 1 << 14, 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _RDONLY, _NOSUID, _DETACH = 442, 0x8000, 1, 2, 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CAPABILITY_VERSION_3 = 0x20080522
_NOBODY = 65534

# (linux/audit.h, asm/unistd.h): of each machine its audit number, clone, pivot_root, and the
# column of its numbers in _ALLOWED.
_MACHINES = {"x86_64": (0xC000003E, 56, 155, 1), "aarch64": (0xC00000B7, 220, 41, 2)}
# What an ordinary program does: files, memory, time, threads (clone is looked at by its flags),
# waiting, and pairs of sockets, which asyncio wants. Not there: processes and programs, other
# sockets, io_uring (which opens and sends without these calls), memory that no limit counts
# (memfd_create, shmget), namespaces and mounts, special files, tracing, keys, filters of its own.
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8
62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask
14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130
133, sigaltstack 131 132, ioctl 16 29, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
access 21 -, pipe 22 -, pipe2 293 59, select 23 -, pselect6 270 72, ppoll 271 73, sched_yield 24
124, sched_getaffinity 204 123, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, dup2 33
-, dup3 292 24, pause 34 -, nanosleep 35 101, clock_nanosleep 230 115, getitimer 36 102,
setitimer 38 103, alarm 37 -, getpid 39 172, getppid 110 173, gettid 186 178, getpgrp 111 -,
getpgid 121 155, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108
177, getgroups 115 158, getresuid 118 148, getresgid 120 150, fcntl 72 25, flock 73 32, fsync 74
82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, fallocate 285 47, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276, mkdir
83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36,
readlink 89 -, readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53, umask 95 166,
utimensat 280 88, faccessat 269 48, faccessat2 439 439, newfstatat 262 79, statx 332 291, statfs
137 43, fstatfs 138 44, openat 257 56, close_range 436 436, copy_file_range 326 285, sendfile 40
71, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, time 201 -, times 100 153,
getrlimit 97 163, prlimit64 302 261, getrusage 98 165, uname 63 160, sysinfo 99 179, arch_prctl
158 -, futex 202 98, set_robust_list 273 99, get_robust_list 274 100, set_tid_address 218 96,
rseq 334 293, membarrier 324 283, restart_syscall 219 128, getrandom 318 278, epoll_create 213
-, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290
19, socketpair 53 199, sendto 44 206, recvfrom 45 207, shutdown 48 210, kill 62 129, tkill 200
130, tgkill 234 131, wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94
"""
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Reads the request, isolates, runs, exits."""
    request = json.load(sys.stdin)
    try:
        if request["root"] is not None:
            _leave(request["root"], request["shown"], request["megabytes"])
        _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
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


_OWN_FOLDER = "/tmp/program"  # where a program starts


def _leave(root: str, shown: list[str], megabytes: int) -> None:
    """Enters namespaces of its own, with a root (mounted at the empty folder `root`) that has the
    files and folders `shown` under their own paths, and /tmp as the only place to write to; a
    folder that is shown may itself lie under /tmp."""
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
    _mount_memory(root, 1)
    inside = [path for path in shown if path.startswith("/tmp/")]
    for path in shown:
        if path not in inside:
            _show(path, root + path)
    os.mkdir(f"{root}/tmp")  # noqa: PTH102
    _only_read(root)
    _mount_memory(f"{root}/tmp", megabytes)
    for path in inside:
        _show(path, root + path)
        _only_read(root + path)
    os.mkdir(f"{root}{_OWN_FOLDER}")  # noqa: PTH102
    os.chdir(root)
    pivot_root = ctypes.c_long(_machine()[2])
    _checked(_libc.syscall(pivot_root, b".", b"."), "no root of its own (pivot_root)")
    _checked(_libc.umount2(b".", _DETACH), "umount the old root")
    os.chdir(_OWN_FOLDER)


def _only_read(folder: str) -> None:
    """Nothing of a folder, nor of what is mounted in it, can be written any more."""
    attributes = struct.pack("4Q", _RDONLY | _NOSUID, 0, 0, 0)
    _checked(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(-100),
            folder.encode(),
            ctypes.c_uint(_AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        ),
        "no read-only view of the file systems (mount_setattr)",
    )


def _mount_memory(folder: str, megabytes: int) -> None:
    size = f"size={megabytes}m".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _checked(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, size), "mount tmpfs")


def _show(path: str, at: str) -> None:
    """The file, folder or symbolic link `path` at `at`, a path that does not exist yet."""
    os.makedirs(os.path.dirname(at), exist_ok=True)  # noqa: PTH103, PTH120
    if os.path.islink(path):  # noqa: PTH114
        os.symlink(os.readlink(path), at)  # noqa: PTH115, PTH211
        return
    if os.path.isdir(path):  # noqa: PTH112
        os.mkdir(at)  # noqa: PTH102
    else:
        os.close(os.open(at, os.O_CREAT | os.O_WRONLY))
    bound = _libc.mount(path.encode(), at.encode(), None, _MS_BIND | _MS_REC, None)
    _checked(bound, f"bind {path}")


def _machine() -> tuple[int, int, int, int]:
    if platform.machine() not in _MACHINES:
        raise OSError(f"no system call filter for {platform.machine()}")
    return _MACHINES[platform.machine()]


def _give_up(request: dict[str, object]) -> None:
    """Limits, no capabilities, few system calls; output to nowhere."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    for name, value in request["limits"].items():  # type: ignore[attr-defined]
        resource.setrlimit(getattr(resource, name), (value, value))
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("6I", *[0] * 6)), "capset")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _allow_few_calls()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _allow_few_calls() -> None:
    architecture, clone, _, column = _machine()
    numbers = [entry.split()[column] for entry in _ALLOWED.split(",")]
    allowed = [int(number) for number in numbers if number != "-"]
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
    # Each leads to the last instruction; the three between are clone's.
    program += [
        (equal, len(allowed) - place + 3, 0, number) for place, number in enumerate(allowed)
    ]
    program += [
        (equal, 0, 2, clone),
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
