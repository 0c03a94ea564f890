# Two names that the destination takes for one, at the first and later runs. And what --preserve
# says if the file system takes a value and keeps another.
mkdir -p /tmp/s /mnt/d /tmp/p
echo a > /tmp/s/big; echo bbbb > /tmp/s/BIG; echo x > /tmp/s/same; echo y > /tmp/s/SAME; touch -d @1700000000 /tmp/s/same /tmp/s/SAME
mkdir /tmp/s/dir /tmp/s/DIR; echo 1 > /tmp/s/dir/f; echo 22 > /tmp/s/DIR/f
three() {
    for m in thread process; do rm -rf $1/d
        run "$2 $m dry run, new" pcopy -n --mode $m /tmp/s $1/d; mkdir $1/d; run "$2 $m dry run, empty" pcopy -n --mode $m /tmp/s $1/d; rm -rf $1/d
        for i in 1 2 3; do run "$2 $m run $i" pcopy -v --mode $m /tmp/s $1/d; sed 's/^/    v: /' /tmp/run.out; (cd $1/d; grep -r . . | sed 's/^/    now: /'); done
        run "$2 $m dry run" pcopy -n --mode $m /tmp/s $1/d; done
}
echo private > /tmp/p/secret; chmod 600 /tmp/p/secret; touch -d '1975-01-01' /tmp/p/secret; ln /tmp/p/secret /tmp/p/second; chown 1000 /tmp/p/secret
promise() {
    for what in mode ownership timestamps links xattr all; do run "$2 --preserve=$what" pcopy --preserve=$what /tmp/p $1/p; rm -rf $1/p; done
    for m in thread process; do
        for i in 1 2; do run "$2 $m run $i" pcopy --mode $m /tmp/p $1/p; done; ls -l --time-style=full-iso $1/p; rm -rf $1/p
    done
}
if disk d mkfs.vfat -F 32; then mount -t vfat -o iocharset=utf8 /dev/vdd /mnt/d; three /mnt/d vfat; promise /mnt/d vfat; umount /mnt/d; fi
if disk d mkfs.ext4 -q -O casefold -E encoding=utf8; then mount /dev/vdd /mnt/d && { mkdir /mnt/d/ci; chattr +F /mnt/d/ci; three /mnt/d/ci casefold; umount /mnt/d; }; fi
if disk d mkfs.exfat; then mount -t exfat /dev/vdd /mnt/d && { three /mnt/d exfat; promise /mnt/d exfat; umount /mnt/d; }; fi
modprobe ntfs3 2>/dev/null && if disk d mkfs.ntfs -f -F; then mount -t ntfs3 /dev/vdd /mnt/d && { three /mnt/d ntfs3; promise /mnt/d ntfs3; umount /mnt/d; }; fi
