# cifs whose inode numbers do not last (noserverino), with caches dropped all the while; and with server inode numbers.
export MANY=40 LIMIT=500
sed '/^mkdir -p \/mnt\/src\/out/,$d' /lab/tests/smb.sh > /tmp/smb-server.sh; . /tmp/smb-server.sh
sed '/^for fs in/,$d' /lab/tests/inodes.sh > /tmp/inodes-functions.sh; . /tmp/inodes-functions.sh
mkdir -p /mnt/n
for o in noserverino serverino; do
    mount -t cifs -o user=root,pass=x,vers=3.1.1,$o //localhost/s /mnt/n && { mkdir -p /mnt/n/p; grep -o 'serverino\|noserverino' /proc/mounts | head -1; under_pressure /mnt/n/p "cifs $o"; rm -rf /srv/s/p; umount /mnt/n; }
done
