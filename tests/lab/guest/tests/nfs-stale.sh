# A destination that was removed on the server a moment ago. The client does not know that yet.
. /lab/nfslib.sh
mkdir -p /mnt/src/t/sub; echo 1 > /mnt/src/t/a; echo 2 > /mnt/src/t/sub/b
nfs_server rw,sync,no_subtree_check,no_root_squash,fsid=1
mkdir -p /srv/e/w; chmod 777 /srv/e/w
for v in 4.2 3; do
    nfs_mount /mnt/n vers=$v,proto=tcp || continue
    for c in "pcopy" "pcopy --mode process"; do
        s=/mnt/src/t
        rm -rf /mnt/n/w/c; run "nfs$v $c first" $c $s /mnt/n/w/c; ls -lR /mnt/n/w/c >/dev/null; rm -rf /srv/e/w/c
        run "nfs$v $c after removal at the server" $c $s /mnt/n/w/c; run "nfs$v $c again" $c $s /mnt/n/w/c; find /srv/e/w -type f | sed 's/^/    there: /'
        ls -lR /mnt/n/w > /dev/null 2>&1; rm -rf /srv/e/w/c/sub; run "nfs$v $c after removal of a subdirectory" $c $s /mnt/n/w/c; run "nfs$v $c again" $c $s /mnt/n/w/c;  find /srv/e/w -type f | sed 's/^/    there: /'; rm -rf /srv/e/w/*
    done
    umount /mnt/n
done
