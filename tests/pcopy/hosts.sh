#!/bin/bash
# Three hosts on one machine: network namespaces on a bridge, each with a host name, a mount namespace
# and an sshd of its own. They share the file system. Needs root, openssh-server and iproute2.
#
#   hosts.sh up DIR                  start them; DIR keeps keys and process numbers
#   hosts.sh in DIR HOST COMMAND...  run a command on host 1, 2 or 3
#   hosts.sh mpirun DIR OPTIONS...   run mpirun on host 1, with a rank on each host
#   hosts.sh cut DIR HOST            take a host's network away
#   hosts.sh down DIR
set -e
what=$1 dir=$2
shift 2

# Names and addresses of their own for each directory: several tests may run at a time.
number() { cksum <<<"$dir" | cut -d' ' -f1; }
id=pc$(($(number) % 9973))
net=10.$((64 + $(number) % 63)).$(($(number) / 64 % 256))

up() {
    mkdir -p /run/sshd "$dir"
    ip link add "$id" type bridge
    ip link set "$id" up
    for key in id host; do ssh-keygen -q -t ed25519 -N '' -f "$dir/$key"; done
    cp "$dir/id.pub" "$dir/auth"
    chmod 600 "$dir/auth"
    cat >"$dir/ssh" <<END
#!/bin/sh
exec ssh -i $dir/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "\$@"
END
    chmod +x "$dir/ssh"
    for i in 1 2 3; do
        ip netns add "$id-$i"
        ip link add "${id}v$i" type veth peer name eth0 netns "$id-$i"
        ip link set "${id}v$i" master "$id" up
        ip -n "$id-$i" addr add "$net.$i/24" dev eth0
        ip -n "$id-$i" link set eth0 up
        ip -n "$id-$i" link set lo up
        ip netns exec "$id-$i" unshare --uts sh -c "hostname $id-$i
            exec /usr/sbin/sshd -D -e -f /dev/null -o Port=22 -o ListenAddress=$net.$i \
            -o HostKey=$dir/host -o AuthorizedKeysFile=$dir/auth -o StrictModes=no \
            -o PermitRootLogin=yes -o UsePAM=no -o PidFile=$dir/pid$i" >"$dir/log$i" 2>&1 </dev/null &
    done
    for _ in $(seq 100); do
        if [ -s "$dir/pid1" ] && [ -s "$dir/pid2" ] && [ -s "$dir/pid3" ]; then return; fi
        sleep 0.1
    done
    cat "$dir"/log* >&2
    exit 1
}

in_host() {
    local pid
    pid=$(cat "$dir/pid$1")
    shift
    exec nsenter -t "$pid" -m -n -u -w"$PWD" "$@"
}

down() {
    for i in 1 2 3; do
        for pid in $(ip netns pids "$id-$i" 2>/dev/null); do kill -9 "$pid" || true; done
        ip netns del "$id-$i" || true
    done
    ip link del "$id" || true
}

case $what in
up) up ;;
in) in_host "$@" ;;
mpirun)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    in_host 1 mpirun --mca plm_rsh_agent "$dir/ssh" --mca oob_tcp_if_include eth0 \
        --mca btl_tcp_if_include eth0 --mca btl tcp,self --bind-to none --wdir "$PWD" \
        -H "$net.1,$net.2,$net.3" -n 3 "$@"
    ;;
cut) ip -n "$id-$1" link set eth0 down ;;
down) down 2>/dev/null ;;
esac
