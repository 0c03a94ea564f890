# Large files on sshfs, while caches are dropped: its inode numbers last only while they are in use.
export ZOO_LITE=1 MANY=40
sed '/^for fs in/,$d' /lab/tests/inodes.sh > /tmp/inodes-functions.sh; . /tmp/inodes-functions.sh
modprobe fuse; mkdir -p /srv/ssh /mnt/f; disk d mkfs.ext4 -q; mount /dev/vdd /srv/ssh
cat > /tmp/pipe.py <<'P'
import os, subprocess, sys, socket
a, b = socket.socketpair()
subprocess.Popen(["/usr/lib/openssh/sftp-server"], stdin=b, stdout=b)
subprocess.Popen(["sshfs", "-f", "-o", "passive", ":/srv/ssh", "/mnt/f"], stdin=a, stdout=a)
P
python3 /tmp/pipe.py; sleep 5; grep /mnt/f /proc/mounts || return
( while :; do echo 2 > /proc/sys/vm/drop_caches; sync; sleep 0.02; done ) & p=$!
for m in process thread; do for i in 1 2; do run "sshfs dropped $m run $i" bash -c "tool $m /mnt/src/large /mnt/f/$m"; ls -la --time-style=+ /srv/ssh/$m; done; diff -rq /mnt/src/large /srv/ssh/$m; done
kill $p; umount -l /mnt/f
