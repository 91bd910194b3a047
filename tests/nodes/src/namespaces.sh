# The first process of a node, in network, mount and process namespaces of its own: prepares them, then holds them open.
#   $1  the node's directory: what it keeps over a power cut stands in $1/disk
#   $2  a program that waits, and reaps
set -eu
disk=$1/disk
mount --make-rshared /
for directory in /run /var/lib /var/log; do
    mount -t tmpfs -o mode=755 tmpfs "$directory"
done
for directory in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers; do
    mkdir -p "$disk$directory" "$directory"
    mount --bind "$disk$directory" "$directory"
done
# These hold for the whole machine, and the kubelet would set them: it finds them to be as it wants.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/sysctl-$(echo "${setting%=*}" | tr / -)
    echo "${setting#*=}" >"$file"
    [ ! -e "/proc/sys/${setting%=*}" ] || mount --bind "$file" "/proc/sys/${setting%=*}"
done
# These hold for this network namespace alone.
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
touch /run/prepared
exec "$2"
