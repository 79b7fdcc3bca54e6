"""A file system that passes a folder through and does harm when told to: `python fuse_server.py FOLDER MOUNT OPTIONS`.

It speaks the kernel's protocol (linux/fuse.h, version 7.31) on /dev/fuse itself, so no library is needed, only the
right to mount. OPTIONS are JSON: "locks": an errno's name for each flock, else the kernel locks by itself; "direct":
every read comes here, none is answered by the page cache; "whole_seconds": times have no fractions; "remembered": so
many seconds the kernel answers for names and attributes that it has seen, as on NFS, else none.

Each line on its standard input is a JSON list of rules, in place of those before. The answer, also a line, says how
often each of those before did harm. A rule: "call": a key of CALLS; "name": a pattern of paths below FOLDER; "after":
so many such calls (or written bytes, if "bytes") go well; "times": then so many do harm, all without it. The harm is
"errno": its name; "seconds": a wait; "apart": a rename that first removes what it is to replace, waits, and then
renames.
"""

import ctypes
import errno
import fnmatch
import json
import os
import resource
import stat
import struct
import sys
import threading
import time
from pathlib import Path

CALLS = {
    **{"lookup": 1, "getattr": 3, "setattr": 4, "readlink": 5, "symlink": 6, "mknod": 8, "mkdir": 9, "unlink": 10},
    **{"rmdir": 11, "rename": 12, "link": 13, "open": 14, "read": 15, "write": 16, "statfs": 17, "release": 18},
    **{"fsync": 20, "flush": 25, "init": 26, "opendir": 27, "readdir": 28, "releasedir": 29, "fsyncdir": 30},
    **{"setlk": 32, "setlkw": 33, "access": 34, "create": 35, "rename2": 45},
}
_NAMES = {code: name for name, code in CALLS.items()}
_FORGET, _INTERRUPT, _BATCH_FORGET = 2, 36, 42  # which want no answer
_FLOCK_LOCKS, _MAX_PAGES, _BIG_WRITES = 1 << 10, 1 << 22, 1 << 5  # of INIT
_DIRECT_IO = 1
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_NOW, _MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256  # of SETATTR
_MOST_WRITE = 1 << 20
_THREADS = 6
_WITH_HANDLE = ("read", "write", "release", "fsync", "flush", "readdir", "releasedir")


def _kind(entry):
    """Of a folder's entry, as a listing has it."""
    kinds = ((entry.is_symlink, stat.S_IFLNK), (lambda: entry.is_dir(follow_symlinks=False), stat.S_IFDIR))
    return next((mode for is_one, mode in kinds if is_one()), stat.S_IFREG) >> 12


class Faults:
    """The rules that hold now, and how often each matched."""

    def __init__(self):
        self._lock = threading.Lock()
        self._rules, self._seen, self._done = [], [], []

    def replace(self, rules):
        """Let these rules hold; returns how often each of those before did harm."""
        with self._lock:
            done, self._rules = self._done, rules
            self._seen, self._done = [0] * len(rules), [0] * len(rules)
        return done

    def find(self, call, path, size):
        """The rule for this call, or None."""
        call = "rename" if call == "rename2" else call
        with self._lock:
            for number, rule in enumerate(self._rules):
                if rule["call"] != call or not fnmatch.fnmatch(path, rule.get("name", "*")):
                    continue
                self._seen[number] += size if rule.get("bytes") else 1
                late = self._seen[number] > rule.get("after", 0)
                if late and self._done[number] < rule.get("times", sys.maxsize):
                    self._done[number] += 1
                    return rule
        return None


class PassThrough:
    """The folder's files by number; each number has a descriptor, by which names are found whatever is renamed."""

    def __init__(self, folder, options):
        self._folder, self._options = folder, options
        self.faults = Faults()
        self._lock = threading.Lock()
        root = os.open(folder, os.O_PATH)
        self._nodes, self._numbers, self._counts = {1: root}, {}, {}
        self._next = 2
        self._listed = {}

    def answer(self, code, node, body):
        """What the kernel is told, as bytes; raises OSError."""
        call = _NAMES.get(code)
        if call is None:
            raise OSError(errno.ENOSYS, "no such call here")
        size = struct.unpack_from("=Q8xI", body)[1] if call == "write" and len(body) > 20 else 1
        path = self._path_of(call, node, body)
        rule = self.faults.find(call, path, struct.unpack_from("=QQI", body)[2] if call == "write" else size)
        if rule is not None:
            time.sleep(rule.get("seconds", 0.0))
            if "errno" in rule:
                raise OSError(getattr(errno, rule["errno"]), "as told")
        if rule is not None and rule.get("apart"):
            return self._rename(node, body, code, rule["apart"])
        return getattr(self, f"_{call}")(node, body)

    def forget(self, node, count):
        """The kernel lets go of a number."""
        with self._lock:
            if node not in self._counts:
                return
            self._counts[node] -= count
            if self._counts[node] <= 0:
                del self._counts[node]
                descriptor = self._nodes.pop(node)
                about = os.fstat(descriptor)
                self._numbers.pop((about.st_dev, about.st_ino), None)
                os.close(descriptor)

    def _path_of(self, call, node, body):
        """The path below the folder that a call is about: of a rename, the new one."""
        heads = {"mkdir": 8, "mknod": 16, "create": 16, "rename": 8, "rename2": 16, "link": 8}
        inside = ("lookup", "unlink", "rmdir", "symlink", *heads)
        if call == "init":
            return ""
        path = Path(self._at(node)).readlink()
        if call in inside:
            names = body[heads.get(call, 0) :].split(b"\0")
            if call.startswith("rename"):
                path = Path(self._at(struct.unpack_from("=Q", body)[0])).readlink() / os.fsdecode(names[1])
            else:
                path /= os.fsdecode(names[0])
        return os.path.relpath(path, self._folder)

    def _at(self, node):
        return f"/proc/self/fd/{self._nodes[node]}"

    def _attributes(self, about):
        times = [about.st_atime_ns, about.st_mtime_ns, about.st_ctime_ns]
        fractions = [0 if self._options.get("whole_seconds") else each % 10**9 for each in times]
        seconds = [each // 10**9 for each in times]
        sides = about.st_nlink, about.st_uid, about.st_gid, about.st_rdev, 4096, 0
        return struct.pack(
            "=6Q10I", about.st_ino, about.st_size, about.st_blocks, *seconds, *fractions, about.st_mode, *sides
        )

    def _entry(self, parent, name):
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._nodes[parent])
        about = os.fstat(descriptor)
        with self._lock:
            key = about.st_dev, about.st_ino
            if key in self._numbers:
                os.close(descriptor)
            else:
                self._numbers[key], self._nodes[self._next] = self._next, descriptor
                self._next += 1
            node = self._numbers[key]
            self._counts[node] = self._counts.get(node, 0) + 1
        remembered = self._options.get("remembered", 0)
        return struct.pack("=4Q2I", node, 0, remembered, remembered, 0, 0) + self._attributes(about)

    def _init(self, _node, body):
        _major, _minor, ahead, offered = struct.unpack_from("=4I", body)
        wanted = _BIG_WRITES | _MAX_PAGES | (_FLOCK_LOCKS if self._options.get("locks") else 0)
        return struct.pack(
            "=4I2H2I2HI28x", 7, 31, ahead, offered & wanted, 16, 12, _MOST_WRITE, 1, _MOST_WRITE // 4096, 0, 0
        )

    def _lookup(self, node, body):
        return self._entry(node, body.split(b"\0")[0])

    def _getattr(self, node, _body):
        remembered = self._options.get("remembered", 0)
        return struct.pack("=Q2I", remembered, 0, 0) + self._attributes(os.fstat(self._nodes[node]))

    def _setattr(self, node, body):
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = struct.unpack(
            "=2I6Q8I", body
        )
        at = self._at(node)
        if valid & _MODE:
            Path(at).chmod(stat.S_IMODE(mode))
        if valid & (_UID | _GID):
            os.chown(at, uid if valid & _UID else -1, gid if valid & _GID else -1)
        if valid & _SIZE:
            os.truncate(at, size)
        if valid & (_ATIME | _MTIME):
            now, about = time.time_ns(), os.fstat(self._nodes[node])
            accessed = now if valid & _ATIME_NOW else atime * 10**9 + atime_ns
            changed = now if valid & _MTIME_NOW else mtime * 10**9 + mtime_ns
            before = about.st_atime_ns, about.st_mtime_ns
            os.utime(at, ns=(accessed if valid & _ATIME else before[0], changed if valid & _MTIME else before[1]))
        return self._getattr(node, b"")

    def _readlink(self, node, _body):
        return os.fsencode(os.readlink("", dir_fd=self._nodes[node]))

    def _symlink(self, node, body):
        name, target = body.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _mknod(self, node, body):
        mode, device, _umask = struct.unpack_from("=3I", body)
        name = body[16:].split(b"\0")[0]
        os.mknod(name, mode, device, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _mkdir(self, node, body):
        mode, name = struct.unpack_from("=I", body)[0], body[8:].split(b"\0")[0]
        os.mkdir(name, mode, dir_fd=self._nodes[node])
        return self._entry(node, name)

    def _unlink(self, node, body):
        os.unlink(body.split(b"\0")[0], dir_fd=self._nodes[node])
        return b""

    def _rmdir(self, node, body):
        os.rmdir(body.split(b"\0")[0], dir_fd=self._nodes[node])
        return b""

    def _rename(self, node, body, code=CALLS["rename"], apart=None):
        to, names = struct.unpack_from("=Q", body)[0], body[8 if code == CALLS["rename"] else 16 :].split(b"\0")
        if apart is not None and os.access(names[1], os.F_OK, dir_fd=self._nodes[to], follow_symlinks=False):
            os.unlink(names[1], dir_fd=self._nodes[to])
            time.sleep(apart)
        os.rename(names[0], names[1], src_dir_fd=self._nodes[node], dst_dir_fd=self._nodes[to])
        return b""

    def _rename2(self, node, body):
        if struct.unpack_from("=QI", body)[1]:
            raise OSError(errno.EINVAL, "no flags here")
        return self._rename(node, body, CALLS["rename2"])

    def _link(self, node, body):
        name = body[8:].split(b"\0")[0]
        os.link(self._at(struct.unpack_from("=Q", body)[0]), name, dst_dir_fd=self._nodes[node], follow_symlinks=True)
        return self._entry(node, name)

    def _opened(self, descriptor):
        return struct.pack("=Q2I", descriptor, _DIRECT_IO if self._options.get("direct") else 0, 0)

    def _open(self, node, body):
        flags = struct.unpack_from("=I", body)[0] & ~(os.O_NOFOLLOW | os.O_APPEND)  # the kernel knows where it ends
        return self._opened(os.open(self._at(node), flags | os.O_CLOEXEC))

    def _create(self, node, body):
        flags, mode = struct.unpack_from("=2I", body)
        name = body[16:].split(b"\0")[0]
        flags = flags & ~os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        opened = os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=self._nodes[node])
        return self._entry(node, name) + self._opened(opened)

    def _read(self, _node, body):
        handle, offset, size = struct.unpack_from("=QQI", body)
        return os.pread(handle, size, offset)

    def _write(self, _node, body):
        handle, offset, size = struct.unpack_from("=QQI", body)
        return struct.pack("=2I", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def _release(self, _node, body):
        os.close(struct.unpack_from("=Q", body)[0])
        return b""

    def _fsync(self, _node, body):
        os.fsync(struct.unpack_from("=Q", body)[0])
        return b""

    def _flush(self, _node, _body):
        return b""

    def _opendir(self, node, _body):
        handle = os.open(self._at(node), os.O_RDONLY | os.O_DIRECTORY)
        with os.scandir(handle) as found:
            self._listed[handle] = [(os.fsencode(each.name), each.inode(), _kind(each)) for each in found]
        return struct.pack("=Q2I", handle, 0, 0)

    def _readdir(self, _node, body):
        handle, offset, size = struct.unpack_from("=QQI", body)
        text = b""
        for number, (name, inode, kind) in enumerate(self._listed[handle][offset:], offset + 1):
            each = struct.pack("=2Q2I", inode, number, len(name), kind) + name
            each += bytes(-len(each) % 8)
            if len(text) + len(each) > size:
                break
            text += each
        return text

    def _releasedir(self, _node, body):
        handle = struct.unpack_from("=Q", body)[0]
        del self._listed[handle]
        os.close(handle)
        return b""

    def _fsyncdir(self, _node, body):
        return self._fsync(_node, body)

    def _setlk(self, _node, _body):
        raise OSError(getattr(errno, self._options["locks"]), "as told")

    _setlkw = _setlk

    def _access(self, _node, _body):
        raise OSError(errno.ENOSYS, "the kernel looks at modes itself")

    def _statfs(self, node, _body):
        found = os.statvfs(self._at(node))
        room = found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree
        return struct.pack("=5Q4I24x", *room, found.f_bsize, found.f_namemax, found.f_frsize, 0)


def serve(device, files):
    """Answer the kernel until the file system is unmounted."""
    while True:
        try:
            asked = os.read(device, _MOST_WRITE + 4096)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # a call that was interrupted meanwhile
                continue
            return  # unmounted
        _size, code, unique, node = struct.unpack_from("=IIQQ", asked)
        body = asked[40:]
        if code == _FORGET:
            files.forget(node, struct.unpack_from("=Q", body)[0])
        elif code == _BATCH_FORGET:
            for number in range(struct.unpack_from("=I", body)[0]):
                files.forget(*struct.unpack_from("=2Q", body, 8 + 16 * number))
        elif code != _INTERRUPT:
            _reply(device, files, code, unique, node, body)


def _reply(device, files, code, unique, node, body):
    try:
        data, failed = files.answer(code, node, body), 0
    except OSError as error:
        data, failed = b"", -(error.errno or errno.EIO)
    except KeyError:  # a number that the kernel let go of
        data, failed = b"", -errno.ESTALE
    try:
        os.write(device, struct.pack("=IiQ", 16 + len(data), failed, unique) + data)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # who asked has gone
            raise


def main(folder, mount, options):
    """Mount, say so, and serve until the standard input ends; where that is refused, say why."""
    folder = os.path.realpath(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
        how = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other,default_permissions"
    except OSError as error:
        print(f"/dev/fuse cannot be opened: {error.strerror}", flush=True)
        return
    if libc.mount(b"harm", os.fsencode(mount), b"fuse.harm", 0, how.encode()):
        print(f"/dev/fuse cannot be mounted: {os.strerror(ctypes.get_errno())}", flush=True)
        return
    os.umask(0)  # the kernel has applied the caller's
    files = PassThrough(folder, json.loads(options))
    for _ in range(_THREADS):
        threading.Thread(target=serve, args=(device, files), daemon=True).start()
    print("mounted", flush=True)
    for line in sys.stdin:
        print(json.dumps(files.faults.replace(json.loads(line))), flush=True)
    libc.umount2(os.fsencode(mount), 2)  # now for all who come, later for those who are in it


if __name__ == "__main__":
    main(*sys.argv[1:])
