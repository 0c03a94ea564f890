# Attributes that only NFS 4 has, and root_squash; in both modes.
export ZOO_LITE=1
. /lab/nfslib.sh
local_zoo
nfs_server rw,sync,no_subtree_check,no_root_squash,fsid=1
cp -a /mnt/src/zoo /srv/e/zoo; mkdir -p /srv/e/w /srv/e/plain; chmod 777 /srv/e/w; echo x > /srv/e/plain/f; mkdir -p /mnt/src/out
nfs_mount /mnt/n vers=4.2,proto=tcp
echo "-- attributes that only NFS 4 has"; python3 -c 'import os; print(os.listxattr("/mnt/n/plain/f"))'
run "nfs4.2 plain" pcopy /mnt/n/plain /mnt/src/out/p; rm -rf /mnt/src/out/*
for w in xattr mode all; do run "nfs4.2 plain --preserve=$w" pcopy --preserve=$w /mnt/n/plain /mnt/src/out/p; rm -rf /mnt/src/out/*; done
umount /mnt/n
exportfs -ua; exportfs -o rw,sync,no_subtree_check,root_squash,fsid=1 '*:/srv/e'
export SERVER_DIR=/srv/e/w # root is squashed, and cannot remove everything from here
for v in 4.2 3; do
nfs_mount /mnt/n vers=$v,proto=tcp && { 
echo "-- root_squash: local -> nfs$v"; TOOLS="thread process" LINES_MAX=8 cycle "squash to nfs$v" /mnt/src/zoo /mnt/n/w; rm -rf /srv/e/w/*
echo "-- root_squash: nfs$v -> local"; TOOLS="thread process" LINES_MAX=8 cycle "squash from nfs$v" /mnt/n/zoo /mnt/src/out; rm -rf /mnt/src/out/*
umount /mnt/n; }
done
