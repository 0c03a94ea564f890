# vfat, exFAT, NTFS: what cannot be kept, grain of times, names, twins.
local_zoo
mkdir -p /mnt/d
plain() { # a tree that these file systems can hold but for owners and so on
    [ -e /mnt/src/plain ] && return; mkdir /mnt/src/plain
    for p in sizes many times empty deep; do cp -a /mnt/src/zoo/$p /mnt/src/plain/; done
    mkdir /mnt/src/young; cp -a /mnt/src/plain/. /mnt/src/young/; rm -rf /mnt/src/young/times/*
    touch -d '2001-01-01 00:00:01.987654321' /mnt/src/young/times/odd; touch -d '2024-07-01 12:00:02.005' /mnt/src/young/times/even
}
plain
one() { # one LABEL OPTIONS TYPE
    mount -t $3 -o "$2" /dev/vdd /mnt/d || { echo "  cannot mount $3 $2"; return; }
    grep ' /mnt/d ' /proc/mounts
    echo "-- $1: plain tree, times from 1980 on"; TOOLS="thread process" cycle "$1 young" /mnt/src/young /mnt/d
    rm -rf /mnt/d/c
    umount /mnt/d; mount -t $3 -o "$2" /dev/vdd /mnt/d
    echo "-- $1: second run after a new mount"
    run "$1 thread" pcopy /mnt/src/young /mnt/d/c; umount /mnt/d; mount -t $3 -o "$2" /dev/vdd /mnt/d
    run "$1 thread 2nd, mounted again" pcopy /mnt/src/young /mnt/d/c
    run "$1 dry run" pcopy -n /mnt/src/young /mnt/d/c; head -3 /tmp/run.out
    touch -d '2024-07-01 12:00:04.005' /mnt/src/young/times/even
    run "$1 one changed" pcopy -v /mnt/src/young /mnt/d/c; cat /tmp/run.out
    touch -d '2024-07-01 12:00:02.005' /mnt/src/young/times/even
    rm -rf /mnt/d/c
    echo "-- $1: times"; TOOLS="thread process" cycle "$1 times" /mnt/src/zoo/times /mnt/d; rm -rf /mnt/d/c
    echo "-- $1: names"; TOOLS="thread process" LINES_MAX=20 cycle "$1 names" /mnt/src/zoo/names /mnt/d; rm -rf /mnt/d/c
    echo "-- $1: twins"; TOOLS="thread process" cycle "$1 twins" /mnt/src/zoo/twins /mnt/d
    run "$1 twins 3rd" pcopy -v /mnt/src/zoo/twins /mnt/d/c; cat /tmp/run.out; rm -rf /mnt/d/c
    for t in thread process; do run "$1 twins" pcopy --mode $t -v /mnt/src/zoo/twins /mnt/d/c;  run "$1 twins 2nd $t" pcopy --mode $t -v /mnt/src/zoo/twins /mnt/d/c; cat /tmp/run.out; (cd /mnt/d/c; ls -R; grep -r . .); rm -rf /mnt/d/c; done
    echo "-- $1: whole zoo"; TOOLS="thread process" LINES_MAX=40 cycle "$1 zoo" /mnt/src/zoo /mnt/d
    mkdir -p /mnt/src/back; echo "-- $1: back to ext4"; TOOLS="thread process" cycle "$1 back" /mnt/d/c /mnt/src/back; run "$1 back, --preserve=all" pcopy --preserve=all /mnt/d/c /mnt/src/back/all; rm -rf /mnt/d/c /mnt/src/back
    umount /mnt/d
}
case ${FAT:-all} in all|vfat) disk d mkfs.vfat -F 32 && one vfat iocharset=utf8 vfat;; esac
case ${FAT:-all} in all|exfat) disk d mkfs.exfat && one exfat iocharset=utf8 exfat ;; esac
case ${FAT:-all} in all|ntfs) modprobe ntfs3; disk d mkfs.ntfs -f -F && { one ntfs3 "${NTFS_OPTIONS:-rw}" ntfs3; } ;; esac
