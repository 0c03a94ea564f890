# Hard links on SMB, with the server's inode numbers and with invented ones.
sed '/^mkdir -p \/mnt\/src\/out/,$d' /lab/tests/smb.sh | grep -v -e local_zoo -e 'zoo make' > /tmp/smb-server.sh; . /tmp/smb-server.sh
mkdir -p /mnt/n /mnt/l/sub; echo same > /mnt/l/one; ln /mnt/l/one /mnt/l/two; ln /mnt/l/one /mnt/l/sub/three
for o in noserverino serverino; do
    mount -t cifs -o user=root,pass=x,vers=3.1.1,$o //localhost/s /mnt/n || continue
    for m in thread process; do
        for i in 1 2 3; do run "cifs $o $m run $i" pcopy -v --mode $m /mnt/l /mnt/n/$m; cat /tmp/run.out; ls -liR --time-style=+ /srv/s/$m; done
        run "cifs $o $m dry run" pcopy -n --mode $m /mnt/l /mnt/n/$m
    done
    rm -rf /srv/s/*; umount /mnt/n
done
