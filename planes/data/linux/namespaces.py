"""Network namespaces by system call: make, name, enter, remove.

Called by the driver, the clean-up and the command line's host helpers. A namespace is built in full by a `prepare`
function *before* it gets its name under /run/netns, so that a named one is never half made. Everything here
switches the calling thread's namespace and switches it back: never await while inside.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DIRECTORY = "/run/netns"
_SELF = "/proc/thread-self/ns/net"

_CLONE_NEWNET = 0x4000_0000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x10_0000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]


def current() -> int:
    """An open file of the namespace that the calling thread is in. The caller closes it."""
    return os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)


def open_namespace(name: str) -> int:
    """An open file of a named namespace. The caller closes it."""
    return os.open(f"{DIRECTORY}/{name}", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(namespace: int | str) -> Iterator[None]:
    """Run the body of `with` in a namespace, given as an open file or a name."""
    back = current()
    try:
        target = open_namespace(namespace) if isinstance(namespace, str) else namespace
        try:
            _check(_libc.setns(target, _CLONE_NEWNET), "enter a network namespace")
        finally:
            if isinstance(namespace, str):
                os.close(target)
        try:
            yield
        finally:
            _check(_libc.setns(back, _CLONE_NEWNET), "return to the former network namespace")
    finally:
        os.close(back)


def create(name: str, prepare: Callable[[], None] = lambda: None) -> None:
    """Make a namespace, run `prepare` inside it, then name it. If anything fails nothing is left."""
    _make_directory()
    path = f"{DIRECTORY}/{name}"
    back = current()
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "create a network namespace")
        try:
            prepare()
            _name_current(path)
        finally:
            _check(_libc.setns(back, _CLONE_NEWNET), "return to the former network namespace")
    finally:
        os.close(back)


def give_name(name: str, namespace: int) -> None:
    """Give an open namespace a name that nobody has."""
    path = f"{DIRECTORY}/{name}"
    with entered(namespace):
        _name_current(path)


def exists(name: str) -> bool:
    """Whether anything has this name."""
    return os.path.lexists(f"{DIRECTORY}/{name}")


def delete(name: str) -> None:
    """Take a namespace's name away; the kernel frees it when nobody uses it any more. No such name: nothing to do."""
    path = f"{DIRECTORY}/{name}"
    if _libc.umount2(path.encode(), _MNT_DETACH) and ctypes.get_errno() not in (errno.ENOENT, errno.EINVAL):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot remove the namespace {name}: {os.strerror(code)}")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def names(prefix: str = "") -> list[str]:
    """All named namespaces whose name begins with `prefix`, sorted."""
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(prefix))
    except FileNotFoundError:
        return []


def is_whole(name: str) -> bool:
    """Whether the name leads to a namespace: who died between making or unmounting it left an empty file."""
    return os.stat(f"{DIRECTORY}/{name}").st_dev != os.stat(DIRECTORY).st_dev


def sysctl(key: str, value: int) -> None:
    """Set `net.<key>` (with slashes) in the namespace of the calling thread."""
    with open(f"/proc/sys/net/{key}", "w") as file:
        file.write(str(value))


def read_sysctl(key: str) -> int | None:
    """`net.<key>`, None where the kernel has none in this namespace."""
    try:
        with open(f"/proc/sys/net/{key}") as file:
            return int(file.read())
    except FileNotFoundError:
        return None


def _name_current(path: str) -> None:
    """Name the namespace that the calling thread is in."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        _check(_libc.mount(_SELF.encode(), path.encode(), b"none", _MS_BIND, None), f"name the namespace as {path}")
    except OSError:
        os.unlink(path)
        raise


def _make_directory() -> None:
    """/run/netns as iproute2 makes it: a shared mount, so that names appear in every mount namespace."""
    os.makedirs(DIRECTORY, 0o755, exist_ok=True)
    where = DIRECTORY.encode()
    if _libc.mount(b"", where, b"none", _MS_SHARED | _MS_REC, None):
        _check(_libc.mount(where, where, b"none", _MS_BIND | _MS_REC, None), f"mount {DIRECTORY}")
        _check(_libc.mount(b"", where, b"none", _MS_SHARED | _MS_REC, None), f"share {DIRECTORY}")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")
