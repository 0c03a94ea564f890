# The zoo, with one file that is copied in chunks, to and from NFS 3 and 4.2.
export ZOO_LITE=1
. /lab/nfslib.sh
local_zoo
nfs_server rw,sync,no_subtree_check,no_root_squash,fsid=1
zoo make /srv/e/zoo; for z in /mnt/src/zoo /srv/e/zoo; do head -c 33M /dev/urandom > $z/sizes/33m; done; mkdir -p /srv/e/w; chmod 777 /srv/e/w
for v in 3 4.2; do
    nfs_mount /mnt/n vers=$v,proto=tcp || continue
    echo "-- local -> nfs$v, no_root_squash"
    cycle "to-nfs$v" /mnt/src/zoo /mnt/n/w
    rm -rf /mnt/n/w/*
    echo "-- nfs$v -> local"
    mkdir -p /mnt/out; TOOLS="thread process" cycle "from-nfs$v" /mnt/n/zoo /mnt/out
    echo "-- nfs$v -> same nfs$v"
    TOOLS="thread process" cycle "both-nfs$v" /mnt/n/zoo /mnt/n/w
    rm -rf /mnt/n/w/*
    umount /mnt/n || umount -l /mnt/n
done
rm -rf /mnt/out
