#!/bin/bash
# Builds what run.sh boots: a Debian root disk and kernels with their modules. Needs root, mmdebstrap,
# mke2fs, cpio, depmod and apt. Skips what is there already.
#
#   build.sh LABDIR [KERNEL-DEB...]
#
# Without packages it takes the current kernel of the release (linux-image-amd64).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=$(mkdir -p "$1" && cd "$1" && pwd); shift
suite=${SUITE:-bookworm}
packages=mount,util-linux,kmod,procps,iproute2,nfs-kernel-server,nfs-common,rpcbind,samba,cifs-utils
packages+=,dosfstools,exfatprogs,ntfs-3g,f2fs-tools,quota,attr,acl,rsync,strace,libcap2-bin
packages+=,e2fsprogs,xfsprogs,btrfs-progs,squashfs-tools,erofs-utils,genisoimage,fuse3,sshfs
packages+=,openssh-sftp-server,busybox-static,udev,python3-minimal,libpython3-stdlib

if [ ! -e "$lab/rootfs.tar" ]; then
    mmdebstrap --variant=apt --mode=root --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='APT::Install-Recommends "false"' \
        --format=tar "$suite" "$lab/rootfs.tar.new"
    mv "$lab/rootfs.tar.new" "$lab/rootfs.tar"
fi

if [ $# = 0 ]; then
    mkdir -p "$lab/debs"
    if ! ls "$lab"/debs/linux-image-*.deb >/dev/null 2>&1; then
        name=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/{print $2; exit}')
        (cd "$lab/debs" && apt-get download "$name")
    fi
    set -- "$lab"/debs/linux-image-*.deb
fi

# The modules that a file system, a network mount or the guest itself needs.
parts='kernel/fs kernel/net/sunrpc kernel/net/sched kernel/net/ipv6 kernel/net/dns_resolver kernel/net/core
kernel/net/802 kernel/net/9p kernel/net/key kernel/lib kernel/crypto kernel/arch/x86/crypto kernel/security kernel/mm
kernel/drivers/block kernel/drivers/virtio kernel/drivers/net/virtio_net.ko kernel/drivers/cdrom
kernel/drivers/char/hw_random'
for deb in "$@"; do
    name=$(dpkg-deb -f "$deb" Package); name=${name#linux-image-}; name=${name%-unsigned}
    out=$lab/kernels/$name
    if [ -e "$out/initrd" ]; then continue; fi
    rm -rf "$out.new" "$out"; mkdir -p "$out.new/tree"
    dpkg-deb -x "$deb" "$out.new/tree"
    cp "$out.new/tree/boot/vmlinuz-"* "$out.new/vmlinuz"
    modules=$(cd "$out.new/tree"; { ls -d usr/lib/modules/* lib/modules/* 2>/dev/null || :; } | head -1)
    version=${modules##*/}
    mkdir -p "$out.new/mods/lib/modules/$version"
    (cd "$out.new/tree/$modules"
     for part in $parts; do ls -d "$part"* 2>/dev/null || :; done | sort -u |
        tar c --files-from=- modules.order modules.builtin modules.builtin.modinfo
    ) | tar x -C "$out.new/mods/lib/modules/$version"
    depmod -b "$out.new/mods" "$version"
    # A small first root: busybox and what finds the disks.
    root=$out.new/first; mkdir -p "$root"/{bin,dev,proc,sys,new,m}
    tar xf "$lab/rootfs.tar" -C "$out.new" --wildcards --no-anchored 'bin/busybox'
    find "$out.new" -path '*bin/busybox' -not -path '*first*' -exec cp {} "$root/bin/busybox" \;
    i=0
    for module in virtio_pci virtio_blk ext4; do
        modprobe -n --show-depends -d "$out.new/mods" -S "$version" "$module" 2>/dev/null |
            awk '$1=="insmod"{print $2}' | while read -r file; do
                b=$(basename "$file"); if ls "$root/m" | grep -q -- "-$b\$"; then continue; fi
                n=$(printf %03d "$(ls "$root/m" | wc -l)"); cp "$file" "$root/m/$n-$b"
            done
    done
    for f in "$root"/m/*.xz; do if [ -e "$f" ]; then xz -d "$f"; fi; done
    cat > "$root/init" <<'I'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc
for m in /m/*; do $b insmod $m; done
until [ -e /dev/vdb ]; do $b sleep 0.1; done
$b mount -t ext4 /dev/vda /new
$b mount -t ext4 /dev/vdb /new/lab
$b umount /proc; $b mount -o move /dev /new/dev 2>/dev/null || $b mount --move /dev /new/dev
exec $b switch_root /new /lab/init
I
    chmod +x "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$out.new/initrd"
    mv "$out.new/mods" "$out.new/mods.keep"; rm -rf "$out.new"/{tree,first,bin,usr}
    mv "$out.new" "$out"
    rm -f "$lab/root.img"
done

if [ ! -e "$lab/root.img" ]; then
    rm -rf "$lab/root.new"; mkdir "$lab/root.new"
    tar xf "$lab/rootfs.tar" -C "$lab/root.new"
    mkdir -p "$lab/root.new/lab" "$lab/root.new/lib/modules"
    for kernel in "$lab"/kernels/*; do cp -a "$kernel"/mods.keep/lib/modules/* "$lab/root.new/lib/modules/"; done
    truncate -s 3G "$lab/root.img.new"
    mke2fs -q -F -t ext4 -d "$lab/root.new" "$lab/root.img.new"
    mv "$lab/root.img.new" "$lab/root.img"; rm -rf "$lab/root.new"
fi
ls -d "$lab"/kernels/*
