#!/bin/bash
# Boots a kernel that build.sh has prepared and runs tests in it.
#
#   run.sh LABDIR PCOPY KERNEL TEST...       (KERNEL: a name in LABDIR/kernels, or a part of one)
#
# Output goes to stdout and LABDIR/out/KERNEL-TEST.log. PEERS names a directory with other copiers' binaries,
# QEMU the emulator, TIMEOUT the most seconds (3000), PAUSE a file while which exists the guest is
# halted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=$(cd "$1" && pwd); pcopy=$2; want=$3; shift 3
kernel=$(ls -d "$lab"/kernels/*"$want"* | sort -V | tail -1)
qemu=${QEMU:-qemu-system-x86_64}
work=$(mktemp -d "$lab/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests/bin" "$lab/out"
cp -r "$here"/guest/. "$work/tests/"
cp "$pcopy" "$work/tests/bin/pcopy"
if [ -n "${PEERS:-}" ]; then cp "$PEERS"/* "$work/tests/bin/"; fi
chmod +x "$work/tests/init" "$work"/tests/bin/*
truncate -s 128M "$work/tests.img"; mke2fs -q -F -t ext4 -d "$work/tests" "$work/tests.img"
for disk in c d e f; do truncate -s 8G "$work/$disk.img"; done
drives=()
drive() { drives+=(-drive "file=$1,format=raw,if=virtio,cache=unsafe,discard=unmap${2:-}"); }
drive "$lab/root.img" ,snapshot=on
drive "$work/tests.img" ,snapshot=on
for disk in c d e f; do drive "$work/$disk.img"; done
accel=tcg,thread=multi
if [ -w /dev/kvm ] && grep -qE 'vmx|svm' /proc/cpuinfo; then accel=kvm; fi
log=$lab/out/$(basename "$kernel")-$(echo "$*" | tr ' ' +).log
"$qemu" ${QEMU_ARGS:-} -accel "$accel" -cpu max -m "${MEMORY:-3G}" -smp 2 -nographic -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
    -append "console=ttyS0 quiet loglevel=4 mitigations=off panic=-1 audit=0 ${APPEND:-} tests=$(echo "$*" | tr ' ' ,)" \
    -nic none -serial stdio -monitor "unix:$work/monitor,server,nowait" -display none "${drives[@]}" </dev/null > "$log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || :; rm -rf "$work"' EXIT
start=$SECONDS halted=0 lost=0
say() { python3 -c 'import socket,sys,time
s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(.2); s.send(sys.argv[2].encode()+b"\n"); time.sleep(.3)' "$work/monitor" "$1" || :; }
while kill -0 $pid 2>/dev/null; do
    if [ $((SECONDS - start - lost)) -gt "${TIMEOUT:-3000}" ]; then echo "TIMEOUT" >> "$log"; kill $pid; break; fi
    if [ -n "${PAUSE:-}" ]; then
        if [ -e "$PAUSE" ] && [ $halted = 0 ]; then say stop; halted=1; fi
        if [ ! -e "$PAUSE" ] && [ $halted = 1 ]; then say cont; halted=0; fi
    fi
    sleep 1
    lost=$((lost + halted))
done
wait $pid || :
tr -d '\r' < "$log" > "$log.new"; mv "$log.new" "$log"
echo "wall: $((SECONDS - start)) s" >> "$log"
cat "$log"
