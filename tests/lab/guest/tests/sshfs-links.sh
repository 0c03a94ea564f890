# Hard links on sshfs, whose inode numbers last only while they are in use.
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
rm -rf /mnt/src/l; mkdir /mnt/src/l; echo same > /mnt/src/l/one; ln /mnt/src/l/one /mnt/src/l/two; ln /mnt/src/l/one /mnt/src/l/three
for m in thread process; do rm -rf /srv/ssh/l; cp -a /mnt/src/l /srv/ssh/l
for i in 1 2 3; do run "run $i $m" pcopy -v --mode $m /mnt/src/l /mnt/f/l; cat /tmp/run.out; ls -lai --time-style=+ /srv/ssh/l; done; done
rm -rf /srv/ssh/n; for i in 1 2 3; do run "fresh, run $i" pcopy -v /mnt/src/l /mnt/f/n; cat /tmp/run.out; ls -lai --time-style=+ /srv/ssh/n; done
umount -l /mnt/f
