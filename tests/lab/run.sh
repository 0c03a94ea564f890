#!/bin/bash
# Boots a kernel that build.sh has prepared and runs tests in it.
#
#   run.sh LABDIR PCOPY KERNEL TEST...       (KERNEL: a name in LABDIR/kernels, or a part of one)
#
# Output goes to stdout and LABDIR/out/KERNEL-TEST.log. QEMU names the emulator, MEMORY the guest's
# memory (3G), TIMEOUT the most seconds (3000).
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
    -nic none -serial stdio -monitor none -display none "${drives[@]}" </dev/null > "$log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || :; rm -rf "$work"' EXIT
start=$SECONDS
while kill -0 $pid 2>/dev/null; do
    if [ $((SECONDS - start)) -gt "${TIMEOUT:-3000}" ]; then echo "TIMEOUT" >> "$log"; kill $pid; break; fi
    sleep 1
done
wait $pid || :
tr -d '\r' < "$log" > "$log.new"; mv "$log.new" "$log"
echo "wall: $((SECONDS - start)) s" >> "$log"
cat "$log"
