# What the tests share. Sourced by init.
zoo() { python3 /lab/zoo.py "$@"; }
now() { cut -d' ' -f1 /proc/uptime; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.1f", b-a}'; }
# run LABEL COMMAND...: prints its exit status, its time, and the first lines of its messages.
run() {
    local label=$1 t0 rc; shift; t0=$(now)
    timeout -k 5 "${LIMIT:-200}" "$@" >/tmp/run.out 2>/tmp/run.err </dev/null; rc=$?
    echo "  $label: rc=$rc $(since $t0) s"
    { cut -c1-230 /tmp/run.err | head -${LINES_MAX:-14}; n=$(wc -l </tmp/run.err); [ $n -gt ${LINES_MAX:-14} ] && { echo "... ($n lines)"; tail -1 /tmp/run.err; }; } | sed 's/^/    | /'
    return $rc
}
# cycle LABEL SRC DST: each mode copies SRC to DST/c twice. Compares the trees.
tools="thread process"
tool() { # tool NAME SRC DST [again]
    case $1 in
    thread|process) pcopy --mode $1 ${PCOPY_ARGS:-} "$2" "$3" ;;
    cp) cp -a -T "$2" "$3" ;;
    rsync) rsync -aHAX ${RSYNC_ARGS:-} "$2/" "$3/" ;;
    esac
}
export -f tool
cycle() {
    local label=$1 src=$2 dst=$3 t
    for t in ${TOOLS:-$tools}; do
        rm -rf "$dst/c"; if [ -n "${SERVER_DIR:-}" ]; then rm -rf "$SERVER_DIR/c"; sleep 2; fi
        run "[$label] $t" bash -c "tool $t '$src' '$dst/c'"
        [ -z "${NO_COMPARE:-}" ] && zoo compare "$src" "$dst/c"
        case $t in
        thread|process) [ -z "${NO_SECOND:-}" ] && { run "[$label] $t 2nd" bash -c "tool $t '$src' '$dst/c'"; } 
            find "$dst/c" -name '.pcopy.*' | sed 's/^/    LEFT OVER /' ;;
        rsync) [ -z "${NO_SECOND:-}" ] && { run "[$label] $t 2nd" bash -c "rsync -aHAX -i ${RSYNC_ARGS:-} '$src/' '$dst/c/'"; echo "    itemized: $(wc -l </tmp/run.out), transferred: $(grep -c '^>f' /tmp/run.out)"; } ;;
        esac
    done
}
disk() { # disk LETTER MKFS...: makes a file system on a scratch disk
    local d=/dev/vd$1; shift
    wipefs -qa $d; "$@" $d >/tmp/mkfs.log 2>&1 || { echo "  mkfs failed: $*"; tail -3 /tmp/mkfs.log; return 1; }
}
local_zoo() { # the zoo on ext4 at /mnt/src/zoo
    [ -e /mnt/src/zoo ] && return
    mkdir -p /mnt/src; mountpoint -q /mnt/src || { disk c mkfs.ext4 -q -I 256; mount /dev/vdc /mnt/src; }; zoo make /mnt/src/zoo
}
