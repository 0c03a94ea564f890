# A Samba share through cifs, with several ways to mount it.
export ZOO_LITE=1
local_zoo
mkdir -p /srv/s /mnt/d /var/lib/samba/private /var/log/samba /run/samba /var/cache/samba; mountpoint -q /srv/s || { disk d mkfs.ext4 -q; mount /dev/vdd /srv/s; chmod 777 /srv/s; }
cat > /etc/samba/smb.conf <<C
[global]
 server min protocol = NT1
 client min protocol = NT1
 unix extensions = yes
 smb3 unix extensions = yes
 map to guest = never
 smb ports = 445
 disable spoolss = yes
 load printers = no
 log level = 0
[s]
 path = /srv/s
 writable = yes
 ea support = yes
 store dos attributes = yes
C
printf 'x\nx\n' | smbpasswd -s -a root >/dev/null; smbd -D; sleep 4
zoo make /srv/s/zoo >/dev/null
modprobe cifs; smbd --version
smb() { # smb LABEL OPTIONS
    mkdir -p /mnt/n; timeout 60 mount -t cifs -o "user=root,pass=x,$2" //localhost/s /mnt/n || { echo "  mount failed: $2"; dmesg | tail -3; return 1; }
    grep ' /mnt/n ' /proc/mounts | cut -c1-400; mkdir -p /mnt/n/w
    echo "-- local -> $1"; TOOLS="${3:-thread process}" LINES_MAX=16 cycle "to $1" /mnt/src/zoo /mnt/n/w
    [ -n "${SMB_SHORT:-}" ] && { umount /mnt/n; return; }
    run "$1 what a third run does" pcopy /mnt/src/zoo /mnt/n/w/c >/dev/null;  run "$1 what a third run does" pcopy -n /mnt/src/zoo /mnt/n/w/c; grep -v -e merge -e unchanged /tmp/run.out | head -20
    rm -rf /srv/s/w/*
    echo "-- twins, $1"; TOOLS="thread process" cycle "$1 twins" /mnt/src/zoo/twins /mnt/n/w; rm -rf /srv/s/w/*
    run "$1 twins" pcopy -v /mnt/src/zoo/twins /mnt/n/w/c;  run "$1 twins 2nd" pcopy -v /mnt/src/zoo/twins /mnt/n/w/c; cat /tmp/run.out; (cd /srv/s/w/c; ls -R; grep -r . .); rm -rf /srv/s/w/*
    echo "-- $1 -> local"; TOOLS="${4:-thread process}" cycle "from $1" /mnt/n/zoo /mnt/src/out; rm -rf /mnt/src/out/*
    mkdir -p /mnt/n/p; echo "-- $1 to itself"; TOOLS="thread process" cycle "both $1" /mnt/n/zoo/sizes /mnt/n/p; rm -rf /srv/s/p/*
    umount /mnt/n
}
mkdir -p /mnt/src/out; export SERVER_DIR=/srv/s/w
case ${SMB:-all} in all|3) smb "smb3" vers=3.1.1 ;; esac
case ${SMB:-all} in all|3map) smb "smb3 mapposix mfsymlinks noserverino" vers=3.1.1,mapposix,mfsymlinks,noserverino "thread process" thread ;; esac
case ${SMB:-all} in all|3sid) smb "smb3 modefromsid,idsfromsid" vers=3.1.1,modefromsid,idsfromsid "thread process" thread ;; esac
case ${SMB:-all} in all|1) smb "smb1 unix" vers=1.0 "thread process" "thread" ;; esac
case ${SMB:-all} in all|posix) smb "smb3 posix" vers=3.1.1,posix "thread process" thread ;; esac
