#!/usr/bin/python3
"""A tree with every kind of entry, and what differs between two trees.

zoo.py make DIR [names|twins|plain...]   zoo.py many DIR COUNT   zoo.py compare A B
"""
import os, socket, stat, subprocess, sys, hashlib, struct

def put(path, data=b"", mode=0o644, owner=None, mtime=None):
    with open(path, "wb") as f:
        f.write(data)
    if owner: os.chown(path, *owner)
    os.chmod(path, mode)
    if mtime is not None: os.utime(path, ns=(mtime, mtime))

def tolerant(what, *args, **kw):
    try: what(*args, **kw)
    except OSError as e: print("zoo: not made:", what.__name__, args[:2], e)

LITE = bool(os.environ.get("ZOO_LITE"))  # without the large files, for slow mounts

def make(root):
    os.makedirs(root, exist_ok=True); os.chdir(root); s = 10**9
    os.mkdir("sizes")
    for n, size in (("0", 0), ("1", 1), ("4k", 4096), ("1m", 1 << 20), ("40m", (1 if LITE else 40) << 20)):
        put("sizes/" + n, os.urandom(size), mtime=1600000000 * s + 123456789)
    with open("sizes/sparse", "wb") as f:
        f.truncate(64 << 20)
        for at in (4 << 20, 33 << 20): f.seek(at); f.write(os.urandom(8192))
    with open("sizes/tail-hole", "wb") as f: f.write(b"x" * 4096); f.truncate(9 << 20)
    os.mkdir("times")
    for n, t in (("ns", 1600000000 * s + 123456789), ("odd-second", 1600000001 * s), ("1969", -1 * s + 1),
            ("1902", -2140000000 * s), ("1979", 315000000 * s), ("2039", (2**31 + 10**7) * s + 5),
            ("2108", 4370000000 * s), ("2440", 14831769600 * s), ("epoch", 0)):
        put("times/" + n, n.encode(), mtime=t)
    os.mkdir("times/directory-1969"); os.utime("times/directory-1969", ns=(0, -5 * s))
    os.mkdir("modes")
    for m in (0o777, 0, 0o400, 0o4755, 0o2755, 0o1644, 0o7777):
        put("modes/f%05o" % m, b"m", m)
        put("modes/owned%05o" % m, b"m", m, (1000, 1001))
        os.mkdir("modes/d%05o" % m); put("modes/d%05o/in" % m, b"in")
    for m in (0o777, 0, 0o400, 0o4755, 0o2755, 0o1644, 0o7777): os.chmod("modes/d%05o" % m, m)
    os.mkdir("modes/readonly"); put("modes/readonly/in", b"in"); os.mkdir("modes/readonly/sub"); os.chmod("modes/readonly", 0o555)
    os.mkdir("owners")
    for o in ((1000, 1000), (65534, 65534), (12345, 54321), (0, 1000), (1000, 0)):
        put("owners/%d-%d" % o, b"o", 0o640, o)
        os.mkdir("owners/d%d-%d" % o); os.chown("owners/d%d-%d" % o, *o)
    os.symlink("x", "owners/link"); os.chown("owners/link", 1000, 1000, follow_symlinks=False)
    os.mkdir("links"); os.symlink("../sizes/1", "links/relative"); os.symlink("/etc/passwd", "links/absolute")
    os.symlink("nowhere", "links/dangling"); os.symlink("t" * 1000, "links/long"); os.symlink(".", "links/self")
    os.utime("links/dangling", ns=(0, 1500000000 * s + 7), follow_symlinks=False)
    os.mkdir("hard"); put("hard/one", b"same"); os.link("hard/one", "hard/two"); os.mkdir("hard/deep"); os.link("hard/one", "hard/deep/three")
    os.symlink("q", "hard/l1"); tolerant(os.link, "hard/l1", "hard/l2", follow_symlinks=False)
    put("hard/big1", os.urandom((1 if LITE else 34) << 20)); os.link("hard/big1", "hard/big2")
    os.mkdir("special"); os.mkfifo("special/fifo", 0o622)
    sock = socket.socket(socket.AF_UNIX); sock.bind("special/socket"); sock.close()
    tolerant(os.mknod, "special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    tolerant(os.mknod, "special/block", stat.S_IFBLK | 0o640, os.makedev(7, 300))
    os.mkdir("xattr"); os.mkdir("xattr/directory")
    for p in ("xattr/file", "xattr/directory"):
        if not os.path.exists(p): put(p, b"x")
        tolerant(os.setxattr, p, "user.word", b"value\0binary"); tolerant(os.setxattr, p, "trusted.t", b"t")
    put("xattr/big", b"x"); tolerant(os.setxattr, "xattr/big", "user.big", b"v" * 3000)
    put("xattr/capability", b"x", 0o755); tolerant(os.setxattr, "xattr/capability", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    put("xattr/label", b"x"); tolerant(os.setxattr, "xattr/label", "security.selinux", b"system_u:object_r:etc_t:s0\0")
    os.mkdir("acl"); put("acl/file", b"x", 0o640); os.mkdir("acl/directory"); os.mkdir("acl/default")
    for args in (["-m", "u:1000:rwx,g:1001:r", "acl/file"], ["-m", "u:1000:rx", "acl/directory"], ["-d", "-m", "u:1000:rwx,g::-", "acl/default"]):
        subprocess.run(["setfacl"] + args)
    put("acl/default/inherits", b"x"); put("acl/default/not", b"x"); subprocess.run(["setfacl", "-b", "acl/default/not"]); os.mkdir("acl/default/sub")
    os.makedirs("deep/" + "/".join("level%d" % i for i in range(30))); put("deep/" + "/".join("level%d" % i for i in range(30)) + "/leaf", b"leaf")
    os.mkdir("many")
    for i in range(20 if LITE else 200): put("many/f%03d" % i, b"%d\n" % i * 20)
    os.mkdir("empty")
    names()
    twins()
    for d, _, _ in os.walk(".", topdown=False):
        if d not in ("./times/directory-1969",): os.utime(d, ns=(0, 1400000000 * s + 11))

def names():
    os.mkdir("names")
    for n in (b"new\nline", b"inv\xff\xfe", b"co:lon", b"trail.", b"trail2 ", b"CON", b"aux.txt", b"n" * 255, b'quo"te', b"back\\slash", b"star*", b"que?",
              b"less<", b"pipe|", b" lead", b"tab\t", b"ctl\x01", "ü-nfc".encode(), "emoji-\U0001f600".encode(), b"-dash", b"...", "\u00fc".encode() * 127):
        put(b"names/" + n, b"N" + n)
    os.mkdir(b"names/dir?"); put(b"names/dir?/in", b"in"); os.mkdir(b"names/dir."); put(b"names/dir./in", b"in")
def twins():
    os.mkdir("twins")
    for n in ("A", "a"): put("twins/" + n, b"content of " + n.encode())
    put("twins/same", b"1", mtime=10**18); put("twins/SAME", b"2", mtime=10**18)
    put("twins/BIG", b"content of BIG, longer"); put("twins/big", b"content of big")
    for n in ("D", "d"):
        os.mkdir("twins/" + n); put("twins/%s/in-%s" % (n, n), b"x"); put("twins/%s/both" % n, b"in " + n.encode())
    put("twins/\u00fc", b"nfc"); put("twins/u\u0308", b"nfd")

def many(root, count):
    os.makedirs(root)
    for i in range(count):
        fd = os.open("%s/file-%05d" % (root, i), os.O_WRONLY | os.O_CREAT, 0o644); os.write(fd, b"%d\n" % i * 50); os.close(fd)

def look(root):
    found, inodes = {}, {}
    root = os.fsencode(root)
    def one(path, rel):
        e = {}
        try: st = os.lstat(path)
        except OSError as x: found[rel] = {"stat": str(x)}; return
        e["type"] = stat.S_IFMT(st.st_mode)
        if not stat.S_ISLNK(st.st_mode): e["mode"] = "%05o" % stat.S_IMODE(st.st_mode)
        e["owner"] = "%d:%d" % (st.st_uid, st.st_gid)
        e["mtime"] = st.st_mtime_ns
        if stat.S_ISREG(st.st_mode):
            e["size"] = st.st_size
            try: e["data"] = hashlib.md5(open(path, "rb").read()).hexdigest()[:8]
            except OSError as x: e["data"] = str(x)
            e["blocks"] = st.st_blocks * 512
        if stat.S_ISLNK(st.st_mode): e["target"] = os.readlink(path)
        if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode): e["rdev"] = st.st_rdev
        try:
            for n in os.listxattr(path, follow_symlinks=False):
                if n.startswith("system.") and "posix_acl" not in n: continue
                try: e["acl" if "posix_acl" in n else n] = os.getxattr(path, n, follow_symlinks=False)
                except OSError as x: e[n] = str(x)
        except OSError: pass
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1: inodes.setdefault((st.st_dev, st.st_ino), []).append(rel)
        found[rel] = e
        if stat.S_ISDIR(st.st_mode):
            try: inside = sorted(os.listdir(path))
            except OSError as x: e["list"] = str(x); inside = []
            for n in inside: one(path + b"/" + n, rel + b"/" + n if rel else n)
    one(root, b"")
    for group in inodes.values():
        for rel in group: found[rel]["links"] = tuple(sorted(group))
    return found

def compare(a, b):
    a, b = look(a), look(b); diff = {}
    for rel in a:
        if rel not in b: diff.setdefault("missing", []).append(rel); continue
        x, y = a[rel], b[rel]
        for k in sorted(set(x) | set(y)):
            if k == "blocks":
                if x.get("size", 0) > x[k] + 65536 and y.get(k, 0) > x[k] * 1.5 + 262144: diff.setdefault("holes", []).append((rel, x[k], y.get(k)))
            elif x.get(k) != y.get(k): diff.setdefault(k, []).append((rel, x.get(k), y.get(k)))
    for rel in b:
        if rel not in a: diff.setdefault("extra", []).append(rel)
    most = int(os.environ.get("MOST", "4"))
    for k in sorted(diff):
        text = "; ".join(repr(v)[1:] if isinstance(v, bytes) else "%r %s->%s" % (v[0], str(v[1])[:60], str(v[2])[:60]) for v in diff[k][:most if k not in ("missing", "extra") else most * 3])
        print("    %s %d: %s" % (k, len(diff[k]), text[:900]))
    if not diff: print("    same (%d entries)" % len(a))

if sys.argv[1] == "make": make(sys.argv[2])
elif sys.argv[1] == "many": many(sys.argv[2], int(sys.argv[3]))
elif sys.argv[1] == "compare": compare(sys.argv[2], sys.argv[3])
